"""Mutual TLS of both directions: PS3.15 B.12 and B.13, after BCP 195 (RFC 9325)."""

from __future__ import annotations

import ssl

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config import Config, Tls

# RFC 9325 section 4.2, for TLS 1.2: ephemeral elliptic curves and authenticated encryption; TLS 1.3 has no others
CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
)  # fmt: skip


def client_context(tls: Tls) -> ssl.SSLContext:
    """For a connection that we open: the peer's certificate must come from our authorities and name its host.

    Raises:
        ConfigError: if a file is missing, is no PEM, or key and certificate do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, tls)
    return context


def server_context(tls: Tls) -> ssl.SSLContext:
    """For a connection that is opened to us: the peer must show a certificate of our authorities.

    Raises:
        ConfigError: if a file is missing, is no PEM, or key and certificate do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # no session goes on after its certificate was withdrawn
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    _load(context, tls)
    return context


def check(config: Config) -> None:
    """Try the certificates of every door and destination, so that a reload with wrong ones changes nothing.

    Raises:
        ConfigError: if one cannot be used.
    """
    for door in (config.dicom.tls, config.web.tls if config.web.enabled else None):
        if door is not None:
            server_context(door)
    for tls in (config.audit.tls, *(item.tls for item in config.destination)):
        if tls is not None:
            client_context(tls)


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"certificate {tls.certificate} and key {tls.key} cannot be used ({_said(error)}): expected PEM files that "
            "belong together, the key without a password"
        ) from error
    try:
        context.load_verify_locations(tls.authorities)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the authorities {tls.authorities} cannot be used ({_said(error)}): expected a PEM file with at least "
            "one certificate"
        ) from error


def _said(error: Exception) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)) or "no PEM"

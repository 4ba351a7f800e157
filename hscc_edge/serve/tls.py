"""Mutual TLS of both directions: PS3.15 B.12 and B.13, after BCP 195."""

from __future__ import annotations

import ssl

from hscc_edge.serve.config import Tls


def client_context(tls: Tls) -> ssl.SSLContext:
    """For a connection that we open: the peer's certificate must come from our authorities and name its host."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    return context

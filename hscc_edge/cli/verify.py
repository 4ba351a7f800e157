"""`hscc-edge verify`: a bundle or an evidence pack against its manifest and its signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from hscc_edge.validate.pack.verify import Verification


def verify(
    directory: Annotated[Path, typer.Argument(help="Bundle or evidence pack.")],
    trusted: Annotated[
        Path | None, typer.Option(help="Folder of public keys (PEM); one of them must have signed.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle that the pack must be about.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every file against the manifest, and every signature; exits with 1 and names what was altered.

    Example: hscc-edge verify pack --trusted /etc/hscc-edge/trusted --bundle small
    """
    from hscc_edge.validate.pack import signature, verify

    found = verify.verify(directory, None if trusted is None else signature.trusted_keys(trusted))
    if bundle is not None:
        verify.check_bundle(directory, bundle)
    output = Output(as_json)
    _show(output, found, trusted is not None)
    output.result(found.to_json())
    if found.faults:
        raise typer.Exit(1)


def _show(output: Output, found: Verification, by_key: bool) -> None:
    for fault in found.faults:
        output.say(fault, style="red")
    for item in found.signatures:
        known = f"trusted as {item.trusted}" if item.trusted else "key not trusted" if by_key else "key not looked up"
        who = item.signature
        output.say(f"signed: {who.meaning} by {who.signer}, {who.signed}, key {who.key_id} ({known})")
    state = "verified" if not found.faults else "NOT verified"
    signed = "" if found.signatures else "; not signed"
    output.say(f"{found.kind} {found.root}: {state}, {found.files} files, manifest {found.manifest[:16]}{signed}")

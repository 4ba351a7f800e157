"""`hscc-edge sign`: put a name to a bundle or an evidence pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def sign(
    directory: Annotated[Path, typer.Argument(help="Bundle or evidence pack.")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM); openssl genpkey -algorithm ed25519 makes one.")],
    signer: Annotated[str, typer.Option(help="Who signs.")],
    meaning: Annotated[str, typer.Option(help="What the signature stands for: made, reviewed, approved.")] = "approved",
    timestamp: Annotated[str | None, typer.Option(help="ISO 8601 with its offset, in place of now.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every file, then sign the manifest; asks for the passphrase of an encrypted key.

    Example: hscc-edge sign pack --key key.pem --signer "A. Physicist" --meaning approved
    """
    from hscc_edge.validate.pack import signature, verify
    from hscc_edge.validate.pack.moment import moment

    signed = moment(timestamp)
    verify.require(verify.verify(directory))
    passphrase = typer.prompt("passphrase", hide_input=True, err=True).encode() if signature.encrypted(key) else None
    path = signature.sign(directory, signature.read_private_key(key, passphrase), signer, meaning, signed)
    found, output = signature.read_signature(path.read_bytes()), Output(as_json)
    output.say(f"{path}: {found.meaning} by {found.signer}, {found.signed}, key {found.key_id}")
    output.result(
        {"signature": str(path), "manifest": found.manifest, "signer": found.signer, "meaning": found.meaning,
         "signed": found.signed, "key": found.key_id}
    )  # fmt: skip

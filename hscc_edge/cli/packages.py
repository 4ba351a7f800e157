"""`hscc-edge packages`: what Python packages are installed here, for the SBOM of the device image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def packages(
    out: Annotated[Path, typer.Option(help="JSON to write, for hscc-edge evidence.")],
    as_json: JsonFlag = False,
) -> None:
    """Record the installed Python packages with versions and licences; run it on the device.

    Example: hscc-edge packages --out packages.json
    """
    from hscc_edge import durable
    from hscc_edge.validate.pack.packages import inventory

    found, output = inventory(), Output(as_json)
    durable.write_json(out, found)
    output.say(f"{out}: {len(found['packages'])} packages, Python {found['python']} on {found['machine']}")
    output.result({"packages": str(out), "count": len(found["packages"])})

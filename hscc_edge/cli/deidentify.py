"""`hscc-edge cohort deidentify`: copies of DICOM files by PS3.15 Annex E."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from hscc_edge.data.deidentify.report import Report


def deidentify(
    source: Annotated[Path, typer.Argument(help="Cohort directory, or a folder of DICOM files.")],
    out: Annotated[Path, typer.Argument(help="New directory.")],
    key: Annotated[Path, typer.Option(help="File with the secret key, 32 bytes or more, mode 0600.")],
    profile: Annotated[Path | None, typer.Option(help="TOML with options; without it, the basic profile.")] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key's file first.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """De-identify a cohort or folder by PS3.15 Annex E; labels and splits stay, pixels are not touched.

    The same key gives the same UIDs, pseudonyms and shifts of dates: keep it where few can read it, or destroy it.
    Burnt-in text is not removed: look at the files that deidentification.json lists, and at samples of the others.

    Example: hscc-edge cohort deidentify cohort shared --key site.key --new-key --profile deidentify.toml
    """
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.deidentify.cohort import deidentify_cohort, deidentify_folder
    from hscc_edge.data.deidentify.key import check_apart, read_key
    from hscc_edge.data.deidentify.key import new_key as make_key
    from hscc_edge.data.deidentify.profile import Profile, read_profile

    output, chosen = Output(as_json), Profile() if profile is None else read_profile(profile)
    check_apart(key, out)
    secret = make_key(key) if new_key else read_key(key)
    with output.progress("deidentify") as advance:
        if (source / "cohort.toml").is_file():
            _, report = deidentify_cohort(read_cohort(source), out, chosen, secret, replace=overwrite, progress=advance)
        else:
            report = deidentify_folder(source, out, chosen, secret, replace=overwrite, progress=advance)
    _show(output, out, report)


def _show(output: Output, out: Path, report: Report) -> None:
    content = report.to_json()
    output.say(f"{out}: {content['files']['written']} files, {', '.join(m for _, m in report.profile.codes)}")
    output.table("rules", ("rule", "times"), list(content["rules"].items()))
    for name in ("left_out", "warnings"):
        for reason, count in content[name].items():
            output.say(f"{name.replace('_', ' ')}: {count} files, {reason}")
    output.say(f"look at {len(report.to_look_at)} files with signs of burnt-in text, and at samples of the others")
    for code, meaning in content["not_done"].items():
        output.say(f"not done: {code} {meaning}")
    output.result({"out": str(out), **content})

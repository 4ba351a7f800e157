"""What hostile.py and sentinels.py found, as a page: python benchmarks/hostile_table.py DIR > docs/hostile.md"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEAD = """# Hostile peers, and what is told of a patient

`make hostile OUT=dir` lets attackers at a daemon with every door open while an honest `storescu` goes on sending. Then
it plants sentinels in every value of {studies} studies and looks for them in all that is not the archive's. It exits 1
if a process died or hung, memory went over its bound, an attack was answered otherwise than it should be, an
acknowledged instance was lost, or a sentinel was found. `make test` has a short round of both
(`tests/serve/test_hostile.py`, `test_sentinels.py`).

Made by `benchmarks/hostile_table.py`; {machine}, {cores} cores; {date}; Python {python}, pynetdicom {pynetdicom}; seeds
{seed} and {own_seed}. Not run on a Jetson.
"""
TOTAL = """
Of {tries:,} tries: processes that died {died}, that hung {hung}; memory {most:.0f} MiB at most ({idle:.0f} idle, bound
{bound:.0f}); the honest sender {good:,} of {sent:,}, its slowest answer {slowest:.1f} s; {acknowledged:,} instances
acknowledged, {lost} of them lost; {refused:,} refused, {kept} of them kept. Broken rules: {broken}.

Sentinels: {studies} studies by {doors}, {reports} reports; looked for in {lines:,} log lines, {pages} pages, metrics
among them, {traces} traces, the local audit, file names and what {verbs} verbs print; found: **{found}** ({spool:,} in
the spool, where they belong)."""


def page(attacked: Mapping[str, Any], planted: Mapping[str, Any]) -> str:
    """The page, from both files' objects."""
    daemon, memory, kept, good = (attacked[name] for name in ("daemon", "memory", "instances", "good_sender"))
    told = {key: attacked[key] for key in ("machine", "cores", "date", "python", "pynetdicom", "seed", "tries")}
    told |= {key: planted[key] for key in ("studies", "reports", "pages", "traces")}
    total = TOTAL.format(
        **told, died=daemon["processes_died"], hung=daemon["processes_hung"], most=memory["highest_mib"],
        idle=memory["idle_mib"], bound=memory["bound_mib"], good=good["acknowledged"], sent=good["sent"],
        slowest=good["slowest_s"], acknowledged=kept["acknowledged"], lost=kept["acknowledged_lost"],
        refused=kept["refused"], kept=kept["refused_but_kept"], broken=len(attacked["broken"]),
        doors=", ".join(planted["doors"]), lines=planted["log_lines"], verbs=len(planted["verbs"]),
        found=len(planted["found"]), spool=planted["in_spool"],
    )  # fmt: skip
    rows = [
        f"| {name} | {found['tries']:,} | {', '.join(f'{count:,} {end}' for end, count in found['endings'].items())} | "
        f"{found['wrong']} |"
        for name, found in attacked["attacks"].items()
    ]
    head = HEAD.format(own_seed=planted["seed"], **told)
    return "\n".join([head, "| attack | tries | endings | wrong |", "|---|---|---|---|", *rows, total, ""])


def main() -> None:
    """Print the page."""
    root = Path(sys.argv[1])
    sys.stdout.write(page(*(json.loads((root / f"{name}.json").read_text()) for name in ("hostile", "sentinels"))))


if __name__ == "__main__":
    main()

"""What `hscc-edge cohort check` shows a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hscc_edge.cli.output import Output

if TYPE_CHECKING:
    from hscc_edge.data.leakage import Findings


def show_findings(output: Output, findings: Findings) -> None:
    """Print tables and sentences of a check; nothing if JSON was asked for."""
    classes = list(next(iter(findings.balance.values())))
    rows = [(split, *counts.values()) for split, counts in findings.balance.items()]
    output.table("images by split and class", ("split", *classes), rows)
    found = findings.to_json()
    output.say(
        f"unreadable {len(findings.unreadable)}, altered {len(findings.altered)}, missing {len(findings.missing)}"
    )
    for name, counts in (*found["duplicates"].items(), ("neighbouring", found["neighbouring"])):
        _show_groups(output, name, counts)
    output.say(f"patients in two splits: {findings.shared_patients}")
    _show_shortcuts(output, findings)
    for fault in (*findings.unreadable[:20], *findings.altered[:20], *findings.missing):
        output.say(f"  {fault}")
    for sentence in findings.warnings:
        output.say(f"warning: {sentence}", style="red")
    for sentence in findings.skipped:
        output.say(f"not done: {sentence}")


def _show_groups(output: Output, name: str, counts: dict[str, Any]) -> None:
    what = "pictures alike as neighbouring slices" if name == "neighbouring" else f"{name} duplicates"
    output.say(f"{what}: {counts['groups']} groups, {counts['across_splits']} of them across splits")


def _show_shortcuts(output: Output, findings: Findings) -> None:
    rows = [
        (item.family, item.verdict, "-", "-", "-", "-")
        if item.auc is None
        else (
            item.family,
            item.verdict,
            f"{item.balanced_accuracy:.3f} ({item.interval[0]:.3f} to {item.interval[1]:.3f})",
            f"{item.chance:.3f}",
            f"{item.p_value:.4f}",
            ", ".join(f"{label} {area:.2f}" for label, area in item.auc.items()),
        )
        for item in findings.shortcuts
    ]
    if rows:
        columns = (
            "what the label is told from",
            "verdict",
            "balanced accuracy",
            "chance",
            "p",
            "AUC, one against rest",
        )
        output.table("shortcuts", columns, rows)

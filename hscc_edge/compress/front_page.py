"""A front as one page that needs no network and no script."""

from __future__ import annotations

from hscc_edge.compress import front_plots
from hscc_edge.compress.front import Front
from hscc_edge.data import page
from hscc_edge.errors import extra

with extra("workstation"):
    from markupsafe import Markup

TARGETS = {"kl": "KL", "latency": "latency"}


def render(front: Front) -> str:
    """HTML with inline style and SVG; nothing is loaded from elsewhere."""
    done = [entry for entry in front.entries if entry.outcome is not None]
    return page.render(
        "hscc_edge.compress",
        "front.html.j2",
        {"times": times, "small": small, "points": points, "word": word},
        front=front,
        done=done,
        best=sorted((entry for entry in done if entry.pareto), key=lambda entry: dict(entry.outcome or {})["kl"]),
        refused=[entry for entry in front.entries if entry.refused],
        names=list(dict.fromkeys(name for entry in front.entries for name in entry.params)),
        plots={
            "flops": Markup(front_plots.scatter(front, "flops", "times fewer FLOPs than the original (log scale)")),
            "latency": Markup(front_plots.scatter(front, "latency", "times faster than the original (log scale)")),
        },
        bars=[
            (
                TARGETS[name],
                Markup(front_plots.bars(shares, f"share of the variance of log {TARGETS[name]} within a budget, %")),
            )
            for name, shares in front.importances.items()
        ],
    )


def times(share: float | None) -> str:
    """A share of the dense network's cost as a ratio, or a dash."""
    return "-" if share is None else f"{1 / share:.2f}x"


def small(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def points(value: float | None) -> str:
    """Points with sign, or a dash."""
    return "-" if value is None else f"{value:+.2f}"


def word(value: object) -> str:
    """A hyper-parameter's value."""
    return small(value) if isinstance(value, float) else str(value).replace(",", ", ")

"""Pages that need no network and no script: one style, templates beside their module, plots as inline SVG."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from hscc_edge.errors import extra

with extra("workstation"):
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1c2733"
# Okabe and Ito's colours, which colour-blind readers can tell apart; a mark for each besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
STYLE: Any = {
    "svg.hashsalt": "hscc_edge", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "text.color": INK,
}  # fmt: skip


def render(package: str, template: str, filters: Mapping[str, Callable[[Any], object]], **values: object) -> str:
    """HTML from `package`/templates/`template`, which may include page.css."""
    environment = _environment(package)
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)


@cache
def _environment(package: str) -> Environment:
    """One a package, so that each template is compiled once."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("hscc_edge.data")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def svg(figure: Figure, description: str) -> str:
    """A figure as inline SVG that a screen reader announces by its description; the same bytes for the same figure.

    Ids are of this figure alone, as long as no other figure of the page has its description.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = _own_ids(text[text.index("<svg") :], hashlib.sha256(description.encode()).hexdigest()[:6])
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def _own_ids(text: str, name: str) -> str:
    """Ids that something refers to get a prefix, the others go."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="i{name}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda m: f"{m[1]}i{name}-{m[2]}", text)

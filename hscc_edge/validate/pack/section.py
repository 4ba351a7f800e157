"""One recorded result as a part of the page: tables of what it says, and its figures with the data behind them."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import hscc_edge
from hscc_edge.errors import extra
from hscc_edge.validate.pack.recording import KINDS, Recording
from hscc_edge.validate.pack.typed import typed

with extra("workstation"):
    from markupsafe import Markup

SVG = re.compile(r'<svg role="img" aria-label="([^"]*)".*?</svg>', re.DOTALL)
NOT_PLOTTED = ("cases", "schema", "kind")
LONG = 40
DEPTH = 2


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text; the first column heads its row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot, what it shows in words, what drew it, and the part of the record that it was drawn from."""

    name: str
    title: str
    svg: str
    script: str
    script_sha256: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A recorded result on the page: `body` is HTML where its own report made it, else `tables` say what it says."""

    kind: str
    title: str
    record: str
    sha256: str
    remark: str
    body: Markup
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    verdict: str = ""


def section(item: Recording) -> Section:
    """The part of the page for a recorded result.

    Raises:
        InputError: if the record is not what this version writes.
    """
    verdict, body, tables, figures = DRAW.get(item.kind, _facts)(item)
    title = KINDS[item.kind].title
    return Section(item.kind, title, item.name, item.sha256, item.remark, body, tables, figures, verdict)


Drawn = tuple[str, Markup, tuple[Table, ...], tuple[Figure, ...]]


def _validation(item: Recording) -> Drawn:
    """The report that `validate` makes, of its JSON: the same code, nothing run again."""
    from hscc_edge.validate import claim, report
    from hscc_edge.validate.evidence import Evidence

    evidence = typed(Evidence, item.content)
    page = report.render(evidence)
    body = page[page.index("<main>") + len("<main>") : page.index("</main>")]
    body = body.partition("</h1>")[2]
    for level in (3, 2):
        body = body.replace(f"<h{level}>", f"<h{level + 1}>").replace(f"</h{level}>", f"</h{level + 1}>")
    figures = tuple(_figures(body, item, report))
    return claim.claim(evidence), Markup(_own_ids(body)), (), figures


def _robustness(item: Recording) -> Drawn:
    from hscc_edge.validate import robustness_plot

    drawn = _own_ids(robustness_plot.draw(item.content))
    _, _, tables, _ = _facts(item)
    return "", Markup(drawn), tables, tuple(_figures(drawn, item, robustness_plot))


def _facts(item: Recording) -> Drawn:
    content = item.content if isinstance(item.content, dict) else {"lines": item.content}
    return "", Markup(""), tuple(tables_of(content, KINDS[item.kind].title)), ()


DRAW: dict[str, Callable[[Recording], Drawn]] = {"validation": _validation, "robustness": _robustness}


def tables_of(content: Mapping[str, Any], caption: str, depth: int = 0) -> Iterator[Table]:
    """What a JSON object says, as tables: its plain values in one, each list of objects in one, the rest below.

    Long lists are counted, not shown: they stand in the record.
    """
    plain = [(words(key), _in_place(key, value, depth)) for key, value in content.items()]
    if shown := [row for row in plain if row[1]]:
        yield Table(caption, ("what", "value"), tuple(shown))
    for key, value in content.items():
        name = f"{caption}: {words(key)}" if depth else f"{caption}, {words(key)}"
        if _is_rows(value) and key not in NOT_PLOTTED:
            yield table_of(name, value)
        elif isinstance(value, dict) and not _is_plain(value) and depth < DEPTH:
            yield from tables_of(value, name, depth + 1)


def _in_place(key: str, value: Any, depth: int) -> str:
    """A plain value as text, "" for what gets a table of its own, else that it stands in the record."""
    if key in ("schema", "kind"):
        return ""
    if _is_plain(value):
        return text_of(value)
    own = _is_rows(value) and key not in NOT_PLOTTED
    return "" if own or (isinstance(value, dict) and depth < DEPTH) else f"{len(value)} values, in the record"


def words(name: object) -> str:
    """A key as words."""
    return str(name).replace("_", " ")


def text_of(value: Any) -> str:
    """A plain value as text; a number with four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "; ".join(f"{words(key)}: {text_of(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        long = len(value) > LONG
        return f"{len(value)} values, in the record" if long else ", ".join(map(text_of, value)) or "none"
    return str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= 4 and all(not isinstance(item, (dict, list)) for item in value.values())
    if isinstance(value, list):
        return all(not isinstance(item, (dict, list)) for item in value)
    return True


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def table_of(caption: str, items: Sequence[Mapping[str, Any]]) -> Table:
    """A row an object, a column a key that is plain somewhere."""
    columns = list(dict.fromkeys(key for item in items for key, value in item.items() if _is_plain(value)))
    shown = items[:LONG]
    more = f" (the first {LONG} of {len(items)}; all stand in the record)" if len(items) > LONG else ""
    rows = tuple(tuple(text_of(item.get(column)) for column in columns) for item in shown)
    return Table(caption + more, tuple(words(column) for column in columns), rows)


def _figures(body: str, item: Recording, module: ModuleType) -> Iterator[Figure]:
    source = inspect.getsource(module)
    data = {key: value for key, value in item.content.items() if key not in NOT_PLOTTED}
    for index, found in enumerate(SVG.finditer(body), 1):
        title = str(Markup(found.group(1)).unescape())
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:48].strip("-")
        yield Figure(
            name=f"{item.kind}-{index:02d}-{slug}",
            title=title,
            svg=found.group(0),
            script=f"{module.__name__}, hscc-edge {hscc_edge.__version__}",
            script_sha256=hashlib.sha256(source.encode()).hexdigest(),
            data=data,
        )


def _own_ids(body: str) -> str:
    """Ids of one figure must not be those of another on the page: those that are used get a prefix, the others go."""
    count = 0

    def renamed(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        text, prefix = found.group(0), f"f{count}-"
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
        return re.sub(r'(href="#|url\(#)([^")]+)', lambda m: f"{m[1]}{prefix}{m[2]}", text)

    return SVG.sub(renamed, body)

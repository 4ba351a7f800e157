"""How many rows are in which state: kept by the journal's own triggers, so that asking costs the same after ten years.

The triggers run in the transactions of what they count, so that tallies and tables never disagree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hscc_edge.serve.journal import Journal

TABLE = (
    "CREATE TABLE IF NOT EXISTS tallies (what TEXT, state TEXT, label TEXT, number INTEGER NOT NULL, "
    "PRIMARY KEY (what, state, label)) WITHOUT ROWID"
)
# what is counted: its table, by which state and label, what one row adds, and which columns' change moves it
COUNTED = {
    "instances": ("instances", "{row}.state", "{row}.door", "1", "state, door"),
    "spool_bytes": (
        "instances", "CASE WHEN {row}.removed IS NULL THEN 'kept' ELSE 'removed' END", "''", "{row}.bytes",
        "removed, bytes",
    ),
    "deliveries": ("deliveries", "{row}.state", "{row}.destination", "1", "state, destination"),
    "reports": (
        "reports", "CASE {row}.current WHEN 1 THEN 'current' ELSE 'superseded' END", "{row}.model", "1",
        "current, model",
    ),
    "studies": ("studies", "'known'", "''", "1", "uid"),
}  # fmt: skip


def statements() -> list[str]:
    """What makes the table and its triggers, one statement each."""
    return [TABLE, *(text for what in COUNTED for text in _triggers(what))]


def tally(journal: Journal, what: str) -> dict[tuple[str, str], int]:
    """(state, label) -> number, of one key of `COUNTED`."""
    rows = journal.read("SELECT state, label, number FROM tallies WHERE what = ? AND number != 0", (what,))
    return {(state, label): number for state, label, number in rows}


def by_state(journal: Journal, what: str) -> dict[str, int]:
    """State -> number."""
    found: dict[str, int] = {}
    for (state, _), number in tally(journal, what).items():
        found[state] = found.get(state, 0) + number
    return found


def recount(journal: Journal) -> dict[str, dict[tuple[str, str], int]]:
    """What the tables themselves say, row by row: for `state check`; time grows with the journal."""
    found: dict[str, dict[tuple[str, str], int]] = {}
    for what, (table, *values, _) in COUNTED.items():
        state, label, amount = (text.format(row=table) for text in values)
        rows = journal.read(f"SELECT {state}, {label}, SUM({amount}) FROM {table} GROUP BY 1, 2")
        found[what] = {(state, label): number for state, label, number in rows if number}
    return found


def _triggers(what: str) -> list[str]:
    table, *_, moving = COUNTED[what]
    add, take = _change(what, "NEW", "+"), _change(what, "OLD", "-")
    bodies = {"INSERT": add, "DELETE": take, f"UPDATE OF {moving}": f"{take} {add}"}
    return [
        f"CREATE TRIGGER IF NOT EXISTS tally_{what}_{number} AFTER {event} ON {table} BEGIN {body} END"
        for number, (event, body) in enumerate(bodies.items())
    ]


def _change(what: str, row: str, sign: str) -> str:
    _, *values, _ = COUNTED[what]
    state, label, amount = (text.format(row=row) for text in values)
    return (
        f"INSERT INTO tallies VALUES ('{what}', {state}, {label}, {sign}{amount}) "
        "ON CONFLICT DO UPDATE SET number = number + excluded.number;"
    )

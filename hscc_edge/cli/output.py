"""What a verb shows: rich text for a person, or one JSON object on stdout and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


class Advance(Protocol):
    """Report that work went on: `advance(steps, note)`."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else 140)


@dataclass(frozen=True, slots=True)
class Output:
    """Where a verb writes; with `as_json`, text is dropped and progress goes to stderr."""

    as_json: bool = False

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line of plain text for a person, in a style such as "red" where the terminal has colours."""
        if not self.as_json:
            _console(stderr=False).print(text, markup=False, style=style)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, text: int = 1) -> None:
        """Print a table for a person; columns after the first `text` are figures, right-aligned."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < text else "right")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        _console(stderr=False).print(table)

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar with the time left on stderr, if that is a terminal; yields the function that advances it."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        console = _console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(description, total=total, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                bar.update(task, advance=steps, note=note)

            yield advance

    def result(self, content: object) -> None:
        """Print the verb's one JSON object, if JSON was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")

"""
All that the command line prints: data on stdout, everything else on stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.table import Table

ERR = Console(stderr=True, highlight=False, soft_wrap=True)
OUT = Console(highlight=False, soft_wrap=True)
LINE_EVERY = 10.0  # seconds between progress lines where stderr is a file


def note(text: str) -> None:
    """
    Tell the person something; scripts that read stdout never see it.
    """
    ERR.print(text, markup=False)


def data(text: str) -> None:
    """
    Print what was asked for, at once: whoever pipes a log that is followed wants its lines as they come.
    """
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def as_json(value: Any) -> None:
    """
    Print *value* for a script.
    """
    data(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, to: Console = OUT) -> None:
    """
    Print a table; the first column is text, the others are figures.
    """
    sheet = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        sheet.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        sheet.add_row(*row)
    to.print(sheet)


def done(what: str, path: object, next_command: str | None = None) -> None:
    """
    End a command: what it wrote, and what to type next.
    """
    note(f"{what}: {path}")
    if next_command:
        note(f"next: {next_command}")


@contextmanager
def progress() -> Iterator[Lines | Live]:
    """
    Show long work: bars with an ETA on a terminal, a line now and then elsewhere.
    """
    if not ERR.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"))
    with Bars(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=ERR) as bars:
        yield Live(bars)


class Live:
    """
    A kidspeech.progress.Progress that draws bars.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total or None, note=note)


class Lines:
    """
    A kidspeech.progress.Progress for logs: a line at each stage's start and end, and every LINE_EVERY seconds.
    """

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, float]] = {}  # when, and with how much done: a resumed run starts in the middle
        self._last = 0.0

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        started, first = self._started.setdefault(stage, (now, done))
        if now - self._last < LINE_EVERY and done < total and started != now:
            return
        self._last = now
        left = f", ETA {_clock((now - started) * (total - done) / (done - first))}" if first < done < total else ""
        share = f"{done:g}/{total:g}" if total else f"{done:g}"
        ERR.print(f"{stage}: {share}{left}{', ' + note if note else ''}", markup=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

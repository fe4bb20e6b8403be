"""What a person sees while a grid runs: a live line a running cell on a terminal, plain lines in a log."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from genrec_bench.benchmark.suite import Cell

PLAIN_EVERY_S = 20.0  # between two lines about the same cell in a log


class Progress:
    """Reports to ``stderr``, so that tables on ``stdout`` can be piped."""

    def __init__(self, quiet: bool = False):
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._bar: Bar | None = None
        self._tasks: dict[Cell, TaskID] = {}
        self._last_line: dict[Cell, float] = {}
        self._number = self._total = 0

    def say(self, text: str) -> None:
        """One line of news."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True) if not self._live else self._console.print(escape(text))

    def start(self, total: int) -> None:
        """The number of cells ahead."""
        self._total = total

    def __enter__(self) -> "Progress":
        if self._live:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, cell: Cell) -> None:
        """A cell starts."""
        self._last_line[cell] = time.monotonic()
        if self._bar is not None:
            self._tasks[cell] = self._bar.add_task(escape(str(cell)), total=None)

    def event(self, cell: Cell, values: dict[str, Any]) -> None:
        """Something happened inside a running cell."""
        text = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
            if key != "leads"  # for searches alone
        )
        if self._bar is not None:
            self._bar.update(self._tasks[cell], description=escape(f"{cell}: {text}"))
        elif time.monotonic() - self._last_line[cell] >= PLAIN_EVERY_S:
            self._last_line[cell] = time.monotonic()
            self.say(f"  {cell}: {text}")

    def finished(self, cell: Cell, note: str) -> None:
        """A cell has its record."""
        self._close(cell, f"{cell}: {note}")

    def failed(self, cell: Cell, reason: str, instead: str | None = None) -> None:
        """A cell stays empty; ``instead`` is the id of the run that took its place, where one did."""
        self._close(cell, f"{cell}: FAILED: {reason}")

    def _close(self, cell: Cell, text: str) -> None:
        self._number += 1
        self.say(f"[{self._number}/{self._total}] {text}")
        if self._bar is not None and cell in self._tasks:
            self._bar.remove_task(self._tasks.pop(cell))

"""How far a long measurement of tokens is: the rate and what remains, for people and for logs."""

from __future__ import annotations

import logging
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_LOG = logging.getLogger(__name__)


class _Rate(ProgressColumn):
    """Tokens per second of late."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn.render`."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


class TokenProgress:
    """A bar on a terminal; elsewhere a line each time: how many tokens, how many a second, and what remains.

    Attributes:
        total: How many tokens there are.
        done: How many are done.
    """

    def __init__(self, name: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        """Prepares the display of something called `name`; nothing is written unless it is `shown`."""
        self.total, self.done = total, done
        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self._lines = shown and not sys.stderr.isatty()
        disabled = not shown or self._lines
        self._bar = Progress(*columns, console=Console(stderr=True), disable=disabled, transient=True)
        self._task = self._bar.add_task(name, total=total, completed=done)
        self._first, self._began = done, time.monotonic()

    def __enter__(self) -> Self:
        """Starts the clock."""
        self._began = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def advance(self, tokens: int) -> None:
        """Says that so many more tokens are done."""
        self.done += tokens
        self._bar.advance(self._task, tokens)
        if self._lines:
            rate = (self.done - self._first) / max(time.monotonic() - self._began, 1e-9)
            minutes = (self.total - self.done) / rate / 60
            _LOG.info("%d of %d tokens, %.0f a second, %.1f min left", self.done, self.total, rate, minutes)

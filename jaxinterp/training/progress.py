"""What a run says while it goes on: a bar on a terminal, lines in a log file, and rows that outlive the process."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)
_SILENCE = 30.0


def shown(first: int, steps: int, per_step: float = 1.0, unit: str = "steps") -> Iterator[int]:
    """Counts steps, and says the rate and the time that remains.

    Args:
        first: The first step.
        steps: Where it ends.
        per_step: What one step does, in `unit`.
        unit: What the rate is told in.

    Yields:
        Each step.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started = said = time.monotonic()
    with Progress(
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("training", total=steps, completed=first, rate="")
        for step in range(first, steps):
            yield step
            now = time.monotonic()
            rate = (step + 1 - first) / (now - started)
            bar.update(task, advance=1, rate=f"{rate * per_step:,.0f} {unit}/s")
            if not console.is_terminal and now - said > _SILENCE:
                said = now
                left = (steps - step - 1) / rate
                _LOG.info("step %d of %d, %.0f %s/s, %.0f s left", step + 1, steps, rate * per_step, unit, left)


class Journal:
    """Rows of a log, each with its `step`, in a file that is written while the run goes on.

    Attributes:
        rows: The rows so far.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     journal = Journal(Path(place) / "log.jsonl")
        ...     for step in (1, 2, 3):
        ...         journal.append({"step": step, "loss": 1 / step})
        ...     Journal(Path(place) / "log.jsonl", until=2).rows
        [{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 0.5}]
    """

    def __init__(self, file: Path | None = None, until: int = 0) -> None:
        """Opens a log.

        Args:
            file: Where it is; `None` keeps it in memory alone.
            until: The step at which the run goes on; rows of later steps are forgotten, since they come again.
        """
        self._file = file
        self.rows: list[dict[str, Any]] = []
        if file is None:
            return
        if file.exists():
            self.rows = [
                row for row in map(_row, file.read_text(encoding="utf-8").splitlines()) if row["step"] <= until
            ]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(map(_line, self.rows)), encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        self.rows.append({**row})
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _row(line: str) -> dict[str, Any]:
    """A row; one that was cut off when the process ended counts as later than any."""
    try:
        return json.loads(line)
    except ValueError:
        return {"step": float("inf")}

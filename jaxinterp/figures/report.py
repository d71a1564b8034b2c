"""The report: everything that a run of the workflow made, as one page that needs no other file and no network."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import docutils.core
import jinja2
import polars as pl
from markupsafe import Markup

from jaxinterp import artefacts

_ROWS_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one experiment left behind.

    Attributes:
        name: The experiment.
        caption: Its caption, as HTML.
        claims: The list of `check.json`.
        figure: Its figure, as a data URI.
        table: Rows shown, as text.
        columns: Column names, each with whether it holds numbers.
        rows: How many rows the table has.
        samples: Rows of the table that hold a text, each with its non-empty cells by column.
        csv: The whole table, as a data URI.
        provenance: Where the table came from.
    """

    name: str
    caption: Markup
    claims: list[dict[str, Any]]
    figure: str
    table: list[list[str]]
    columns: list[tuple[str, bool]]
    rows: int
    samples: list[dict[str, str]]
    csv: str
    provenance: dict[str, Any]

    @property
    def met(self) -> int:
        """How many claims are met."""
        return sum(claim["met"] for claim in self.claims)


def render(
    results: str | Path, models: Sequence[str | Path], experiments: Sequence[str], introduction: str | Path
) -> str:
    """Gathers figures, claims, tables, captions, model pages and provenance into one HTML document.

    Args:
        results: The folder with one folder per experiment, and the pages of each model under `models/`.
        models: The folder of each model that is shown, with its `source.json`; named as the model is.
        experiments: Experiments in the order in which they are shown.
        introduction: The caption above them all; a `.rst` per experiment stands in the same folder.

    Returns:
        The document.

    Raises:
        ValueError: If an artefact is missing or damaged.
    """
    results, introduction = Path(results), Path(introduction)
    stages = [_stage(results / name, introduction.parent / f"{name}.rst") for name in experiments]
    records = [_model(Path(path), results / "models") for path in models]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    template = resources.files("jaxinterp.figures") / "report.html.jinja"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        introduction=_html(introduction), stages=stages, models=records
    )


def _stage(folder: Path, caption: Path) -> Stage:
    table, provenance = artefacts.read_table(folder / "table.parquet")
    return Stage(
        name=folder.name,
        caption=_html(caption),
        claims=artefacts.read_json(folder / "check.json"),
        figure=_data_uri(folder / "figure.svg", "image/svg+xml"),
        table=[[_cell(value) for value in row] for row in table.head(_ROWS_SHOWN).iter_rows()],
        columns=[(name, kind.is_numeric()) for name, kind in table.schema.items()],
        rows=table.height,
        samples=_samples(table),
        csv=_data_uri(folder / "table.csv", "text/csv"),
        provenance=provenance,
    )


def _samples(table: pl.DataFrame) -> list[dict[str, str]]:
    """Rows with something in the column `text`; columns that are the same in all of them are left out."""
    if "text" not in table.columns:
        return []
    rows = table.filter(pl.col("text").is_not_null())
    telling = [name for name in table.columns if name == "text" or rows[name].n_unique() > 1]
    return [{name: _cell(row[name]) for name in telling} for row in rows.iter_rows(named=True)]


def _model(path: Path, pages: Path) -> dict[str, Any]:
    """A model's record, and its pages as text that can stand inside a script element."""
    found = sorted((pages / path.name).glob("*.html"), reverse=True)
    texts = {page.stem: page.read_text(encoding="utf-8") for page in found}
    escaped = {name: Markup(json.dumps(text).replace("<", "\\u003c")) for name, text in texts.items()}  # noqa: S704
    return {"name": path.name, "pages": escaped, **artefacts.read_json(path / "source.json")}


def _html(caption: Path) -> Markup:
    if not caption.is_file():
        raise ValueError(f"{caption}: there is no such caption; write what the figure shows and what the paper found.")
    settings = {"initial_header_level": 3, "halt_level": 3, "report_level": 3, "file_insertion_enabled": False}
    parts = docutils.core.publish_parts(
        caption.read_text(encoding="utf-8"), writer="html5", settings_overrides={**settings, "raw_enabled": False}
    )
    return Markup(parts.get("body", ""))  # noqa: S704


def _data_uri(path: Path, kind: str) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; run the workflow to its end first.")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, float) else "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

"""The folder that a trained model leaves, and what its checkpoints follow while it is trained."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxinterp import artefacts
from jaxinterp.models.language_model import LanguageModel, save
from jaxinterp.parallel.placement import first_process
from jaxinterp.training.checkpoints import Checkpoints

History = list[tuple[int, dict[str, Any]]]


def refuse_other_content(folder: Path) -> None:
    """Raises a `ValueError` if a folder holds something else than a model."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise ValueError(f"{folder} is not empty and holds no model; choose another folder")


def checkpoints_beside(folder: Path, given: str | Path | None = None) -> Path:
    """Where the checkpoints of a model are: where it is said, or beside its folder."""
    return Path(given) if given else folder.with_name(f"{folder.name}-checkpoints")


def write(
    folder: Path,
    model: LanguageModel,
    settings: Mapping[str, Any],
    tables: Mapping[str, pl.DataFrame],
    card: str,
    models: Sequence[str] = (),
) -> None:
    """Writes a Hugging Face folder with `recipe.json`, tables and a model card; it appears whole or not at all.

    Args:
        folder: Where to; a model that is there is replaced.
        model: The model.
        settings: All that decided it.
        tables: What is known of its training, by the name of the Parquet file.
        card: Markdown.
        models: Sources of the models that it was made of.
    """
    origin = artefacts.provenance(dict(settings), list(models))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
        whole = Path(partial) / folder.name
        save(model, whole)
        artefacts.write_json(settings, whole / "recipe.json")
        for name, table in tables.items():
            artefacts.write_table(table, whole / f"{name}.parquet", origin, csv=False)
        artefacts.write_text(card, whole / "README.md")
        if folder.exists():
            shutil.rmtree(folder)
        whole.replace(folder)


def follow(kept: Checkpoints, settings: Mapping[str, Any], free: Sequence[str], fixed: Sequence[str]) -> History:
    """Writes beside checkpoints which settings they follow.

    Args:
        kept: The checkpoints.
        settings: Those of the run that is about to begin or to go on.
        free: Settings that may change when a run goes on.
        fixed: Settings within these, such as `"course.seed"`, that may not.

    Returns:
        All settings so far, each with the step from which on they are followed, these being the last.

    Raises:
        ValueError: The checkpoints are of a run with other settings; the sentence names them.
    """
    file, now = kept.folder / "recipes.json", dict(settings)
    history = [(step, other) for step, other in artefacts.read_json(file)] if kept.steps and file.exists() else []
    if not history:
        history = [(0, now)]
    elif (before := history[-1][1]) != now:
        changed = [name for name in now if name not in free and before.get(name) != now[name]]
        changed += [name for name in fixed if _within(before, name) != _within(now, name)]
        if changed:
            raise ValueError(
                f"{kept.folder} holds checkpoints of another recipe, with other {', '.join(changed)}; remove that "
                "folder, or choose another output"
            )
        history = [entry for entry in history if entry[0] < kept.steps[-1]] + [(kept.steps[-1], now)]
    if first_process():
        artefacts.write_json(history, file)
    return history


def _within(settings: Mapping[str, Any], name: str) -> Any:
    part, _, key = name.partition(".")
    return settings[part][key]

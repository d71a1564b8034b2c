"""What the verbs have in common: how their arguments are read, and what they say."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from jaxinterp.models.language_model import LanguageModel


Many = tyro.conf.UseAppendAction[tuple[str, ...]]
Pairs = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")]
Model = Annotated[Positional[str], arg(metavar="MODEL")]
Experiment = Annotated[Positional[str], arg(metavar="EXPERIMENT")]


def join_processes(mesh: str | None, distributed: bool) -> str | None:
    """Joins the other processes of a job, if there are any, before anything else of JAX.

    Returns:
        The mesh as a line; that of a job that names none is a whole model on every device.
    """
    if not distributed:
        return mesh
    from jaxinterp.parallel import processes

    processes.join()
    return mesh or str(processes.default_mesh())


def load_model(source: str, dtype: str = "float32", mesh: str | None = None) -> LanguageModel:
    """Loads a model, onto a mesh if one is named.

    One that `fetch` brought, by its folder or the `source.json` in it, keeps its original name.
    """
    from jaxinterp import artefacts
    from jaxinterp.activations.compilation import keep_compiled_programs
    from jaxinterp.cli.backends import warn_of_fallback
    from jaxinterp.models.language_model import load
    from jaxinterp.parallel.loading import load_sharded

    def read(place: str | Path) -> LanguageModel:
        return load(place, dtype) if mesh is None else load_sharded(place, mesh, dtype)

    keep_compiled_programs()
    warn_of_fallback()
    say(f"loading {source}")
    place = Path(source).parent if source.endswith("source.json") else Path(source)
    if not (place / "source.json").is_file():
        return read(source)
    record = artefacts.read_json(place / "source.json")
    return dataclasses.replace(read(place / record["path"]), source=record["source"])


def edited(model: LanguageModel, edits: tuple[str, ...]) -> LanguageModel:
    """Applies edits that are written as in Python, such as "ablate(head(4, 5))"."""
    from jaxinterp.interventions.expression import apply_edit

    for text in edits:
        model = apply_edit(model, text)
    return model


def split_pairs(flag: str, entries: tuple[str, ...]) -> dict[str, str]:
    """Reads NAME=VALUE entries; each name may be given once."""
    pairs = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{flag} {entry}: write NAME=VALUE.")
        if name in pairs:
            raise ValueError(f"{flag} {entry}: '{name}' is given twice; give it once.")
        pairs[name] = value
    return pairs


def say(text: str) -> None:
    """Tells the user what is done, on stderr."""
    logging.getLogger(__name__).info(text)

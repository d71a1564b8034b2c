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


def load_model(source: str, dtype: str = "float32") -> LanguageModel:
    """Loads a model; one that `fetch` brought, by its folder or the `source.json` in it, under its original name."""
    from jaxinterp import artefacts
    from jaxinterp.activations.compilation import keep_compiled_programs
    from jaxinterp.models.language_model import load

    keep_compiled_programs()
    say(f"loading {source}")
    place = Path(source).parent if source.endswith("source.json") else Path(source)
    if not (place / "source.json").is_file():
        return load(source, dtype)
    record = artefacts.read_json(place / "source.json")
    return dataclasses.replace(load(place / record["path"], dtype), source=record["source"])


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

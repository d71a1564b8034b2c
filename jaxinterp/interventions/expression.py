"""Edits written as text, in the words of Python, so that a command line or a config can name one."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from jaxinterp import artefacts, axes
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.lora_files import load_lora
from jaxinterp.interventions.project import project
from jaxinterp.interventions.steer import steer
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites import positions, selectors

_EDITS: dict[str, Callable[..., LanguageModel]] = {
    "ablate": ablate,
    "steer": steer,
    "project": project,
    "load_lora": load_lora,
}


def _array(path: str, name: str) -> Any:
    arrays, _ = artefacts.read_arrays(path)
    if name not in arrays:
        raise ValueError(f"{path}: there is no array '{name}'; there are {', '.join(arrays)}.")
    return arrays[name]


_WORDS: dict[str, Callable[..., Any]] = {
    "array": _array,
    "head": selectors.head,
    "unit": selectors.unit,
    **{name: getattr(selectors, name) for name in axes.SITES if hasattr(selectors, name)},
    **{name: getattr(positions, name) for name in ("everywhere", "last", "prompt", "generated", "at", "steps")},
}


def apply_edit(model: LanguageModel, text: str) -> LanguageModel:
    """Applies an edit written as a call without the model, such as `ablate(head(4, 5), method="zero")`.

    Only the edits `ablate`, `steer`, `project` and `load_lora`, selectors, positions, literals and `array(path, name)`,
    an array of a safetensors file, can stand in it; nothing else is evaluated.

    Args:
        model: The model; it stays as it is.
        text: The call.

    Returns:
        The edited model.

    Raises:
        ValueError: If the text is no such call, or the model has no such place.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f'edit "{text}": not a Python expression; write one such as ablate(head(4, 5)).') from error
    if not isinstance(call, ast.Call) or _word(call.func) not in _EDITS:
        raise ValueError(f'edit "{text}": write one call of {", ".join(_EDITS)}, such as ablate(head(4, 5)).')
    arguments, options = _arguments(call, text)
    try:
        return _EDITS[_word(call.func)](model, *arguments, **options)
    except TypeError as error:
        raise ValueError(f'edit "{text}": {error}.') from error


def _arguments(call: ast.Call, text: str) -> tuple[list[Any], dict[str, Any]]:
    if any(isinstance(node, ast.Starred) for node in call.args) or any(node.arg is None for node in call.keywords):
        raise ValueError(f'edit "{text}": * and ** cannot stand in it; list the arguments.')
    options = {str(node.arg): _value(node.value, text) for node in call.keywords}
    return [_value(node, text) for node in call.args], options


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        word = _word(node.func)
        if word not in _WORDS:
            raise ValueError(f'edit "{text}": unknown word "{ast.unparse(node.func)}"; known are {", ".join(_WORDS)}.')
        arguments, options = _arguments(node, text)
        try:
            return _WORDS[word](*arguments, **options)
        except TypeError as error:
            raise ValueError(f'edit "{text}": {error}.') from error
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f'edit "{text}": "{ast.unparse(node)}" is neither a literal nor a known call.') from error


def _word(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""

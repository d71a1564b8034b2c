"""Settings: a frozen dataclass is the schema, the check, the YAML section and the help text at once."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import pydantic
import yaml

Settings = TypeVar("Settings")


def load_config(cls: type[Settings], mapping: Mapping[str, Any] | None, where: str = "config") -> Settings:
    """Turns plain settings into a `cls`, refusing what it does not know.

    Args:
        cls: A frozen dataclass whose fields have defaults.
        mapping: Settings as YAML or JSON holds them; missing keys take the default.
        where: What the settings belong to, for the error sentence.

    Returns:
        The settings.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type; all of them, each with its place.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Config:
    ...     layers: int = 2
    >>> load_config(Config, {"layers": 3}).layers
    3
    >>> load_config(Config, {"layer": 3}, where="probing")
    Traceback (most recent call last):
    ValueError: probing: unknown key 'layer' (did you mean 'layers'?); the keys are: layers.
    """
    mapping = {} if mapping is None else mapping
    problems = list(_unknown(mapping, schema(cls), where))
    if problems:
        raise ValueError(" ".join(problems))
    try:
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(mapping), strict=True)
    except pydantic.ValidationError as error:
        sentences = [_sentence(where, detail) for detail in error.errors(include_url=False)]
        raise ValueError(" ".join(sentences)) from error


def schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a dataclass: types, defaults, no other keys, and the docstring of each key.

    Args:
        cls: A dataclass whose attributes are documented, in its docstring or below each.

    Returns:
        A schema document that stands alone.
    """
    document = pydantic.TypeAdapter(cls).json_schema()
    summary = docstring_parser.parse_from_object(cls)
    if summary.short_description:
        document["description"] = summary.short_description
    for entry in summary.params:
        if entry.arg_name in document.get("properties", {}) and entry.description:
            document["properties"][entry.arg_name]["description"] = " ".join(entry.description.split())
    for part in (document, *document.get("$defs", {}).values()):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def refuse_unknown_keys(mapping: Mapping[str, Any], document: Mapping[str, Any], where: str) -> None:
    """Raises on every key of `mapping` that a schema does not have, at any depth.

    Args:
        mapping: Settings as YAML or JSON holds them.
        document: A schema from `schema`.
        where: What the settings belong to, for the error sentence.

    Raises:
        ValueError: Naming each unknown key, the closest known one, and the keys there are.
    """
    problems = list(_unknown(mapping, document, where))
    if problems:
        raise ValueError(" ".join(problems))


def read_settings(text: str) -> dict[str, Any]:
    """Reads settings given on a command line: JSON, or the path of a YAML or JSON file.

    Args:
        text: `{"seed": 1}` or `settings.yaml`.

    Returns:
        The settings.

    Raises:
        ValueError: If it is neither, or not a mapping.
    """
    inline = text.lstrip().startswith("{")
    if not inline and not Path(text).is_file():
        raise ValueError(f"--config {text}: neither JSON nor an existing file; give '{{\"key\": value}}' or a path.")
    try:
        value = _parsed(text if inline else Path(text).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--config {text}: cannot be read as YAML or JSON ({' '.join(str(error).split())})."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"--config {text}: holds a {type(value).__name__}; settings are a mapping of keys to values.")
    return value


def _parsed(text: str) -> Any:
    """JSON, or else YAML, to which a number such as 5e-5 is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def as_dict(config: Any) -> dict[str, Any]:
    """Every setting of a config dataclass as plain values.

    Args:
        config: An instance of an experiment's `Config`.

    Returns:
        A dictionary ready for JSON.
    """
    return json.loads(json.dumps(copy.deepcopy(dataclasses.asdict(config)), default=str))


def _unknown(mapping: Any, document: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from _walk(mapping, document, document.get("$defs", {}), where)


def _walk(value: Any, node: Mapping[str, Any], definitions: Mapping[str, Any], where: str) -> Iterator[str]:
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[-1]]
    if isinstance(value, Mapping):
        properties = node.get("properties", {})
        extra = node.get("additionalProperties", True)
        for key, entry in value.items():
            if key in properties:
                yield from _walk(entry, properties[key], definitions, f"{where}.{key}")
            elif extra is False:
                close = difflib.get_close_matches(str(key), properties, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                yield f"{where}: unknown key '{key}'{hint}; the keys are: {', '.join(properties)}."
            elif isinstance(extra, Mapping):
                yield from _walk(entry, extra, definitions, f"{where}.{key}")
    elif isinstance(value, list) and isinstance(node.get("items"), Mapping):
        for index, entry in enumerate(value):
            yield from _walk(entry, node["items"], definitions, f"{where}[{index}]")


def _sentence(where: str, detail: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in detail["loc"]) or "the whole"
    value = json.dumps(detail["input"], default=str)
    return f"{where}: key '{place}' is {value}; {detail['msg'][:1].lower()}{detail['msg'][1:]}."

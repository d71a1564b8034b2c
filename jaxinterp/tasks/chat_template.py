"""Chat templates, rendered in a sandbox as transformers renders them."""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words and changes nothing in the text."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: dt.datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """Writes a conversation as the text a model was trained on.

    Args:
        template: Jinja source.
        messages: Turns, each with `role` and `content`.
        special: Texts of special tokens by name (`bos_token`, `eos_token`, ...), which templates refer to.
        add_generation_prompt: Whether the opening of the assistant's turn is appended.

    Returns:
        The text, special tokens included.

    Raises:
        ValueError: The template does not parse, or refuses the messages.
    """
    try:
        return _compiled(template).render(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=add_generation_prompt, **special
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"The chat template refuses these messages: {error}.") from error

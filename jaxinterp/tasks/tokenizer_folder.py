"""The tokenizer files of a Hugging Face folder, read together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

TEXTLESS = "textless_tokens"
_ROLES = ("bos", "eos", "pad", "unk")
_OTHER_NAMES = ("sep_token", "cls_token", "mask_token")
_LIST_NAMES = ("additional_special_tokens", "extra_special_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """What the files say.

    Attributes:
        backend: The tokenizer, special tokens and the rule for beginnings and ends included.
        special: Ids by role: `bos`, `eos`, `pad`, `unk`.
        textless: Ids that stand for no text beyond the added tokens.
        template: Chat template, if there is one.
    """

    backend: tokenizers.Tokenizer
    special: dict[str, int]
    textless: frozenset[int]
    template: str | None


def read(folder: Path) -> Read:
    """Reads the tokenizer of a folder.

    Args:
        folder: Holds `tokenizer.json`, which alone says what is added around a text. `tokenizer_config.json`,
            `special_tokens_map.json`, `generation_config.json` and `chat_template.jinja` are read where they are.

    Returns:
        The tokenizer and the facts around it.

    Raises:
        ValueError: A file is missing or broken, or names a token that `tokenizer.json` does not have.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; save the tokenizer there in the fast format.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{file} is not a tokenizer that the tokenizers package reads: {error}.") from error
    config = _json(folder / "tokenizer_config.json")
    named = {**_json(folder / "special_tokens_map.json"), **{key: v for key, v in config.items() if v is not None}}
    _add_tokens(backend, config, folder)
    _add_special(backend, named, folder)

    special = {}
    for role in _ROLES:
        content = _content(named.get(f"{role}_token"))
        if content is not None:
            special[role] = backend.token_to_id(content)
    unknown = getattr(backend.model, "unk_token", None)
    if unknown is not None and (token_id := backend.token_to_id(unknown)) is not None:
        special.setdefault("unk", token_id)
    vocabulary = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    generation = _json(folder / "generation_config.json")
    for role in ("bos", "eos", "pad"):
        token_id = generation.get(f"{role}_token_id")
        token_id = token_id[0] if isinstance(token_id, list) and token_id else token_id
        if isinstance(token_id, int) and 0 <= token_id < vocabulary:
            special.setdefault(role, token_id)

    _keep_leading_spaces(backend)
    textless = config.get(TEXTLESS, [])
    if not (isinstance(textless, list) and all(isinstance(i, int) and 0 <= i < vocabulary for i in textless)):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {TEXTLESS} is not a list of ids below {vocabulary}.")
    return Read(backend=backend, special=special, textless=frozenset(textless), template=_template(folder, config))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a JSON object ({error}); fetch it again.") from error


def _content(entry: object) -> str | None:
    """A token as the configuration writes it: its text, or an object with its text."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Adds what `tokenizer_config.json` lists beyond `tokenizer.json`, at the ids that it states."""
    listed = config.get("added_tokens_decoder") or {}
    for key, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        content = _content(entry)
        if content is None:
            raise ValueError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder has no content for id {key}.")
        if int(key) not in backend.get_added_tokens_decoder():
            flags = {
                flag: bool(entry.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            backend.add_tokens([AddedToken(content, **flags)])
        if (token_id := backend.token_to_id(content)) != int(key):
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder puts {content!r} at {key}, "
                f"tokenizer.json at {token_id}; one of the two files is from another model."
            )


def _add_special(backend: tokenizers.Tokenizer, named: Mapping[str, Any], folder: Path) -> None:
    """Makes every named special token one that is matched whole and can be skipped when decoding."""
    entries = [(key, named.get(key)) for key in (*(f"{role}_token" for role in _ROLES), *_OTHER_NAMES)]
    for key in _LIST_NAMES:
        listed = named.get(key) or []
        entries += [(key, entry) for entry in (listed.values() if isinstance(listed, dict) else listed)]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for key, entry in entries:
        content = _content(entry)
        if content is None or content in known:
            continue
        if backend.token_to_id(content) is None:
            raise ValueError(f"{folder}: {key} is {content!r}, which tokenizer.json does not have; add it there.")
        backend.add_special_tokens([AddedToken(content, normalized=False, special=True)])


def _keep_leading_spaces(backend: tokenizers.Tokenizer) -> None:
    """Lets offsets cover leading spaces; `ByteLevel` and `RobertaProcessing` would trim them off."""
    if backend.post_processor is None:
        return
    state = json.loads(backend.post_processor.__getstate__())
    for step in (state, *state.get("processors", ())):
        if "trim_offsets" in step:
            step["trim_offsets"] = False
    bare = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    backend.post_processor = tokenizers.Tokenizer.from_str(json.dumps({**bare, "post_processor": state})).post_processor


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None

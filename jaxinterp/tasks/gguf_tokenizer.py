"""A tokenizer rebuilt from the metadata of a GGUF file.

Two kinds of vocabulary are read: `gpt2` (byte-level BPE, merges in the file) and `llama` (SentencePiece BPE, merges
derived from the scores). Where transformers' own GGUF path leaves out what the metadata says, the metadata is followed:

- `tokenizer.ggml.pre = smollm` (and its kin) splits every digit off before anything else. transformers takes GPT-2's
  splitting instead, which gives other ids where blanks stand before a digit. The merges were learned with the digits
  split off.
- `llama-bpe` and `tekken` take a whole word from the vocabulary before merging, and start a text with the
  beginning-of-sequence token when the file does not say.
- `tokenizer.ggml.add_space_prefix = false` is honoured for every SentencePiece vocabulary.
- Control and user-defined tokens of a byte-level vocabulary are matched whole also when they hold characters outside
  of the byte alphabet (DeepSeek's `｜`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from jaxinterp.tasks.spelling import BLANK, BYTE_TO_CHARACTER

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_PREFIX = "tokenizer.ggml."

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Splitting:
    """How text is cut before the merges, as `tokenizer.ggml.pre` names it."""

    pattern: str
    digits_apart: bool = False
    whole_words_first: bool = False
    begins: bool = False


_SPLITTINGS = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais"), _Splitting(pattern=_GPT2)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
        _Splitting(pattern=_GPT2, digits_apart=True),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        _Splitting(pattern=_LLAMA3, whole_words_first=True, begins=True),
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Splitting(pattern=_QWEN2)),
    "tekken": _Splitting(pattern=_TEKKEN, whole_words_first=True, begins=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What the metadata says about text.

    Attributes:
        backend: The tokenizer, with added tokens and the rule for beginnings and ends.
        special: Ids of the tokens with a role (`bos`, `eos`, `unk`, `pad`), where the file names them.
        textless: Ids that stand for no text beyond the added tokens (unused rows, respelled user-defined tokens).
        template: The chat template, if the file has one.
    """

    backend: tokenizers.Tokenizer
    special: dict[str, int]
    textless: frozenset[int]
    template: str | None


def rebuild(metadata: Mapping[str, Any], name: str) -> Rebuilt:
    """Builds the tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: Keys and values of the file, as `jaxinterp.gguf.read_metadata` gives them.
        name: The file's name, for error sentences.

    Returns:
        The tokenizer and the facts around it.

    Raises:
        ValueError: The metadata has no tokenizer, or one of a kind that is not read, or contradicts itself.
    """
    tokens: list[str] | None = metadata.get(f"{_PREFIX}tokens")
    if not tokens:
        raise ValueError(f"{name} has no {_PREFIX}tokens, so it holds no tokenizer; give a file made with one.")
    types: Sequence[int] = metadata.get(f"{_PREFIX}token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"{name}: {_PREFIX}token_type has {len(types)} entries for {len(tokens)} tokens.")
    kind = metadata.get(f"{_PREFIX}model")
    if kind == "gpt2":
        splitting = _splitting(metadata, name)
        backend, spelled = _byte_level(metadata, tokens, types, splitting, name)
        begins = splitting.begins
    elif kind == "llama":
        backend, spelled = _sentencepiece(metadata, tokens, name)
        begins = True
    else:
        raise ValueError(
            f"{name}: {_PREFIX}model is {kind!r}; gpt2 (byte-level BPE) and llama (SentencePiece) are read."
        )

    special = _special(metadata, len(tokens), name)
    controls = {index for index, token_type in enumerate(types) if token_type in (_UNKNOWN, _CONTROL)}
    controls |= set(special.values())
    backend.add_special_tokens([AddedToken(spelled[i], normalized=False, special=True) for i in sorted(controls)])
    whole = [i for i, token_type in enumerate(types) if token_type == _USER_DEFINED and spelled[i] == tokens[i]]
    backend.add_tokens([AddedToken(spelled[i], normalized=False) for i in whole if i not in controls])
    _frame(backend, special, metadata, begins)
    textless = {i for i, token_type in enumerate(types) if token_type in (_USER_DEFINED, _UNUSED)}
    return Rebuilt(
        backend=backend,
        special=special,
        textless=frozenset(textless - controls - set(whole)),
        template=metadata.get("tokenizer.chat_template"),
    )


def _splitting(metadata: Mapping[str, Any], name: str) -> _Splitting:
    pre = metadata.get(f"{_PREFIX}pre", "default")
    if pre not in _SPLITTINGS:
        raise ValueError(
            f"{name}: {_PREFIX}pre is {pre!r}, which is not known here; known are {', '.join(_SPLITTINGS)}."
        )
    return _SPLITTINGS[pre]


def _frame(
    backend: tokenizers.Tokenizer, special: Mapping[str, int], metadata: Mapping[str, Any], begins: bool
) -> None:
    """Sets which tokens are added before and after a text."""
    roles = {"bos": metadata.get(f"{_PREFIX}add_bos_token", begins), "eos": metadata.get(f"{_PREFIX}add_eos_token")}
    added = {role: backend.id_to_token(special[role]) for role, wanted in roles.items() if wanted and role in special}
    if added:
        template = [added.get("bos"), "$A", added.get("eos")]
        backend.post_processor = processors.TemplateProcessing(
            single=[part for part in template if part is not None],
            special_tokens=[(token, special[role]) for role, token in added.items()],
        )


def _special(metadata: Mapping[str, Any], vocabulary: int, name: str) -> dict[str, int]:
    found = {}
    for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        token = metadata.get(f"{_PREFIX}{key}_token_id")
        if token is None:
            continue
        if not 0 <= token < vocabulary:
            raise ValueError(f"{name}: {_PREFIX}{key}_token_id is {token}, outside of the {vocabulary} tokens.")
        found[role] = token
    return found


def _numbered(spelled: Sequence[str], name: str) -> dict[str, int]:
    """Ids by token; two tokens spelled alike would make one of them unreachable."""
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(spelled):
        if (other := vocabulary.setdefault(token, index)) != index:
            raise ValueError(f"{name}: {_PREFIX}tokens holds {token!r} twice, at {other} and {index}.")
    return vocabulary


def _byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], splitting: _Splitting, name: str
) -> tuple[tokenizers.Tokenizer, Sequence[str]]:
    lines = metadata.get(f"{_PREFIX}merges")
    if lines is None:
        raise ValueError(f"{name} has no {_PREFIX}merges, which a byte-level vocabulary needs.")
    alphabet = set(BYTE_TO_CHARACTER)
    spelled = [
        token
        if token_type in (_CONTROL, _USER_DEFINED) or alphabet.issuperset(token)
        else "".join(BYTE_TO_CHARACTER[byte] for byte in token.encode())
        for token, token_type in zip(tokens, types, strict=True)
    ]
    vocabulary = _numbered(spelled, name)
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            raise ValueError(f"{name}: {_PREFIX}merges holds {line!r}, whose parts or whole are not in the vocabulary.")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words_first))
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if splitting.digits_apart else []
    if splitting.pattern == _GPT2:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    else:
        cuts.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts) if len(cuts) > 1 else cuts[0]
    backend.decoder = decoders.ByteLevel()
    return backend, spelled


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], name: str
) -> tuple[tokenizers.Tokenizer, Sequence[str]]:
    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:  # runs of blanks are written with real blanks, which the normalizer never leaves in a text
        tokens = [BLANK * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = _numbered(tokens, name)
    scores = None if gemma else metadata.get(f"{_PREFIX}scores")
    if not gemma and (scores is None or len(scores) != len(tokens)):
        raise ValueError(f"{name} needs one entry of {_PREFIX}scores per token to order the merges.")
    lines = metadata.get(f"{_PREFIX}merges")
    merges = _merges(tokens, vocabulary, scores) if lines is None else [tuple(line.split(" ", 1)) for line in lines]
    unknown = metadata.get(f"{_PREFIX}unknown_token_id")
    unk_token = tokens[unknown] if unknown is not None and 0 <= unknown < len(tokens) else None
    backend = tokenizers.Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token=unk_token, fuse_unk=True, byte_fallback=True)
    )
    prefixed = bool(metadata.get(f"{_PREFIX}add_space_prefix", not gemma)) and not gemma
    steps: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="first", split=False)
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    else:
        backend.normalizer = normalizers.Replace(" ", BLANK)
    backend.decoder = decoders.Sequence(steps)
    return backend, tokens


def _merges(
    tokens: Sequence[str], vocabulary: Mapping[str, int], scores: Sequence[float] | None
) -> list[tuple[str, str]]:
    """Every cut of a token into two tokens, best first.

    Tokens are ranked by `scores`, or without them by their place in the file (Gemma's scores do not follow the order
    in which its merges were learned); cuts of one token, and of tokens with one score, with the longer left part first.
    """
    cuts = []
    for token in tokens:
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                cuts.append((left, right))
    if scores is not None:
        cuts.sort(key=lambda pair: (-scores[vocabulary[pair[0] + pair[1]]], -len(pair[0]), -len(pair[1])))
    return cuts

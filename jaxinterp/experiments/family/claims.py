"""The criteria on models of one family."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from jaxinterp.experiments.claims import Claim, from_row

LEAST_R = 0.5
LEAST_RATIO = 0.5
LEAST_SHARE = 0.75


def check(table: pl.DataFrame) -> list[Claim]:
    """Holds the table against the criteria.

    Args:
        table: As from `jaxinterp.experiments.within_family.run`.

    Returns:
        The claims for which the table has models.
    """
    return [*_about_tables(table), *_about_vectors(table)]


def _about_tables(table: pl.DataFrame) -> Iterator[Claim]:
    found = table.filter(pl.col("part") == "geometry", pl.col("method") == "centred")
    tied = found.filter(pl.col("tied") == "both", pl.col("table") == "W_E")
    if tied.height:
        worst = tied.filter(pl.col("measure") == "r").sort("value").row(0, named=True)
        null = tied.filter(pl.col("measure") == "relabelled within rank bins")["high"].to_numpy().max()
        p = tied.filter(pl.col("measure") == "p, relabelled")["value"].to_numpy().max()
        yield Claim(
            criterion=f"Every pair of tied models: r of all pairwise cosines (centred) at least {LEAST_R}, p < 0.001",
            paper="high within a family; value not known",
            **from_row(worst),
            control=f"the lowest of {tied.filter(pl.col('measure') == 'r').height} pairs is shown "
            f"({worst['first']} and {worst['second']}); tokens relabelled within rank bins: at most {null:.3f}; "
            f"largest p {p:.2g}",
            met=bool(worst["value"] >= LEAST_R and p < 0.001),
        )
    untied = found.filter(pl.col("tied") == "neither", pl.col("measure") == "r")
    for first, second in untied.select("first", "second").unique(maintain_order=True).iter_rows():
        pair = untied.filter(pl.col("first") == first, pl.col("second") == second)
        given, out = (pair.filter(pl.col("table") == name).row(0, named=True) for name in ("W_E", "W_U"))
        yield Claim(
            criterion=f"Untied models {first} and {second}: r of unembeddings (centred) is above that of input "
            "embeddings, their intervals apart",
            paper="low for input embeddings, high for unembeddings; values not known",
            **from_row(out),
            control=f"input embeddings: {given['value']:.3f} [{given['low']:.3f}, {given['high']:.3f}]",
            met=bool(out["low"] > given["high"]),
        )


def _about_vectors(table: pl.DataFrame) -> Iterator[Claim]:
    effects = table.filter(pl.col("part") == "effect", pl.col("chosen"))
    directions = effects.select("first", "second", "tied").unique(maintain_order=True)
    verdicts = []
    for first, second, tied in directions.iter_rows():
        here = pl.col("first") == first, pl.col("second") == second
        claim = _about_direction(first, second, effects.filter(*here), table.filter(pl.col("part") == "ratio", *here))
        yield claim
        if tied == "both":
            verdicts.append(claim.met)
    if verdicts:
        yield Claim(
            criterion=f"Ratio at least {LEAST_RATIO} with its interval above every shuffled map's in at least 3 of 4 "
            "directed pairs of tied models",
            paper="transferred vectors steer; figures only",
            ours=float(np.mean(verdicts)),
            n=len(verdicts),
            control="share of the directed pairs of tied models that meet it; see those above",
            met=bool(np.mean(verdicts) >= LEAST_SHARE),
        )


def _about_direction(first: str, second: str, effects: pl.DataFrame, ratios: pl.DataFrame) -> Claim:
    def of(frame: pl.DataFrame, method: str, measure: str = "to native") -> pl.DataFrame:
        return frame.filter(pl.col("method") == method, pl.col("measure") == measure)

    carried = of(ratios, "least squares").row(0, named=True)
    wrong = of(ratios, "shuffled map")["value"].to_numpy()
    native = of(effects, "native", "effect").row(0, named=True)
    moved = of(effects, "least squares", "effect").row(0, named=True)
    random = np.abs(of(effects, "random", "effect")["value"].to_numpy())
    direct = of(ratios, "least squares", "direct path / full").row(0, named=True)["value"]
    own = of(ratios, "native", "direct path / full").row(0, named=True)["value"]
    gated = native["low"] > 0 and native["value"] > np.quantile(random, 0.95)
    return Claim(
        criterion=f"Vector of {first} carried to {second} by least squares on unembeddings: its effect is at least "
        f"{LEAST_RATIO} of the native vector's, and the interval of that ratio lies above every shuffled map's",
        paper="transferred vectors steer; figures only",
        **from_row(carried),
        control=f"{len(wrong)} shuffled maps: at most {wrong.max():.2f}; effects in nats: native {native['value']:.2f} "
        f"({'above' if gated else 'NOT above'} the 95th percentile of {len(random)} random vectors, "
        f"{np.quantile(random, 0.95):.2f}), carried {moved['value']:.2f}; direct path: {direct:.0%} of carried, "
        f"{own:.0%} of native",
        met=bool(gated and carried["value"] >= LEAST_RATIO and carried["low"] > wrong.max()),
    )

"""What would the model say at the verdict's opening if it ended after each block, untouched and with parts taken out?

The logit lens of every residual stream, averaged over verdicts as probabilities: how much the words of the right
verdict that the model will not use share with the one that it will, and what is left of them without units or heads.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.analysis import heads, readout
from jaxinterp.analysis.units import ablate_units, draw_units
from jaxinterp.experiments import ablation, units
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.figures import lens_layers
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import verification

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

STAGES = ("resid_mid", "resid_post")
"""The residual stream between attention and MLP of a block, and behind the block."""

_TOP = 4
_COLUMNS = {
    "measure": pl.String,
    "condition": pl.String,
    "removed": pl.String,
    "verdict": pl.String,
    "layer": pl.Int64,
    "site": pl.String,
    "rank": pl.Int64,
    "token": pl.String,
    "word": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the logit lens on verdicts."""

    cases: int = 300
    """Cases of the evaluation split that are read, of each verdict."""
    ablated: int = 150
    """How many of them are read with parts taken out."""
    seed: int = 0
    """Of the random units."""


@dataclasses.dataclass(frozen=True)
class _Words:
    """The verdict words, by first token.

    Attributes:
        ids: Accepting ones, then rejecting ones; of each, the one that the model uses first.
        accepting: How many accept.
        texts: As they are shown.
    """

    ids: tuple[int, ...]
    accepting: int
    texts: tuple[str, ...]

    def kind(self, token: int) -> str | None:
        """Whether a token accepts, rejects, or is no verdict word."""
        if token not in self.ids:
            return None
        return "accepts" if self.ids.index(token) < self.accepting else "rejects"


def run(config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Read every block's residual stream at verdicts of both kinds, as it is and without some parts.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": table, "ablation": table, "units": table}` of the experiments of these names.

    Returns:
        One row per mean probability. `condition` is clean, units (the listed units of both polarities zeroed at the
        verdict's opening), random units (as many others of the same layers), target heads (those that attend to the
        target, zeroed at all tokens) or circuit (all heads that matter alone, zeroed at all tokens); `removed` names
        what was taken out. `verdict` is valid or invalid, `layer` a block and `site` the stream in its middle
        (resid_mid) or behind it (resid_post). `measure` is

        * word: one verdict word, by its first token (`token`, `word`: accepts or rejects);
        * sum: of the accepting words but "this", of the rejecting words but "not", and, as a control, five times the
          mean of all tokens that are no verdict words; `token` says which;
        * top: one of the four likeliest tokens, by mean probability (`rank` from 0).

        `low` and `high` are a 95 % bootstrap over the `n` cases.

    Raises:
        ValueError: There are no cases, or the tables of heads and units are others.
    """
    model = models["model"]
    words = _verdict_words(model)
    edits = _edits(model, inputs, config.seed)
    rows: list[dict[str, Any]] = []
    for verdict, valid in (("valid", True), ("invalid", False)):
        chosen = cases.load(model, inputs["verdicts"], "evaluation", valid=valid, most=config.cases)
        for condition, (edited, removed) in edits.items():
            some = chosen if condition == "clean" else chosen[: config.ablated]
            _LOG.info("reading %d %s verdicts: %s", len(some), verdict, condition)
            about = {"condition": condition, "removed": removed, "verdict": verdict}
            about |= {"control": condition == "random units"}
            rows += [about | row for row in _rows(model, read_streams(edited, some), words)]
    return pl.DataFrame(rows, schema=_COLUMNS)


def _verdict_words(model: LanguageModel) -> _Words:
    tokenizer = model.require_tokenizer()
    accepting, rejecting = verification.verdict_tokens(tokenizer)
    ids = (*accepting, *rejecting)
    return _Words(ids, len(accepting), tuple(tokenizer.token(token) for token in ids))


def _edits(model: LanguageModel, inputs: Mapping[str, pl.DataFrame], seed: int) -> dict[str, tuple[LanguageModel, str]]:
    """Condition -> edited model, and what it lacks."""
    sets, listed = ablation.found(inputs["ablation"]), units.found(inputs["units"])
    silent = [*dict.fromkeys(unit for polarity in ("valid", "invalid") for unit in listed[polarity])]
    layers = sorted({layer for layer, _ in silent})
    rng, size = np.random.default_rng(seed), model.architecture.neurons
    random = [
        unit
        for layer in layers
        for unit in draw_units(size, [layer], sum(own == layer for own, _ in silent), silent, rng)
    ]
    return {
        "clean": (model, ""),
        "units": (ablate_units(model, silent, at=ji.last()), f"{len(silent)} units"),
        "random units": (ablate_units(model, random, at=ji.last()), f"{len(random)} random units"),
        "target heads": (_without_heads(model, sets["target"]), heads.label(sets["target"])),
        "circuit": (_without_heads(model, sets["circuit"]), heads.label(sets["circuit"])),
    }


def _without_heads(model: LanguageModel, chosen: Sequence[heads.Head]) -> LanguageModel:
    return ji.ablate(model, *(ji.head(*head) for head in chosen)) if chosen else model


def read_streams(model: LanguageModel, chosen: Sequence[Case]) -> np.ndarray:
    """The residual streams at the verdict's opening.

    Args:
        model: The model, edited or not.
        chosen: Cases.

    Returns:
        [2 layer, case, embedding]: in the middle of a block, behind it, and so on for every block.
    """
    found = cases.read(model, chosen, [ji.resid_mid(...), ji.resid_post(...)])
    both = np.stack([found[site] for site in STAGES], axis=1)
    return both.reshape(-1, *both.shape[2:])


def _rows(model: LanguageModel, streams: np.ndarray, words: _Words) -> Iterator[dict[str, Any]]:
    shown = np.exp(readout.read_out(model, streams, answers=np.array(words.ids, np.int32)).log_prob)
    mean = readout.mean_probabilities(model, streams)
    rest = model.architecture.vocabulary - len(words.ids)
    sums = {
        "other accepting words": shown[..., 1 : words.accepting].sum(axis=-1),
        "other rejecting words": shown[..., words.accepting + 1 :].sum(axis=-1),
        "five other tokens": 5 / max(rest, 1) * (1 - shown.sum(axis=-1)),
    }
    for place in range(len(streams)):
        where = {"layer": place // 2, "site": STAGES[place % 2]}
        for token, text, row in zip(words.ids, words.texts, cases.means(shown[place]), strict=True):
            yield {**where, "measure": "word", "token": text, "word": words.kind(token), **row}
        for name, row in zip(
            sums, cases.means(np.stack([array[place] for array in sums.values()], axis=1)), strict=True
        ):
            control = {"control": True} if name == "five other tokens" else {}
            yield {**where, "measure": "sum", "token": name, **row, **control}
        for rank, token in enumerate(np.argsort(-mean[place], kind="stable")[:_TOP]):
            text, kind = model.require_tokenizer().token(int(token)), words.kind(int(token))
            row = {"rank": rank, "token": text, "word": kind, "value": float(mean[place, token])}
            yield {**where, "measure": "top", "n": streams.shape[1], **row}


def figure(table: pl.DataFrame) -> Figure:
    """Mean probability of every verdict word after every block, for both verdicts and under every condition.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return lens_layers.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the paper's claims.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned.
    """
    claims = []
    for verdict, kind, paper in (
        ("valid", "accepting", "success: 0.73 at layer 26 of 36 in one example, before this takes over"),
        ("invalid", "rejecting", "does not conform, not okay, then not; no numbers"),
    ):
        peak, described = _peak(table, verdict, f"other {kind} words")
        claims.append(
            Claim(
                criterion=f"At {verdict} verdicts the {kind} words that the model does not use reach a summed mean "
                "probability of 0.2 after some block, before the one that it uses exceeds 0.9",
                paper=paper,
                **from_row(peak),
                control=described,
                met=peak["value"] >= 0.2,
            )
        )
    for verdict, kind in (("valid", "rejecting"), ("invalid", "accepting")):
        peak, described = _peak(table, verdict, f"other {kind} words")
        claims.append(
            Claim(
                criterion=f"At {verdict} verdicts the other {kind} words stay at or below 0.02 after every such block",
                paper="not reported",
                **from_row(peak),
                control=described,
                met=peak["n"] > 0 and peak["value"] <= 0.02,
            )
        )
    return claims


def _peak(table: pl.DataFrame, verdict: str, words: str) -> tuple[dict[str, Any], str]:
    """The largest sum after a block before the word that the model uses exceeds 0.9, and what stands beside it."""
    here = table.filter(condition="clean", verdict=verdict)
    used = here.filter(measure="word", word="accepts" if verdict == "valid" else "rejects")
    used = used.filter(token=used["token"][0])
    sums = here.filter(measure="sum", token=words)
    exceeded = used.filter(pl.col("site") == "resid_post", pl.col("value") > 0.9)["layer"].to_list()
    depth = min(exceeded, default=1 + max(used["layer"]))
    before = pl.col("layer") < depth
    rows = sums.filter(before, site="resid_post").sort("value", descending=True)
    if not rows.height:
        return {"value": 0.0, "low": None, "high": None, "n": 0}, "the word used exceeds 0.9 from the first block on"
    peak = rows.row(0, named=True)
    at = {"layer": peak["layer"], "site": "resid_post"}
    beside = used.filter(**at)["value"][0]
    chance = here.filter(measure="sum", token="five other tokens", **at)["value"][0]  # noqa: S106
    middle = sums.filter(before, site="resid_mid")["value"].max()
    return peak, (
        f"after block {peak['layer']}, the word used at {beside:.3f}; five other tokens: {chance:.3f}; "
        f"in the middle of blocks: {middle:.3f}"
    )

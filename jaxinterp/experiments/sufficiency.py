"""Is what a few heads write enough to turn a verdict? Patching them from a twin with another target.

The twins of a minimal pair differ in the target alone and have other verdicts. What heads have in one is put in their
place in the other, so that nothing is damaged: zeroing pushes a model to its commoner verdict, a patch from a twin
pushes it nowhere by itself. Each patch is made both ways, into the rejected twin from the accepted one and back.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp import axes
from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments import ablation
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case, Group
from jaxinterp.figures import twin_patches
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.taps import Address

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

What = Literal["outputs", "patterns", "values", "patterns and values", "stream"]
Donor = Literal["twin", "another pair, other verdict", "another pair, same verdict"]

DONORS: tuple[Donor, ...] = ("twin", "another pair, other verdict", "another pair, same verdict")
DIRECTIONS = ("into rejected", "into accepted")
DIFFERENCES = ("tens", "ones", "both digits")
_TEXT_KINDS: tuple[What, ...] = ("outputs", "patterns", "values", "patterns and values")

_SCHEMA = {
    "condition": pl.String,
    "what": pl.String,
    "position": pl.String,
    "donor": pl.String,
    "direction": pl.String,
    "differs": pl.String,
    "measure": pl.String,
    "heads": pl.String,
    "n_heads": pl.Int64,
    "layer": pl.Int64,
    "draw": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on sufficiency."""

    pairs: int = 100
    """At most this many minimal pairs made of accepted attempts, and as many made of rejected ones."""
    draws: int = 20
    """Random sets of heads of each kind."""
    seed: int = 0
    """Of the random sets and of the donors from other pairs."""


@dataclasses.dataclass(frozen=True)
class Patch:
    """What is put in place of what, and where.

    Attributes:
        condition: Name of the set of heads, or of the stream.
        heads: The heads; none where the residual stream behind a block is patched.
        what: Outputs of the heads, where they look, what they read there, or the stream.
        position: At the verdict token only, or at all tokens.
        donor: Where from.
        layer: For a whole layer and for the stream.
        draw: For a random set.
    """

    condition: str
    heads: tuple[Head, ...] = ()
    what: What = "outputs"
    position: Literal["verdict", "all tokens"] = "verdict"
    donor: Donor = "twin"
    layer: int | None = None
    draw: int | None = None

    def labels(self) -> dict[str, Any]:
        """Its columns of the table."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return columns | {"heads": heads.label(self.heads), "n_heads": len(self.heads)}


@dataclasses.dataclass(frozen=True)
class Twins:
    """All members of minimal pairs: first those that are to be rejected, then those to be accepted.

    Attributes:
        members: The texts; member `i` and member `i + pairs` are twins.
        donors: Donor -> index of the member that each takes from.
        differs: Which digits of the target differ between the twins, one for each member.
    """

    members: list[Case]
    donors: dict[Donor, np.ndarray]
    differs: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[tuple[Case, Case]], seed: int) -> Twins:
        """Lines up (valid, invalid) pairs, and draws a donor from another problem for each member.

        Args:
            pairs: As from `cases.load_pairs`.
            seed: Of the donors.

        Returns:
            The members.

        Raises:
            ValueError: All pairs are of one problem.
        """
        members = [invalid for _, invalid in pairs] + [valid for valid, _ in pairs]
        problems = np.array([valid.problem for valid, _ in pairs])
        if len(set(problems.tolist())) < 2:
            raise ValueError("all minimal pairs are of one problem; ask the model more problems")
        rng = np.random.default_rng(seed)
        others = np.array([rng.choice(np.flatnonzero(problems != problem)) for problem in problems])
        count = len(pairs)
        same = np.concatenate([others, others + count])
        donors: dict[Donor, np.ndarray] = {
            "twin": (np.arange(2 * count) + count) % (2 * count),
            "another pair, other verdict": (same + count) % (2 * count),
            "another pair, same verdict": same,
        }
        return cls(members, donors, np.array([_difference(*pair) for pair in pairs] * 2))

    def direction(self, name: str) -> np.ndarray:
        """Which members are patched in a direction, boolean [member]."""
        accepted = np.array([member.valid for member in self.members])
        return ~accepted if name == "into rejected" else accepted


def _difference(valid: Case, invalid: Case) -> str:
    digits = [[case.ids[token] for token in case.verdict.mentions[0]] for case in (valid, invalid)]
    tens, ones = digits[0][0] != digits[1][0], digits[0][-1] != digits[1][-1]
    return "both digits" if tens and ones else "tens" if tens else "ones"


def run(config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Patch heads, their attention patterns and the residual stream between twins.

    The sets of heads are those that the ablation found on other problems; of each the first three are patched too. A
    patch of outputs at the verdict token puts in what the heads write there. Patterns are where the heads look, values
    what all heads of their key-value group read; patched at all tokens, patterns and values make outputs. Pairs count
    where the model reads both twins right. Several pairs may be of one trace, which the intervals leave out of account.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": ..., "ablation": ...}`, the tables of these experiments.

    Returns:
        One row per number: `condition` (which heads; residual stream), `what` (outputs, patterns, values, patterns and
        values, stream), `position` (verdict, all tokens), `donor`, `direction` (into rejected, into accepted),
        `differs` (all, or pairs whose targets differ in the tens, the ones or both digits), `measure` (flips, the share
        of verdicts that change; margin recovered, the change of the margin as a fraction of the way to the twin's; both
        right, the share of pairs that count), `heads`, `n_heads`, `layer`, `draw`, `value`, `low`, `high` (95 %, Wilson
        for shares, bootstrap for means), `n` (pairs) and `control`.

    Raises:
        ValueError: There are no minimal pairs, or of one problem only.
    """
    model = models["model"]
    twins = Twins.of(cases.load_pairs(model, inputs["verdicts"], config.pairs), config.seed)
    patches = choose_patches(model, ablation.found(inputs["ablation"]), config)
    count = len(twins.members) // 2
    _LOG.info("%d patches between the twins of %d pairs", len(patches), count)
    read = cases.read(model, twins.members, [ji.z(), ji.resid_post()])
    cells = functools.partial(_cells, model, patches, twins, read)
    table = cases.sweep(model, twins.members, cells, cases.margin(model))
    values, clean = (cases.values(table, twins.members, column) for column in ("value", "clean"))
    return pl.DataFrame(list(_rows(patches, twins, values, clean[0])), schema=_SCHEMA)


def choose_patches(model: LanguageModel, found: Mapping[str, Sequence[Head]], config: Config) -> list[Patch]:
    """All patches of the experiment.

    Args:
        model: Its layers and heads are counted.
        found: As from `ablation.found`.
        config: Settings.

    Returns:
        Them; none for a set that is empty.
    """
    shape = (model.architecture.layers, model.architecture.heads)
    target, circuit = list(found["target"]), list(found["circuit"])
    every = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    sets = {
        "attends to target": target,
        "circuit": circuit,
        "first three that attend to target": target[:3],
        "three largest effects": circuit[:3],
        "paper's definition": list(found["paper"]),
        "all heads": every,
    }
    patches = [Patch(name, tuple(chosen), donor=donor) for name, chosen in sets.items() if chosen for donor in DONORS]
    patches += [Patch(name, tuple(sets[name]), "patterns") for name in ("attends to target", "circuit") if sets[name]]
    if target:
        patches += [Patch("attends to target", tuple(target), what, "all tokens") for what in _TEXT_KINDS]
    patches += [Patch("single", (head,)) for head in dict.fromkeys([*target, *circuit])]
    for layer in range(shape[0]):
        patches.append(Patch("all heads of a layer", tuple(head for head in every if head[0] == layer), layer=layer))
        patches += [Patch("residual stream", what="stream", donor=donor, layer=layer) for donor in DONORS]
    for name, outside in (
        ("random, outside the set", set(target)),
        ("random, outside the circuit", {*target, *circuit}),
    ):
        size = min(len(target), len(every) - len(outside))
        if size:
            drawn = heads.draw_sets(shape, outside, size, config.draws, config.seed)
            patches += [Patch(name, tuple(chosen), draw=draw) for draw, chosen in enumerate(drawn)]
    return patches


def _cells(
    model: LanguageModel, patches: Sequence[Patch], twins: Twins, read: Mapping[str, np.ndarray], group: Group
) -> list[ji.Cell]:
    """The patches into the members of a group."""
    short = {donor: _last_tokens(read, donors[group.order]) for donor, donors in twins.donors.items()}
    wanted = sorted({layer for patch in patches if _needs_text(patch) for layer, _ in patch.heads})
    whole = None
    if wanted:
        ids = group.ids.copy()
        for row, member in enumerate(twins.donors["twin"][group.order]):
            ids[row, group.pads[row] :] = twins.members[member].ids
        sites = [site(*wanted) for site in (ji.z, ji.v, ji.pattern)]
        _, whole = ji.run(model, ids, group.mask, sites=sites, logits=None)
    edits = []
    for patch in patches:
        cache = whole if _needs_text(patch) else short[patch.donor]
        assert cache is not None
        edits.append(ji.Cell(patch.labels(), functools.partial(_put, patch=patch, cache=cache)))
    return edits


def _needs_text(patch: Patch) -> bool:
    return patch.position == "all tokens" or patch.what == "patterns"


def _last_tokens(read: Mapping[str, np.ndarray], donors: np.ndarray) -> ji.Cache:
    """What donors have at their last token, as a run of texts of one token."""
    arrays: dict[Address, np.ndarray] = {
        (site, layer): array[donors][:, None] for site, layers in read.items() for layer, array in enumerate(layers)
    }
    return ji.Cache(arrays, np.zeros((len(donors), 1), np.int32), np.ones((len(donors), 1), bool))


def _put(model: LanguageModel, patch: Patch, cache: ji.Cache) -> LanguageModel:
    positions = [(-1, -1)]
    if patch.what == "stream":
        assert patch.layer is not None
        return ji.patch(model, ji.resid_post(patch.layer), cache, positions=positions)
    by_layer: dict[int, list[int]] = {}
    for layer, head in patch.heads:
        by_layer.setdefault(layer, []).append(head)
    shared = model.architecture.heads // model.architecture.kv_heads
    for layer, own in by_layer.items():
        groups = tuple(dict.fromkeys(head // shared for head in own))
        sites = {
            "outputs": ji.head(layer, *own),
            "values": ji.Site("v", (layer,), axes.KV_HEAD, groups),
            "patterns": ji.Site("pattern", (layer,), axes.HEAD, tuple(own)),
        }
        wanted = patch.what.split(" and ")
        if patch.position == "verdict":
            for name in wanted:
                model = ji.patch(model, sites[name], cache, positions=positions)
            continue
        for name, site in sites.items():  # all of them, some without effect, so that these patches share programs
            model = ji.interchange(model, site, cache, active=None if name in wanted else ())
    return model


def _rows(patches: Sequence[Patch], twins: Twins, values: np.ndarray, clean: np.ndarray) -> list[dict[str, Any]]:
    """The table's rows, from margins [patch, member] and those without a patch [member]."""
    accepted = twins.direction("into accepted")
    right = (clean > 0) == accepted
    twin = twins.donors["twin"]
    counts = right & right[twin]
    away = np.where(counts, clean[twin] - clean, 1.0)
    rows: list[dict[str, Any]] = [
        {"condition": "none", "differs": "all", "measure": "both right", "control": True}
        | cases.proportion(counts[accepted])
    ]
    for patch, margins in zip(patches, values, strict=True):
        flips = (margins > 0) != (clean > 0)
        control = patch.draw is not None or patch.donor == "another pair, same verdict"
        for direction in DIRECTIONS:
            here = counts & twins.direction(direction)
            labels = patch.labels() | {"direction": direction, "control": control}
            rows.append(labels | {"differs": "all", "measure": "flips"} | cases.proportion(flips[here]))
            if not here.any():
                continue
            recovered = ((margins - clean) / away)[here]
            rows.append(labels | {"differs": "all", "measure": "margin recovered"} | cases.mean(recovered))
            if patch.donor == "twin" and patch.what != "stream" and patch.draw is None:
                rows += [
                    labels | {"differs": kind, "measure": "flips"} | cases.proportion(flips[here & some])
                    for kind in DIFFERENCES
                    if (here & (some := twins.differs == kind)).any()
                ]
    return rows


def figure(table: pl.DataFrame) -> Figure:
    """How often each patch turns the verdict, both ways; by layer; and by the digits that differ.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return twin_patches.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the plan's criterion on sufficiency.

    Args:
        table: As from `run`.

    Returns:
        One claim for each way to say which three heads, for all that attend to the target, and for the way back.
        Where there was nothing to patch, `n` is 0 and the claim is not met.
    """
    flips = table.filter((pl.col("measure") == "flips") & (pl.col("differs") == "all"))
    outputs = flips.filter((pl.col("what") == "outputs") & (pl.col("position") == "verdict"))

    def row(condition: str, direction: str, donor: str = "twin") -> dict[str, Any]:
        where = (pl.col("condition") == condition) & (pl.col("direction") == direction) & (pl.col("donor") == donor)
        found = outputs.filter(where)
        nothing = {"value": 0.0, "low": None, "high": None, "n": 0, "heads": ""}
        return found.row(0, named=True) if found.height and found["n"][0] else nothing

    def random(direction: str) -> str:
        parts = []
        for name in ("set", "circuit"):
            where = (pl.col("condition") == f"random, outside the {name}") & (pl.col("direction") == direction)
            drawn = outputs.filter(where)["value"].drop_nans()
            if len(drawn):
                parts.append(f"as many random heads outside the {name} {float(drawn.to_numpy().mean()):.3f}")
        return "; ".join(parts) or "no random sets"

    claims = []
    for condition, direction, what in (
        ("three largest effects", DIRECTIONS[0], "the three heads with the largest single effects"),
        ("first three that attend to target", DIRECTIONS[0], "the three heads that attend most to the target"),
        ("attends to target", DIRECTIONS[0], "all heads that attend to the target"),
        ("attends to target", DIRECTIONS[1], "all heads that attend to the target"),
    ):
        found = row(condition, direction)
        same = row(condition, direction, "another pair, same verdict")
        giver, taker = ("accepted", "a rejected") if direction == DIRECTIONS[0] else ("rejected", "an accepted")
        claims.append(
            Claim(
                criterion=f"Outputs of {what}, patched from the {giver} twin into {taker} prefix at the verdict "
                "token, flip at least 50 %",
                paper="not done",
                **from_row(found),
                control=f"{found['heads'] or 'no heads'}; from another pair with the same verdict {same['value']:.3f}; "
                f"{random(direction)}",
                met=bool(found["n"]) and found["value"] >= 0.5,
            )
        )
    return claims

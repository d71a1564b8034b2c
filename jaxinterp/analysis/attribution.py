"""Attribution patching: what patching each activation would do, estimated from gradients.

Exact patching and its estimates are one function. At every chosen tap stands the edit

$$x + m (s - x),$$

with `x` the clean activation, `s` that of the corrupted run at the same position, and a mask `m` for every text,
position and, where the site has them, head or unit. `m = 1` is `jaxinterp.patch`. The derivative of the metric in `m`
at 0 is attribution patching; its mean along `m = alpha`, alpha from 0 to 1, is integrated gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.metrics import Measure, Metric, apply_measure, bind_metric, normalise
from jaxinterp.activations.run import Inputs, compiled_form, forward_pass
from jaxinterp.analysis.aligned_pairs import AlignedPairs, align_pairs, padded_length, read_last
from jaxinterp.interventions.edit import NamedArray, Place, find_places
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site, embed, resid_pre
from jaxinterp.sites.taps import Address, attach, edited_taps

Method = Literal["gradient", "integrated"]
Path = Literal["mask", "inputs"]

_UNITS = {axes.HEAD: "head", axes.KV_HEAD: "kv_head", axes.NEURONS: "unit"}
"""Axes that get a mask entry of their own -> their column in the table."""

_STREAM = (resid_pre(),)
_MOST_ROWS = 50_000_000


@pz.pytree_dataclass
class Mix(pz.nn.Layer):
    """Moves an activation towards that of another run: `x + mask * (source - base)`.

    Attributes:
        mask: How far, [batch, seq] and the head or unit axis.
        source: The other run's activation at the same tap.
        base: What the difference is taken from; `None` for `x` itself, so that `mask` 1 puts `source` in its place.
    """

    mask: NamedArray
    source: NamedArray
    base: NamedArray | None  # pyright: ignore[reportGeneralTypeIssues]  # a class decorator hides the class

    def __call__(self, value: NamedArray, /, **_: Any) -> NamedArray:
        """Returns the mixture."""
        base = value if self.base is None else self.base
        return (value + self.mask * (self.source - base)).astype(value.dtype).order_as(*value.named_shape)


def attribute(
    model: LanguageModel,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric | Callable[[jax.Array], jax.Array],
    sites: Sequence[Site] | Site = _STREAM,
    method: Method = "gradient",
    steps: int = 8,
    path: Path = "mask",
    mask: Any = None,
    batch_size: int | None = None,
) -> pl.DataFrame:
    """Estimates, for every activation, what putting the corrupted run's in place of the clean one's would do.

    `"gradient"` takes one forward pass of the corrupted texts and one forward and one backward pass of the clean
    ones, however many sites, layers, positions and heads there are; no gradient of a weight is computed.

    `"integrated"` takes the mean of the gradient at `steps` midpoints of a path.

    * `path="mask"`: for each tap by itself, all its chosen entries are mixed by the same alpha while every other tap is
      left alone. The effects at one tap add up to that of patching the whole tap; at `resid_pre`, to corrupted
      minus clean. They share out what entries do together, so that for an entry patched alone the plain gradient may
      be nearer. Costs `steps` forward and backward passes for each tap.
    * `path="inputs"`: the token embeddings are mixed by alpha, and the gradient at each tap is multiplied by the
      difference between the corrupted and the clean activation (Hanna et al. 2024). Costs `steps` forward and
      backward passes and one forward pass, for all taps.

    Args:
        model: The model, edited or not.
        clean: Texts, lists of token ids, or ids [pair, seq]: the runs that are patched.
        corrupted: The texts that activations are taken from, each as long as its partner.
        metric: `logit_diff(...)`, `log_prob(...)`, or a function of last-token logits; bound to the pairs.
        sites: Which taps, with heads or units if only those shall be looked at. Every head or unit of a site that has
            them gets an effect of its own.
        method: `"gradient"` or `"integrated"`.
        steps: Midpoints of the path.
        path: Which path is integrated along.
        mask: With ids [pair, seq]: which of them are tokens.
        batch_size: Pairs per pass; by default all at once.

    Returns:
        One row for each tap, pair, position and head or unit: `site`, `layer`, `position` (index in the text from 0),
        `token` (the clean one, if the model has a tokenizer), `head`, `kv_head` or `unit` (those that some site has),
        `prompt` (number of the pair), `clean` and `corrupted` (the metric of the two runs), `effect` (estimated
        metric of the patched run minus `clean`), and `normalised`, `effect` / (`corrupted` - `clean`), null where
        the two are equal.

    Raises:
        ValueError: A pair differs in length, a site does not exist or is named twice, or a setting is out of range.

    References:
        Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv:2310.10348; Hanna et al. 2024, arXiv:2403.17806.

    Examples:
        >>> import jaxinterp as ji
        >>> from jaxinterp.models.toy import toy
        >>> table = attribute(toy(), [[1, 2, 3]], [[4, 2, 3]], ji.logit_diff(5, 6), ji.resid_pre(0))
        >>> table["position"].to_list(), table["effect"][1:].to_list()
        ([0, 1, 2], [0.0, 0.0])
    """
    if method not in ("gradient", "integrated"):
        raise ValueError(f"there is no method {method!r}; choose 'gradient' or 'integrated'")
    if path not in ("mask", "inputs"):
        raise ValueError(f"there is no path {path!r}; choose 'mask' or 'inputs'")
    if steps < 1:
        raise ValueError(f"steps is {steps}; integrating needs at least 1")
    pairs = align_pairs(model, clean, corrupted, mask)
    places = _find_taps(model, (sites,) if isinstance(sites, Site) else tuple(sites))
    _refuse_too_many(model, places, pairs)
    measure = bind_metric(metric, model, len(pairs))
    integrated = steps if method == "integrated" else 0
    rows = len(pairs) if batch_size is None else min(max(1, batch_size), len(pairs))
    seq = pairs.clean.shape[1]
    parts: list[tuple[np.ndarray, np.ndarray, dict[Address, np.ndarray]]] = []
    for number, (batch, numbers) in enumerate(pairs.batches(rows, padded_length(model, pairs))):
        part = _attribute_batch(model, batch, measure.take(jnp.asarray(numbers)), places, integrated, path)
        count = min(rows, len(pairs) - number * rows)
        effects = {at: np.asarray(effect, np.float32)[:count, -seq:] for at, effect in part[2].items()}
        parts.append((np.asarray(part[0])[:count], np.asarray(part[1])[:count], effects))
    before, after = (np.concatenate(values) for values in ([part[0] for part in parts], [part[1] for part in parts]))
    effects = {place.address: np.concatenate([part[2][place.address] for part in parts]) for place in places}
    return _table(model, pairs, places, before, after, effects)


def _find_taps(model: LanguageModel, sites: Sequence[Site]) -> list[Place]:
    places = find_places(model, sites)
    seen: set[Address] = set()
    for place in places:
        if place.site.axis is not None and place.site.axis not in _UNITS:
            raise ValueError(f"{place.site} chooses on the axis {place.site.axis}; attribution is by head or unit")
        if place.address in seen:
            raise ValueError(f"{place.address[0]} of layer {place.address[1]} is chosen twice; join the selectors")
        seen.add(place.address)
    return places


def _refuse_too_many(model: LanguageModel, places: Sequence[Place], pairs: AlignedPairs) -> None:
    sizes = model.architecture.axis_sizes()
    units = sum(sizes.get(_unit_axis(place.address) or "", 1) for place in places)
    rows = int(pairs.valid.sum()) * units
    if rows > _MOST_ROWS:
        raise ValueError(f"the table would have {rows} rows, more than {_MOST_ROWS}; choose fewer layers or texts")


def _unit_axis(address: Address) -> str | None:
    return next((name for name in axes.SITES[address[0]][0] if name in _UNITS), None)


def _attribute_batch(
    model: LanguageModel, batch: AlignedPairs, measure: Measure, places: Sequence[Place], steps: int, path: Path
) -> tuple[jax.Array, jax.Array, dict[Address, jax.Array]]:
    """Clean metric, corrupted metric and effects of one batch; `steps` 0 is the plain gradient."""
    body = compiled_form(model.body)
    taps = {place.address: place.selected for place in places}
    along_inputs = steps > 0 and path == "inputs"
    start = embed().addresses(model.body)[0]
    read = {**taps, start: taps.get(start, pz.nx.wrap(jnp.asarray(True)))} if along_inputs else taps
    chosen = tuple(Site(site, None if layer is None else (layer,)) for site, layer in read)
    capture = functools.partial(forward_pass, body, sites=chosen, logits="last")
    logits, sources = capture(batch.corrupted, batch.valid)
    assert logits is not None
    base = capture(batch.clean, batch.valid)[1] if along_inputs else None
    if base is not None:
        base = {address: array for address, array in base.items() if address != start}
    slopes = functools.partial(_slopes, body, batch.clean, batch.valid, measure, sources, base, read)
    zero = dict.fromkeys(read, 0.0)
    midpoints = (np.arange(steps) + 0.5) / max(steps, 1)
    if steps and path == "mask":
        effects = {}
        for address in taps:
            slope = [slopes(zero | {address: float(alpha)})[1][address] for alpha in midpoints]
            effects[address] = functools.reduce(jnp.add, slope) / steps
        clean, _ = slopes(zero)
    elif steps:
        along = [slopes(zero | {start: float(alpha)})[1] for alpha in midpoints]
        effects = {address: functools.reduce(jnp.add, [slope[address] for slope in along]) / steps for address in taps}
        clean, _ = slopes(zero)
    else:
        clean, effects = slopes(zero)
    return clean, apply_measure(measure, logits), effects


@jax.jit
def _slopes(
    body: pz.nn.Layer,
    tokens: jax.Array,
    valid: jax.Array,
    measure: Measure,
    sources: Mapping[Address, jax.Array],
    base: Mapping[Address, jax.Array] | None,
    selected: Mapping[Address, NamedArray],
    alphas: Mapping[Address, jax.Array],
) -> tuple[jax.Array, dict[Address, jax.Array]]:
    """The metric of the mixed run [batch], and its derivative in the mask of every tap [batch, seq, (unit)]."""
    readout = any(site in ("ln_final", "logits") for site, _ in sources)
    inputs = read_last(tokens, valid)
    few = None if readout or ("logits", None) in edited_taps(body) else measure.tokens
    if readout:
        del inputs["read"]
    if few is not None:
        inputs["choose"] = pz.nx.wrap(few, axes.BATCH, "choice")
    masks = {address: _fill(address, source, selected[address], alphas[address]) for address, source in sources.items()}

    def measure_mixed(masks: Mapping[Address, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mixes = []
        for address, source in sources.items():
            names = axes.SITES[address[0]][0]
            other = None if base is None or address not in base else pz.nx.wrap(base[address], *names)
            over = _mask_axes(address)
            mixes.append((address, Mix(pz.nx.wrap(masks[address], *over), pz.nx.wrap(source, *names), other)))
        output = attach(body, mixes)(pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), **inputs)
        logits = output.untag(axes.SEQ)[-1] if readout else output
        plain = logits.unwrap(axes.BATCH, axes.VOCABULARY if few is None else "choice")
        values = apply_measure(measure, plain) if few is None else measure(plain)
        return values.sum(), values

    slopes, values = jax.grad(measure_mixed, has_aux=True)(masks)
    return values, slopes


def _mask_axes(address: Address) -> tuple[str, ...]:
    unit = _unit_axis(address)
    return (axes.BATCH, axes.SEQ) if unit is None else (axes.BATCH, axes.SEQ, unit)


def _fill(address: Address, source: jax.Array, selected: NamedArray, alpha: jax.Array) -> jax.Array:
    sizes = dict(zip(axes.SITES[address[0]][0], source.shape, strict=True))
    over = _mask_axes(address)
    chosen = (selected * jnp.asarray(alpha, jnp.float32)).broadcast_to((), {name: sizes[name] for name in over})
    return chosen.unwrap(*over)


def _table(
    model: LanguageModel,
    pairs: AlignedPairs,
    places: Sequence[Place],
    clean: np.ndarray,
    corrupted: np.ndarray,
    effects: Mapping[Address, np.ndarray],
) -> pl.DataFrame:
    padding, text, frames = np.argmax(pairs.valid, axis=1), _token_texts(model, pairs), []
    for place in places:
        site, layer = place.address
        unit = _unit_axis(place.address)
        effect = effects[place.address].reshape(*pairs.valid.shape, -1)
        chosen = np.broadcast_to(place.selected.data_array, effect.shape[2:])
        prompt, column, index = np.nonzero(pairs.valid[:, :, None] & chosen)
        frame = {
            "site": pl.repeat(site, len(prompt), eager=True),
            "layer": pl.repeat(layer, len(prompt), dtype=pl.Int64, eager=True),
            "position": column - padding[prompt],
            "token": pl.repeat(None, len(prompt), dtype=pl.String, eager=True)
            if text is None
            else text[prompt, column],
        }
        if unit is not None:
            frame[_UNITS[unit]] = index
        frame |= {"prompt": prompt, "clean": clean[prompt], "corrupted": corrupted[prompt]}
        frames.append(pl.DataFrame(frame | {"effect": effect[prompt, column, index]}))
    table = pl.concat(frames, how="diagonal")
    units = [name for name in _UNITS.values() if name in table.columns]
    order = ["site", "layer", "position", "token", *units, "prompt", "clean", "corrupted", "effect"]
    return table.select(order).with_columns(normalised=normalise(pl.col("effect")))


def _token_texts(model: LanguageModel, pairs: AlignedPairs) -> np.ndarray:
    if model.tokenizer is None:
        return np.empty(pairs.clean.shape, object)
    ids, inverse = np.unique(pairs.clean, return_inverse=True)
    texts = np.array([model.tokenizer.decode([int(number)]) for number in ids], object)
    return texts[inverse.reshape(pairs.clean.shape)]

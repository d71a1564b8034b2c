"""One forward pass: texts or token ids in, logits and activations out."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.compilation import keep_compiled_programs
from jaxinterp.activations.memory import available, bytes_fixed, bytes_per_row, bytes_read, rows_that_fit
from jaxinterp.activations.plan import Base
from jaxinterp.activations.reading import Readout, read_pass
from jaxinterp.activations.sizes import rows_at_once
from jaxinterp.activations.stages import Texts
from jaxinterp.activations.state import capture
from jaxinterp.interventions.edit import Edit
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel, check_tokens
from jaxinterp.models.low_rank import align_low_rank
from jaxinterp.parallel.placement import fetch, least, mesh_of, put_rows, rows_over
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address, align_edits

Inputs = Sequence[str] | str | Sequence[Sequence[int]] | np.ndarray | jax.Array


@overload
def run(
    model: LanguageModel,
    inputs: Inputs,
    mask: Any = None,
    *,
    sites: Sequence[Site] | Site = (),
    logits: Literal["all", "last"] = "all",
    batch_size: int | None = None,
) -> tuple[np.ndarray, Cache]: ...


@overload
def run(
    model: LanguageModel,
    inputs: Inputs,
    mask: Any = None,
    *,
    sites: Sequence[Site] | Site = (),
    logits: None,
    batch_size: int | None = None,
) -> tuple[None, Cache]: ...


def run(
    model: LanguageModel,
    inputs: Inputs,
    mask: Any = None,
    *,
    sites: Sequence[Site] | Site = (),
    logits: Readout = "all",
    batch_size: int | None = None,
) -> tuple[np.ndarray | None, Cache]:
    """Runs a model and reads what passes its taps.

    Rows are padded on the left to equal length. A kind of block is compiled once for each length bucket, whatever the
    depth of the model; other edit numbers, other heads or another edited layer compile nothing new. The pass ends
    behind the last block that is read, if no logits are wanted.

    Args:
        model: The model, edited or not.
        inputs: Texts, lists of token ids, or ids [batch, seq].
        mask: With ids [batch, seq]: which of them are tokens rather than padding on the left.
        sites: What to read. Reads see edits made at the same tap. Where scores or patterns are read, a block makes them
            whole, which takes longer and rounds differently.
        logits: `"all"`, `"last"` (only each row's last token, much cheaper with a large vocabulary), or `None`.
        batch_size: Rows per forward pass; by default as many as the device is quickest with, and no more than half of
            the free memory holds by the bound of `jaxinterp.activations.memory.bytes_per_row`.

    Returns:
        Logits, float32 [batch, seq, vocabulary], [batch, vocabulary] or `None`; and the cache, `cache[site, layer]`.

    Raises:
        ValueError: A site does not exist, the inputs are no tokens, or what is asked for exceeds the free memory.
    """
    if logits not in ("all", "last", None):
        raise ValueError(f"logits must be 'all', 'last' or None, not {logits!r}")
    tokens, valid = prepare(model, inputs, mask)
    chosen = (sites,) if isinstance(sites, Site) else tuple(sites)
    wanted = _find_addresses(model, chosen)
    rows, seq = tokens.shape
    padded = bucket(seq, model.architecture.context if model.architecture.learned_positions else None)
    mesh = mesh_of(model.body)
    (step,) = least((_rows_at_once(model, chosen, rows, padded, logits, batch_size),), mesh)
    step = math.ceil(step / rows_over(mesh)) * rows_over(mesh)
    keep_compiled_programs()
    base = Base.of(cast("Decoder", model.body))
    results = _Results(rows)
    under_way: tuple[int, int, jax.Array | None, dict[Address, jax.Array]] | None = None
    for first in range(0, rows, step):
        part, part_valid = tokens[first : first + step], valid[first : first + step]
        texts = put_rows(Texts(*(jnp.asarray(array) for array in pad_rows(part, part_valid, step, padded))), mesh)
        some = base if step == rows else base.of_rows(np.minimum(np.arange(first, first + step), rows - 1))
        started = (first, len(part), *read_pass(some, texts, wanted, logits))
        if under_way is not None:
            results.keep(*under_way, seq)
        under_way = started
    assert under_way is not None, "prepare refuses empty inputs"
    results.keep(*under_way, seq)
    return results.logits, Cache(results.arrays, tokens, valid)


def prepare(model: LanguageModel, inputs: Inputs, mask: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Turns texts or ids into one left-padded batch.

    Args:
        model: The model whose tokenizer and vocabulary count.
        inputs: Texts, lists of token ids, or ids [batch, seq].
        mask: See `run`.

    Returns:
        Token ids, int32 [batch, seq], and mask, boolean [batch, seq].

    Raises:
        ValueError: The inputs are no texts or ids of this model, or a mask with padding on the right.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    if len(inputs) == 0:
        raise ValueError("there are no inputs; pass at least one text or row of token ids")
    if all(isinstance(row, str) for row in inputs):
        return model.require_tokenizer().batch([str(row) for row in inputs])
    if isinstance(inputs, np.ndarray | jax.Array):
        tokens, valid = check_tokens(model, np.asarray(inputs), mask)
    else:
        width = max(len(row) for row in inputs)
        table = np.zeros((len(inputs), width), np.int64)
        filled = np.zeros((len(inputs), width), bool)
        for number, row in enumerate(inputs):
            table[number, width - len(row) :] = row
            filled[number, width - len(row) :] = True
        tokens, valid = check_tokens(model, table, filled)
    if not valid[:, -1].all() or (np.diff(valid.astype(np.int8), axis=1) < 0).any():
        raise ValueError("padding must stand on the left, and every row needs at least one token")
    return tokens, valid


def compiled_form(body: pz.nn.Layer) -> pz.nn.Layer:
    """The tree as it is compiled: edits at one layer of a site or weight become neutral ones at the other layers."""
    return align_edits(align_low_rank(body), lambda edit: edit.neutral() if isinstance(edit, Edit) else None)


def bucket(length: int, most: int | None = None) -> int:
    """The padded length that a text of some length is compiled for.

    Examples:
        >>> [bucket(length) for length in (1, 16, 17, 128, 129, 300)]
        [16, 16, 32, 128, 192, 320]
    """
    unit = 16 if length <= 128 else 64
    padded = math.ceil(length / unit) * unit
    return padded if most is None else max(length, min(padded, most))


def pad_rows(tokens: np.ndarray, mask: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads a batch with copies of its first row, and every row on the left."""
    missing = ((0, rows - len(tokens)), (0, 0))
    tokens, mask = np.pad(tokens, missing, mode="edge"), np.pad(mask, missing, mode="edge")
    left = ((0, 0), (length - tokens.shape[1], 0))
    return np.pad(tokens, left), np.pad(mask, left)


@functools.partial(jax.jit, static_argnames=("sites", "logits"))
def forward_pass(
    body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, *, sites: tuple[Site, ...], logits: Readout
) -> tuple[jax.Array | None, dict[Address, jax.Array]]:
    """`run` of one padded batch as one program, for what is differentiated or mapped as a whole."""
    reading, variables = pz.unbind_state_vars(capture(body, sites))
    inputs = side_inputs(tokens, mask)
    if logits == "last" and not _reads_readout(sites):
        inputs["read"] = pz.nx.wrap(jnp.full(len(tokens), tokens.shape[1] - 1), axes.BATCH)
    frozen = [variable.freeze() for variable in variables]
    output, states = reading.stateless_call(frozen, pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), **inputs)
    saved = {state.label: state.value.unwrap(*axes.SITES[state.label[0]][0]) for state in states}
    if logits is None:
        return None, saved
    if axes.SEQ not in output.named_shape:
        return output.unwrap(axes.BATCH, axes.VOCABULARY), saved
    values = output.unwrap(axes.BATCH, axes.SEQ, axes.VOCABULARY)
    return (values[:, -1] if logits == "last" else values), saved


def _reads_readout(sites: tuple[Site, ...]) -> bool:
    return any(site.name in ("ln_final", "logits") for site in sites)


class _Results:
    """What the parts of a batch gave, put together while the next part is under way.

    Attributes:
        logits: Logits of all rows, if any are wanted.
        arrays: Address -> reads of all rows.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.logits: np.ndarray | None = None
        self.arrays: dict[Address, np.ndarray] = {}

    def keep(self, first: int, count: int, logits: jax.Array | None, saved: dict[Address, jax.Array], seq: int) -> None:
        """Waits for a part, and puts its rows where they belong, without their padding."""
        if logits is not None:
            values = fetch(logits)[:count]
            self.logits = self._put(self.logits, first, values if values.ndim == 2 else values[:, -seq:])
        for address, array in saved.items():
            names = axes.SITES[address[0]][0]
            cut = tuple(slice(-seq, None) if name in (axes.SEQ, axes.KV_SEQ) else slice(None) for name in names[1:])
            values = fetch(array)[(slice(count), *cut)]
            self.arrays[address] = self._put(self.arrays.get(address), first, values)

    def _put(self, whole: np.ndarray | None, first: int, part: np.ndarray) -> np.ndarray:
        if len(part) == self._rows:
            return part
        whole = np.empty((self._rows, *part.shape[1:]), part.dtype) if whole is None else whole
        whole[first : first + len(part)] = part
        return whole


def _find_addresses(model: LanguageModel, sites: tuple[Site, ...]) -> dict[Address, Site]:
    wanted: dict[Address, Site] = {}
    for site in sites:
        for address in site.addresses(model.body):
            if address in wanted and (wanted[address].axis, wanted[address].indices) != (site.axis, site.indices):
                raise ValueError(f"{address[0]} of layer {address[1]} is asked for twice; join the two selectors")
            wanted[address] = site
    return wanted


def _rows_at_once(
    model: LanguageModel, sites: tuple[Site, ...], rows: int, seq: int, logits: Readout, batch_size: int | None
) -> int:
    architecture = model.architecture
    itemsize = jax.tree_util.tree_leaves(model.body)[0].dtype.itemsize
    free = available()
    read = bytes_read(architecture, sites, seq, itemsize)
    read += 0 if logits is None else 4 * architecture.vocabulary * (seq if logits == "all" else 1)
    if rows * read > free:
        asked = ", ".join(map(str, sites)) or "the logits"
        raise ValueError(
            f"reading {asked} of {rows} rows of {seq} tokens would take {rows * read / 2**30:.3g} GiB, more than the "
            f"{free / 2**30:.3g} GiB that are free; read fewer layers or run fewer texts at a time, ask for "
            "logits='last', or write to disk with ji.stream"
        )
    if batch_size is not None:
        return min(max(1, batch_size), rows)
    each = bytes_per_row(architecture, sites, seq=seq, logits=logits, itemsize=itemsize)
    fixed = bytes_fixed(architecture, itemsize)
    # When not all rows fit, two parts are under way at a time.
    fits = rows if fixed + rows * each <= free // 2 else rows_that_fit(2 * each, free // 2, rows, fixed)
    return rows_at_once(rows, seq, fits)

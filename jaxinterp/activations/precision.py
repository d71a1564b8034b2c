"""The noise floor: how far the numbers of a sweep lie from those of exact arithmetic.

The same program runs in float64, in float32 and in bfloat16. What an effect differs by from float64 is rounding; an
effect that is not larger than that has not been measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jax.extend import core
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.metrics import Measure, Metric, apply_measure, bind_metric
from jaxinterp.activations.run import Inputs, bucket, compiled_form, pad_rows, prepare
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxinterp.activations.sweep import Cell  # which may print a noise floor itself

PRECISIONS = ("float32 highest", "float32", "bfloat16")
"""What is compared with float64: full float32 products, the device's own way with float32, and bfloat16 throughout."""


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
    """Measured rounding.

    Attributes:
        table: One row for each precision and quantity (`"value"` of the metric, clean and edited, and `"effect"`,
            edited minus clean): `precision`, `quantity`, `n`, and `median`, `p95` and `max` of the absolute
            difference to float64, in the metric's unit (nats).
        samples: One row for each precision, cell and prompt: `precision`, `cell` (-1 for the clean run), `prompt`,
            `value`, `effect`, and those of float64, `exact_value` and `exact_effect`.
    """

    table: pl.DataFrame
    samples: pl.DataFrame

    @property
    def effect(self) -> float:
        """The largest error of an effect in float32, as the device computes it: what a sweep can resolve."""
        return self._largest("float32", "effect")

    @property
    def value(self) -> float:
        """The largest error of the metric itself in float32."""
        return self._largest("float32", "value")

    def _largest(self, precision: str, quantity: str) -> float:
        return self.table.filter(precision=precision, quantity=quantity)["max"].item()


def noise_floor(
    model: LanguageModel,
    prompts: Inputs,
    edits: Sequence[Cell],
    metric: Metric | Callable[[jax.Array], jax.Array],
    mask: Any = None,
    *,
    precisions: Sequence[str] = PRECISIONS,
    most: int = 32,
) -> NoiseFloor:
    r"""Measures how far a sweep's numbers are from exact ones.

    With $m_p$ the metric in precision $p$, the error of a value is $|m_p - m_{64}|$, and that of an edit's effect
    $|(m_p(\text{edited}) - m_p(\text{clean})) - (m_{64}(\text{edited}) - m_{64}(\text{clean}))|$. Weights and edits are
    the model's own numbers in every precision; only in bfloat16 are they rounded too. In float64 every float32
    intermediate of the program is float64, those of norms and rotary positions as well; it runs on the CPU, since
    accelerators have slow float64 or none.

    Args:
        model: The unedited model.
        prompts: Texts, lists of token ids, or ids [batch, seq].
        edits: Cells, such as `grid` makes; of more than `most`, so many are taken at equal distances.
        metric: As in `sweep`.
        mask: With ids [batch, seq]: which of them are tokens.
        precisions: What to compare with float64, of `PRECISIONS`.
        most: Cells to measure at most. The structure of a cell is compiled once in each precision.

    Returns:
        The noise floor; `.effect` is the largest error of an effect in float32.

    Raises:
        ValueError: There are no cells, a precision is not known, or JAX was told to use no CPU.
    """
    if not edits:
        raise ValueError("there are no edits to measure the noise of; make some with ji.grid")
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise ValueError(f"there is no precision {unknown[0]!r}; choose among {', '.join(PRECISIONS)}")
    tokens, valid = prepare(model, prompts, mask)
    measure = bind_metric(metric, model, len(tokens))
    limit = model.architecture.context if model.architecture.learned_positions else None
    tokens, valid = pad_rows(tokens, valid, len(tokens), bucket(tokens.shape[1], limit))
    chosen = np.unique(np.linspace(0, len(edits) - 1, min(most, len(edits))).round().astype(int))
    bodies = [compiled_form(edited) for edited in (model.body, *(edits[number].edit(model).body for number in chosen))]
    exact = np.stack(list(_exactly(bodies, tokens, valid, measure)))
    parts = []
    for precision in precisions:
        with _computing(precision):
            kind = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
            found = [np.asarray(_measure(_cast(body, kind), tokens, valid, measure), np.float64) for body in bodies]
        parts.append(_samples(precision, np.stack(found), exact, chosen))
    samples = pl.concat(parts)
    return NoiseFloor(_summarise(samples), samples)


def mark_noise(table: pl.DataFrame, noise: float | NoiseFloor) -> pl.DataFrame:
    """Says of each effect of a sweep whether it is larger than rounding.

    Args:
        table: With a column `effect`, such as `sweep` returns.
        noise: The noise floor, or the error of an effect in the metric's unit.

    Returns:
        The table with two more columns: `noise`, the floor, and `resolved`, whether the effect lies above it.

    Raises:
        ValueError: The table has no effects.

    Examples:
        >>> mark_noise(pl.DataFrame({"effect": [-0.5, 1e-7]}), 1e-6)["resolved"].to_list()
        [True, False]
    """
    if "effect" not in table.columns:
        raise ValueError(f"the table has no column effect, only {', '.join(table.columns)}; pass what ji.sweep returns")
    floor = noise.effect if isinstance(noise, NoiseFloor) else float(noise)
    return table.with_columns(noise=pl.lit(floor), resolved=pl.col("effect").abs() > floor)


def _last_logits(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, measure: Measure) -> jax.Array:
    inputs = side_inputs(tokens, mask)
    inputs["read"] = pz.nx.wrap(jnp.full(len(tokens), tokens.shape[1] - 1), axes.BATCH)
    logits = body(pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), **inputs).unwrap(axes.BATCH, axes.VOCABULARY)
    return apply_measure(measure, logits)


_measure = jax.jit(_last_logits)


@contextlib.contextmanager
def _computing(precision: str) -> Iterator[None]:
    with jax.default_matmul_precision("highest") if precision == "float32 highest" else contextlib.nullcontext():
        yield


def _cast(tree: Any, dtype: Any) -> Any:
    """The same tree with every floating-point number in one dtype."""

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree_util.tree_map(cast, tree)


def _exactly(
    bodies: Sequence[pz.nn.Layer], tokens: np.ndarray, mask: np.ndarray, measure: Measure
) -> Iterator[np.ndarray]:
    """The metric of every tree in float64, [batch] each."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ValueError(f"float64 is computed on the CPU, which JAX was told not to use ({error})") from error
    programs: dict[Any, Callable[..., Any]] = {}
    for body in bodies:
        arguments = jax.device_put((_cast(body, jnp.float32), jnp.asarray(tokens), jnp.asarray(mask), measure), cpu)
        leaves, structure = jax.tree_util.tree_flatten(arguments)
        key = structure, tuple(jnp.shape(leaf) for leaf in leaves)
        if key not in programs:
            closed = jax.make_jaxpr(_last_logits)(*arguments)
            programs[key] = jax.jit(lambda *numbers, closed=closed: _promoted(closed.jaxpr, closed.consts, numbers))
        with jax.enable_x64(True):
            (value,) = programs[key](*(_wide(leaf) for leaf in leaves))
            yield np.asarray(value)


def _wide(value: Any) -> Any:
    """A float32 number or array as float64; others as they are."""
    return value.astype(np.float64) if getattr(value, "dtype", None) == np.float32 else value


def _promoted(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluates a program that was traced in float32 with float64 in place of float32 everywhere.

    Running the program on float64 arrays would not do: norms, scores and logits ask for float32 by name.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_wide, consts), strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def look_up(atom: Any) -> Any:
        kind: Any = atom.aval
        return _wide(np.asarray(atom.val, kind.dtype)) if isinstance(atom, core.Literal) else values[atom]

    for step in jaxpr.eqns:
        inputs = [look_up(atom) for atom in step.invars]
        inner = next((step.params[name] for name in ("jaxpr", "call_jaxpr") if name in step.params), None)
        if isinstance(inner, core.ClosedJaxpr) and step.primitive.name in ("jit", "custom_jvp_call"):
            outputs = _promoted(inner.jaxpr, inner.consts, inputs)
        elif inner is not None or "branches" in step.params or "cond_jaxpr" in step.params:
            raise ValueError(f"{step.primitive.name} in a metric or an edit cannot be run in float64; write it without")
        else:
            wide = {name: np.dtype(np.float64) if _is_float32(x) else x for name, x in step.params.items()}
            outputs = step.primitive.bind(*inputs, **wide)
            outputs = outputs if step.primitive.multiple_results else [outputs]
        values |= zip(step.outvars, outputs, strict=True)
    return [look_up(atom) for atom in jaxpr.outvars]


def _is_float32(parameter: Any) -> bool:
    return isinstance(parameter, np.dtype | type) and parameter in (np.dtype(np.float32), np.float32)


def _samples(precision: str, found: np.ndarray, exact: np.ndarray, cells: np.ndarray) -> pl.DataFrame:
    """Values [1 + cells, prompt], the clean one first, as a table; the clean run is cell -1, without effect."""
    numbers = [-1, *cells.tolist()]
    prompts = found.shape[1]
    return pl.DataFrame(
        {
            "precision": [precision] * found.size,
            "cell": np.repeat(numbers, prompts),
            "prompt": np.tile(np.arange(prompts), len(numbers)),
            "value": found.ravel(),
            "effect": (found - found[0]).ravel(),
            "exact_value": exact.ravel(),
            "exact_effect": (exact - exact[0]).ravel(),
        }
    )


def _summarise(samples: pl.DataFrame) -> pl.DataFrame:
    parts = []
    for quantity in ("value", "effect"):
        rows = samples if quantity == "value" else samples.filter(pl.col("cell") >= 0)
        error = (pl.col(quantity) - pl.col(f"exact_{quantity}")).abs()
        parts.append(
            rows.group_by("precision", maintain_order=True)
            .agg(n=pl.len(), median=error.median(), p95=error.quantile(0.95, "higher"), max=error.max())
            .select("precision", pl.lit(quantity).alias("quantity"), "n", "median", "p95", "max")
        )
    return pl.concat(parts)

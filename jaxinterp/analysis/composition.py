r"""Circuits of attention heads in the weights: what a head reads and writes, and which heads read one another.

Conventions, for every function here. Weights act on columns. What surrounds a head is folded into its factors as far
as it is linear: the gain of the norm it reads through (and, under layer norm, the subtraction of the mean), the gains
of query and key norms, and the gain of a norm behind attention. Left out is what depends on the text or on position
alone: the norms' denominators, biases, score caps, and rotary positions, so that `W_QK` is the position-independent
part of the scores (exact where query and key are the same token). Under grouped-query attention a query head has the
keys and values of its group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxinterp.models.language_model import LanguageModel

KINDS = ("Q", "K", "V")


@dataclasses.dataclass(frozen=True)
class Circuit:
    """A matrix [embedding, embedding] of low rank, `left @ right`.

    Attributes:
        left: [embedding, projection].
        right: [projection, embedding].
    """

    left: np.ndarray
    right: np.ndarray

    def matrix(self) -> np.ndarray:
        """The whole matrix, [embedding, embedding]."""
        return self.left @ self.right

    def norm(self) -> float:
        """Frobenius norm, from the factors."""
        return float(np.sqrt(max(0.0, np.sum((self.left.T @ self.left) * (self.right @ self.right.T)))))

    def singular_values(self) -> np.ndarray:
        """The singular values that can differ from 0, the largest first, [projection]."""
        left, right = np.linalg.qr(self.left)[1], np.linalg.qr(self.right.T)[1]
        return np.linalg.svd(left @ right.T, compute_uv=False)

    def eigenvalues(self) -> np.ndarray:
        """The eigenvalues that can differ from 0, complex [projection], the largest in size first."""
        values = np.linalg.eigvals(self.right @ self.left)
        return values[np.argsort(-np.abs(values))]


def W_OV(model: LanguageModel, layer: int, head: int) -> Circuit:  # noqa: N802
    r"""What a head writes when it looks at a token: $x_\text{token} \mapsto W_O W_V x_\text{token}$.

    Args:
        model: The model; edits are not weights and are left out.
        layer: Block index, negative ones from the end.
        head: Head index.

    Returns:
        The circuit; it acts on a residual divided by its norm's denominator.

    Raises:
        ValueError: There is no such head.
    """
    factors = _one_head(model, layer, head)
    return Circuit(factors["O"], factors["V"])


def W_QK(model: LanguageModel, layer: int, head: int) -> Circuit:  # noqa: N802
    r"""What a head looks for: $x_\text{query}^\top W_Q^\top W_K x_\text{key}$, attention's scale included.

    Args:
        model: The model; edits are not weights and are left out.
        layer: Block index, negative ones from the end.
        head: Head index.

    Returns:
        The circuit; both residuals are divided by their norm's denominator.

    Raises:
        ValueError: There is no such head.
    """
    factors = _one_head(model, layer, head)
    return Circuit(factors["Q"].T * model.architecture.attention_scale, factors["K"])


def composition_scores(model: LanguageModel, draws: int = 2, seed: int = 0) -> pl.DataFrame:
    r"""How much of what one head reads lies in what an earlier head writes, for all pairs of heads.

    With $A$ the writer's $W_{OV}$ and $B$ the reader's $W_{QK}^\top$ (kind `Q`), $W_{QK}$ (`K`) or $W_{OV}$ (`V`), the
    score is $\lVert B A \rVert_F / (\lVert B \rVert_F \lVert A \rVert_F)$. All pairs are one program on the factors;
    no matrix [embedding, embedding] is built for a head.

    The control turns what all writers write by a random rotation, which keeps both spectra and undoes any alignment;
    its mean square is exactly 1 / embedding.

    Args:
        model: The model; edits are not weights and are left out.
        draws: Random rotations, at least 1.
        seed: Of the rotations.

    Returns:
        One row for each kind and pair of heads of different layers: `kind`, `writer_layer`, `writer_head`,
        `reader_layer`, `reader_head`, `score` in [0, 1], `baseline`, the mean score of the pair under rotation, `p`,
        the share of all rotated scores of the kind that reach `score`, and `draws`.

    Raises:
        ValueError: There is no second layer, or no draw.

    References:
        Elhage et al. 2021, A mathematical framework for transformer circuits.
    """
    architecture = model.architecture
    if architecture.layers < 2:
        raise ValueError("a model of one layer has no head that reads another; composition needs two layers")
    if draws < 1:
        raise ValueError("composition scores need at least one rotated draw to compare with; pass draws=1 or more")
    written, read = _sides(head_factors(model, range(architecture.layers)))
    width = architecture.embedding
    rotations = jax.vmap(lambda key: jax.random.orthogonal(key, width))(jax.random.split(jax.random.key(seed), draws))
    layers = np.array([(reader, writer) for reader in range(architecture.layers) for writer in range(reader)])
    turns = [jnp.eye(width), *rotations]
    return _table(np.stack([np.asarray(_score_pairs(turn, written, read, layers)) for turn in turns]), layers)


def copying_scores(model: LanguageModel, draws: int = 4, seed: int = 0) -> pl.DataFrame:
    r"""Whether a head raises the logits of the tokens it looks at.

    With $\lambda$ the eigenvalues of $W_U W_{OV} W_E$, the final norm's gain folded into $W_U$, the score is
    $\operatorname{Re} \sum \lambda / \sum |\lambda|$: 1 for a head that copies, -1 for one that forbids, near 0 for
    one that does neither. The eigenvalues come from a matrix [projection, projection].

    Args:
        model: The model; edits are not weights and are left out.
        draws: Random rotations of what is written, for comparison; at least 1.
        seed: Of the rotations.

    Returns:
        One row for each head: `layer`, `head`, `score`, `baseline` and `baseline_sd`, mean and standard deviation of
        all heads' scores under rotation, and `draws`.

    Raises:
        ValueError: There is no draw.

    References:
        Elhage et al. 2021, A mathematical framework for transformer circuits.
    """
    if draws < 1:
        raise ValueError("copying scores need at least one rotated draw to compare with; pass draws=1 or more")
    weights, architecture = model.weights(), model.architecture
    factors = head_factors(model, range(architecture.layers))
    embed = weights["W_E"].astype(jnp.float32)
    unembed = embed if architecture.tied else weights["W_U"].astype(jnp.float32)
    through = embed.T @ read_through(unembed, weights["ln_final.w"], model)
    keys = jax.random.split(jax.random.key(seed), draws)
    turns = [jnp.eye(architecture.embedding)] + [jax.random.orthogonal(key, architecture.embedding) for key in keys]
    scores = np.stack([_copying(factors, through @ turn) for turn in turns])
    rows = [
        (layer, head, float(score), float(scores[1:].mean()), float(scores[1:].std()), draws)
        for (layer, head), score in np.ndenumerate(scores[0])
    ]
    return pl.DataFrame(rows, ["layer", "head", "score", "baseline", "baseline_sd", "draws"], orient="row")


def _copying(factors: Mapping[str, jax.Array], through: jax.Array) -> np.ndarray:
    small = jnp.einsum("lhpe,ef,lhfq->lhpq", factors["V"], through, factors["O"])
    values = np.linalg.eigvals(np.asarray(small, np.float64))
    size = np.abs(values).sum(-1)
    return np.divide(values.sum(-1).real, size, out=np.zeros_like(size), where=size > 0)


def _one_head(model: LanguageModel, layer: int, head: int) -> dict[str, np.ndarray]:
    layers, heads = model.architecture.layers, model.architecture.heads
    if not -layers <= layer < layers or not 0 <= head < heads:
        raise ValueError(f"there is no head {head} of layer {layer}; this model has {layers} layers of {heads} heads")
    return {name: np.asarray(array[0, head]) for name, array in head_factors(model, [layer % layers]).items()}


def head_factors(model: LanguageModel, layers: Iterable[int]) -> dict[str, jax.Array]:
    """What surrounds the heads of some layers, folded into their factors.

    Args:
        model: The model; edits are not weights and are left out.
        layers: Block indices, not negative.

    Returns:
        `"Q"`, `"K"`, `"V"` [layer, head, projection, embedding] and `"O"` [layer, head, embedding, projection].
    """
    architecture, weights = model.architecture, model.weights()
    group = architecture.heads // architecture.kv_heads
    parts: dict[str, list[jax.Array]] = {name: [] for name in "QKVO"}
    for layer in layers:
        own = {
            name.removeprefix(f"blocks.{layer}."): array.astype(jnp.float32)
            for name, array in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        for name in "QKV":
            reading = read_through(own[f"W_{name}"], own["ln_attn.w"], model)
            if architecture.qk_norm and name in "QK":
                reading = reading * (own[f"{name.lower()}_norm.w"] + architecture.norm_offset)[:, None]
            parts[name].append(reading if name == "Q" else jnp.repeat(reading, group, axis=0))
        writing = jnp.moveaxis(own["W_O"], 1, 0)
        if architecture.post_norms:
            writing = writing * (own["ln_attn_post.w"] + architecture.norm_offset)[:, None]
        parts["O"].append(writing)
    return {name: jnp.stack(arrays) for name, arrays in parts.items()}


def read_through(matrix: jax.Array, gain: jax.Array, model: LanguageModel) -> jax.Array:
    """A matrix that reads through a norm, as one that reads the residual stream over the norm's denominator.

    Args:
        matrix: [..., embedding].
        gain: The norm's weight, [embedding].
        model: The model, whose norms these are.

    Returns:
        [..., embedding].
    """
    read = matrix * (gain.astype(jnp.float32) + model.architecture.norm_offset)
    return read - read.mean(axis=-1, keepdims=True) if model.architecture.norm == "layer" else read


def _sides(factors: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What heads write [layer, head, embedding, projection] and read [kind, layer, head, projection, embedding].

    The outer factor of each circuit is replaced by its triangular part, which changes no Frobenius norm of a product,
    and each circuit is divided by its own norm.
    """
    q, k, v, o = (factors[name] for name in "QKVO")
    read = jnp.stack([_triangle(_flip(k)) @ q, _triangle(_flip(q)) @ k, _triangle(o) @ v])
    return _unit(o @ _flip(_triangle(_flip(v)))), _unit(read)


def _triangle(tall: jax.Array) -> jax.Array:
    return jnp.linalg.qr(tall)[1]


def _flip(matrices: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrices, -1, -2)


def _unit(matrices: jax.Array) -> jax.Array:
    size = jnp.sqrt(jnp.sum(jnp.square(matrices), axis=(-1, -2), keepdims=True))
    return matrices / jnp.where(size > 0, size, 1)


@jax.jit
def _score_pairs(turn: jax.Array, written: jax.Array, read: jax.Array, layers: jax.Array) -> jax.Array:
    """Scores [pair of layers, kind, reader, writer]; layers [pair, 2] holds the reader's and the writer's."""
    turned = jnp.einsum("de,lhep->lhdp", turn, written)

    def one(pair: jax.Array) -> jax.Array:
        products = jnp.einsum("krpd,wdq->krwpq", read[:, pair[0]], turned[pair[1]])
        return jnp.sqrt(jnp.sum(jnp.square(products), axis=(-1, -2)))

    return jax.lax.map(one, layers)


def _table(scores: np.ndarray, layers: np.ndarray) -> pl.DataFrame:
    """Scores [draw, pair of layers, kind, reader, writer], the first draw being the model itself."""
    draws, tables = len(scores) - 1, []
    pair, reader, writer = (index.reshape(-1) for index in np.indices((scores.shape[1], *scores.shape[3:])))
    for number, kind in enumerate(KINDS):
        own, rotated = scores[0, :, number].reshape(-1), scores[1:, :, number].reshape(draws, -1)
        columns = {"writer_layer": layers[pair, 1], "writer_head": writer}
        columns |= {"reader_layer": layers[pair, 0], "reader_head": reader, "score": own}
        columns |= {"baseline": rotated.mean(axis=0), "p": _pooled_p(own, rotated)}
        table = pl.DataFrame(columns).with_columns(kind=pl.lit(kind), draws=pl.lit(draws))
        tables.append(table.select("kind", *columns, "draws"))
    return pl.concat(tables)


def _pooled_p(own: np.ndarray, rotated: np.ndarray) -> np.ndarray:
    """Of each score: the share of all rotated scores that reach it, the score itself counted among them."""
    null = np.sort(rotated, axis=None)
    return (1 + len(null) - np.searchsorted(null, own, side="left")) / (1 + len(null))

"""What the peers of a benchmark are given: token ids, vectors, features and embeddings, the same for all of them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from jaxinterp.activations.run import run
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import embed, resid_post

Arrays = dict[str, np.ndarray]

_NAMES = ("Mary", "John", "Tom", "James", "Paul", "Mark", "Anna", "Sarah", "David", "Peter")
_TEMPLATE = "Then, when {one} and {other} went to the store, {giver} gave a drink to"
_RANDOM_LENGTH = 16
_BLOCK = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the workloads are.

    Attributes:
        prompts: Texts that are read.
        length: Tokens of each.
        batch: Texts in one pass when all sites are read, so that they fit into memory.
        ablation_prompts: Texts on which each head is ablated.
        pairs: Pairs of texts to attribute.
        steps: Steps of integrated gradients.
        new_tokens: Tokens that are generated.
        grid_layers: Layers of the steering grid.
        grid_scales: Its scales, as a fraction of the median residual norm at the layer in the middle.
        examples: Examples that probes are trained on, and as many that they are tested on.
        neighbours: Neighbours of each token.
        tokens: Most tokens of the vocabulary whose neighbours are found; all if 0.
        seed: Of everything drawn.
    """

    prompts: int = 64
    length: int = 64
    batch: int = 8
    ablation_prompts: int = 8
    pairs: int = 16
    steps: int = 8
    new_tokens: int = 32
    grid_layers: int = 4
    grid_scales: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    examples: int = 2000
    neighbours: int = 10
    tokens: int = 0
    seed: int = 0


def make_inputs(model: LanguageModel, sizes: Sizes, workload: str) -> Arrays:
    """The arrays of one workload.

    Args:
        model: The model; without a tokenizer, texts are random tokens.
        sizes: How large they are.
        workload: "w1" to "w8".

    Returns:
        Name -> array; scalars are arrays without dimensions.

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> sorted(make_inputs(toy(), Sizes(), "w1"))
        ['w1_first', 'w1_longer']
    """
    return _MAKERS[workload](model, sizes, np.random.default_rng([sizes.seed, int(workload[1:])]))


def size_of_logits(model: LanguageModel, arrays: Arrays) -> float:
    """How large the logits are whose differences a workload looks at.

    A logit in bfloat16 is rounded by a share of itself, and so a difference of two is wrong by a share of their size,
    however small it is.

    Args:
        model: The model.
        arrays: The workload's inputs.

    Returns:
        The largest absolute logit after the first of its texts, in nats; 1 if nothing in it is a difference of logits.

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> size_of_logits(toy(), make_inputs(toy(), Sizes(), "w1"))
        1.0
    """
    texts = next((arrays[name] for name in ("w3_clean", "w4_tokens", "w6_clean") if name in arrays), None)
    if texts is None:
        return 1.0
    logits, _ = run(model, texts[:1], logits="last")
    assert logits is not None
    return float(np.abs(logits).max())


def indirect_objects(model: LanguageModel, count: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Pairs of texts in which a drink is given to one of two people, and to the other one.

    Args:
        model: Whose tokenizer is used; without one, the texts are random tokens that differ in one place.
        count: Pairs.
        generator: Where chance comes from.

    Returns:
        Clean ids and corrupted ids, int [count, seq], and the right and the wrong answer, int [count, 2].

    Raises:
        ValueError: The tokenizer has too few of the names as single tokens.
    """
    if model.tokenizer is None:
        clean = generator.integers(0, model.architecture.vocabulary, (count, _RANDOM_LENGTH))
        corrupted = clean.copy()
        corrupted[:, -6] = (clean[:, -6] + 1) % model.architecture.vocabulary
        return clean, corrupted, clean[:, [3, 5]]
    encode = model.tokenizer.encode
    names = [name for name in _NAMES if len(encode(f" {name}")) == 1]
    couples = list(itertools.permutations(names, 2))
    if len(couples) < count:
        raise ValueError(f"{count} pairs of texts need more names than the {len(names)} that are single tokens here")
    chosen = [couples[place] for place in generator.permutation(len(couples))[:count]]
    texts = [[encode(_TEMPLATE.format(one=a, other=b, giver=giver)) for giver in (b, a)] for a, b in chosen]
    answers = [[encode(f" {a}")[0], encode(f" {b}")[0]] for a, b in chosen]
    both = np.asarray(texts)
    return both[:, 0], both[:, 1], np.asarray(answers)


def _random_tokens(model: LanguageModel, generator: np.random.Generator, rows: int, length: int) -> np.ndarray:
    return generator.integers(0, model.architecture.vocabulary, (rows, length)).astype(np.int32)


def _short_texts(model: LanguageModel, _: Sizes, generator: np.random.Generator) -> Arrays:
    return {
        "w1_first": _random_tokens(model, generator, 1, _RANDOM_LENGTH),
        "w1_longer": _random_tokens(model, generator, 1, _RANDOM_LENGTH + 1),
    }


def _long_texts(model: LanguageModel, sizes: Sizes, generator: np.random.Generator) -> Arrays:
    tokens = _random_tokens(model, generator, sizes.prompts, sizes.length)
    return {"w2_tokens": tokens, "w2_batch": np.asarray(min(sizes.batch, sizes.prompts))}


def _one_pair(model: LanguageModel, _: Sizes, generator: np.random.Generator) -> Arrays:
    clean, corrupted, pair = indirect_objects(model, 1, generator)
    return {"w3_clean": clean, "w3_corrupted": corrupted, "w3_pair": pair}


def _ablated_texts(model: LanguageModel, sizes: Sizes, generator: np.random.Generator) -> Arrays:
    clean, _, pair = indirect_objects(model, sizes.ablation_prompts, generator)
    return {"w4_tokens": clean, "w4_pair": pair}


def _steering(model: LanguageModel, sizes: Sizes, generator: np.random.Generator) -> Arrays:
    clean, _, _ = indirect_objects(model, 1, generator)
    layers = model.architecture.layers
    middle = layers // 2
    _, cache = run(model, clean, sites=[resid_post(middle)], logits=None)
    norm = float(np.median(np.linalg.norm(cache["resid_post", middle].astype(np.float32), axis=-1)))
    vector = generator.normal(size=model.architecture.embedding)
    spread = np.unique(np.linspace(0, layers - 1, sizes.grid_layers + 2).round().astype(int)[1:-1])
    return {
        "w5_tokens": clean[:, :11],
        "w5_vector": (norm * vector / np.linalg.norm(vector)).astype(np.float32),
        "w5_layer": np.asarray(middle),
        "w5_scale": np.asarray(sizes.grid_scales[len(sizes.grid_scales) // 2], np.float32),
        "w5_layers": spread,
        "w5_scales": np.asarray(sizes.grid_scales, np.float32),
        "w5_new": np.asarray(sizes.new_tokens),
    }


def _pairs(model: LanguageModel, sizes: Sizes, generator: np.random.Generator) -> Arrays:
    clean, corrupted, pair = indirect_objects(model, sizes.pairs, generator)
    return {"w6_clean": clean, "w6_corrupted": corrupted, "w6_pair": pair, "w6_steps": np.asarray(sizes.steps)}


def _probing(model: LanguageModel, sizes: Sizes, generator: np.random.Generator) -> Arrays:
    """Residuals of random texts, standardised, and whether each token has occurred before in its text."""
    length = min(sizes.length, model.architecture.context)
    rows = -(-2 * sizes.examples // length)
    alphabet = generator.choice(model.architecture.vocabulary, min(64, model.architecture.vocabulary), replace=False)
    tokens = generator.choice(alphabet, (rows, length)).astype(np.int32)
    repeated = [[token in row[:place] for place, token in enumerate(row)] for row in tokens.tolist()]
    labels = np.asarray(repeated).reshape(-1)[: 2 * sizes.examples]
    _, cache = run(model, tokens, sites=[embed(), resid_post()], logits=None, batch_size=8)
    streams = [cache["embed", None], *(cache["resid_post", layer] for layer in range(model.architecture.layers))]
    parts = [stream.reshape(-1, stream.shape[-1])[: len(labels)] for stream in streams]
    features = np.stack([part.astype(np.float32) for part in parts])
    train, test = features[:, : sizes.examples], features[:, sizes.examples :]
    middle, spread = train.mean(axis=1, keepdims=True), train.std(axis=1, keepdims=True) + 1e-6
    return {
        "w7_train": (train - middle) / spread,
        "w7_train_labels": labels[: sizes.examples],
        "w7_test": (test - middle) / spread,
        "w7_test_labels": labels[sizes.examples :],
    }


def _embeddings(model: LanguageModel, sizes: Sizes, _: np.random.Generator) -> Arrays:
    points = np.asarray(model.weights()["W_E"], np.float32)[: sizes.tokens or None]
    squares = (points * points).sum(axis=1)
    nearest = []
    for first in range(0, len(points), _BLOCK):
        distances = squares - 2 * points[first : first + _BLOCK] @ points.T
        rows = np.arange(len(distances))
        distances[rows, first + rows] = np.inf
        nearest.append(np.argpartition(distances, sizes.neighbours, axis=1)[:, : sizes.neighbours])
    indices = np.concatenate(nearest).astype(np.int32)
    return {"w8_points": points, "w8_indices": indices, "w8_neighbours": np.asarray(sizes.neighbours)}


_MAKERS = {
    "w1": _short_texts,
    "w2": _long_texts,
    "w3": _one_pair,
    "w4": _ablated_texts,
    "w5": _steering,
    "w6": _pairs,
    "w7": _probing,
    "w8": _embeddings,
}

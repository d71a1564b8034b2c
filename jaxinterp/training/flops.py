"""What a training step has to compute, and how much of what a device can do that is."""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.models.architecture import Architecture
from jaxinterp.training.packing import Rows

_PEAKS = {
    "H100 80GB HBM3": {"bfloat16": 989e12, "float32": 494e12},
    "H200": {"bfloat16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
}
"""Operations per second of the makers' data sheets, without sparsity; float32 on GPUs as JAX multiplies it, in TF32."""
_WIDTH = 1024


def training_flops(architecture: Architecture, tokens: int, seen: int) -> float:
    r"""What the forward and the backward pass of some predictions need.

    Each weight of a matrix takes a multiplication and an addition a token, and each key that a query sees four
    operations a number (two for its score, two to mix its value); the backward pass needs twice as much:

    $$3 \left(2 n (W L + d V) + 4 h p L s\right)$$

    with $W$ weights in a block's matrices, $L$ layers, embedding $d$, vocabulary $V$, and $h$ heads of $p$ numbers.
    Norms, rotations, softmax, nonlinearities, and what an implementation does beyond it, such as padding, keys of other
    documents or a second forward pass to save memory, are left out.

    Args:
        architecture: What the model is made of.
        tokens: $n$, predictions.
        seen: $s$, keys that their queries see, added up; see `size`.

    Returns:
        Operations.

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> training_flops(toy(num_hidden_layers=1).architecture, tokens=1, seen=1) == 6 * (7680 + 32 * 101) + 12 * 32
        True
    """
    a = architecture
    matrices = sum(math.prod(sizes.values()) for name, sizes in a.block_weights().items() if name.startswith("W_"))
    products = 2 * tokens * (matrices * a.layers + a.embedding * a.vocabulary)
    return 3.0 * (products + 4 * a.heads * a.projection * a.layers * seen)


def size(rows: np.ndarray | Rows) -> tuple[int, int]:
    """How many predictions some rows hold, and how many keys their queries see.

    Args:
        rows: Int [row, length + 1], or rows of whole documents, in which padding counts for nothing.

    Returns:
        Both numbers, added up.

    >>> size(np.zeros((2, 4), int))
    (6, 12)
    """
    if isinstance(rows, np.ndarray):
        length = rows.shape[1] - 1
        return len(rows) * length, len(rows) * length * (length + 1) // 2
    documents = rows.documents[:, :-1].astype(np.int64)
    numbered = documents + np.arange(len(documents))[:, None] * (documents.max(initial=0) + 1)
    lengths = np.bincount(numbered[documents > 0])
    return int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())


def peak(dtype: str) -> tuple[float, str]:
    """What the device can do at most.

    Args:
        dtype: Of the products, `"float32"` or `"bfloat16"`.

    Returns:
        Operations per second of one device, and where the number is from: the maker, for devices that are known here,
        or else a product of two matrices of 1024 x 1024, the best of five.
    """
    device = jax.devices()[0]
    for name, known in _PEAKS.items():
        if name in device.device_kind and dtype in known:
            return known[dtype], f"the maker's number for {device.device_kind} in {dtype}"
    multiply = jax.jit(jnp.matmul)
    square = jnp.ones((_WIDTH, _WIDTH), dtype)
    multiply(square, square).block_until_ready()
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        multiply(square, square).block_until_ready()
        taken.append(time.perf_counter() - began)
    return 2 * _WIDTH**3 / min(
        taken
    ), f"measured with products of 1024 x 1024 matrices in {dtype} on this {device.platform}"

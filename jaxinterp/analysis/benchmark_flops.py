"""Floating-point operations that the plain forward passes of a benchmark need, whoever makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from jaxinterp.models.architecture import Architecture


def forward_flops(architecture: Architecture, rows: int, length: int) -> float:
    r"""What forward passes that read out each text's last token need.

    Each weight of the blocks' matrices takes a multiplication and an addition a token; a query of $p$ numbers takes
    $2 p$ operations for each key that it sees, and as many to mix the values; the unembedding takes $2 d V$ a text:

    $$R \left(2 n W + 4 h p \sum_{l} \sum_{i \le n} \min(i, w_l) + 2 d V\right)$$

    with $W$ weights, $h$ heads, windows $w_l$, embedding $d$ and vocabulary $V$. Norms, rotations, softmax and
    nonlinearities are left out, and so is what an implementation does beyond it, such as padding or keys in the future.

    Args:
        architecture: What the model is made of.
        rows: $R$, texts.
        length: $n$, tokens of each.

    Returns:
        Operations.

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> forward_flops(toy(num_hidden_layers=1).architecture, rows=1, length=1) == 2 * 7680 + 4 * 32 + 2 * 32 * 101
        True
    """
    a = architecture
    matrices = sum(math.prod(sizes.values()) for name, sizes in a.block_weights().items() if name.startswith("W_"))
    seen = sum(min(place, window or place) for window in _windows(a) for place in range(1, length + 1))
    blocks = 2 * length * matrices * a.layers + 4 * a.heads * a.projection * seen
    return float(rows * (blocks + 2 * a.embedding * a.vocabulary))


def task_flops(architecture: Architecture, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The same for the tasks that are nothing but forward passes, whoever does them: the first two workloads.

    Of the others, sweeps above all, an implementation is good that does less than the plain passes would need, so that
    a share of the device's speed would say little; they are left out.

    Args:
        architecture: What the model is made of.
        arrays: A workload's inputs.

    Returns:
        Task -> operations.
    """
    texts = {
        "w1_first": "w1_first",
        "w1_new_length": "w1_longer",
        "w2_residuals": "w2_tokens",
        "w2_all": "w2_tokens",
    }
    return {task: forward_flops(architecture, *arrays[name].shape) for task, name in texts.items() if name in arrays}


def _windows(architecture: Architecture) -> tuple[int | None, ...]:
    return architecture.windows or (None,) * architecture.layers

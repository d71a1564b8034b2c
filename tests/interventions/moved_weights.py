"""Models with low-rank edits of which no number is zero."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.interventions.lora import lora, lora_numbers, with_lora_numbers
from jaxinterp.models.low_rank import MATRICES


def moved(model, *targets, layers=None, rank=2, alpha=3.0, seed=5):
    """A model with low-rank edits of some weights (by default all that there can be) with random numbers."""
    own = [name for name in MATRICES if name in model.architecture.block_weights()]
    edited = lora(model, targets or own, layers, rank=rank, alpha=alpha, key=jax.random.key(0))
    random = np.random.default_rng(seed)

    def draw(array):
        return jnp.asarray(0.25 * random.normal(size=array.shape), jnp.float32)

    return with_lora_numbers(edited, jax.tree.map(draw, lora_numbers(edited)))

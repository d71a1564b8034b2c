"""Steering: a vector added to the stream."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from penzai import pz

from jaxinterp.interventions.edit import Edit, NamedArray, attach_edits, find_places, named_over
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import Positions, everywhere
from jaxinterp.sites.selectors import Site


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class Steer(Edit):
    """Adds `scale * vector`.

    Attributes:
        vector: Over axes of the site, possibly with a batch axis for another vector in each row.
        scale: Scalar, or [batch].
    """

    vector: NamedArray
    scale: NamedArray

    def edited(self, value: NamedArray, **_: Any) -> NamedArray:
        """See `Edit.edited`."""
        return value + (self.scale * self.vector).astype(value.dtype)


def steer(
    model: LanguageModel, site: Site, vector: Any, scale: Any = 1.0, at: Positions | None = None
) -> LanguageModel:
    """Adds a vector wherever a site is passed.

    Args:
        model: The model; it stays as it is.
        site: Where, for instance `ji.resid_post(12)`; with several layers the same vector goes to each.
        vector: [embedding] (or the last axes of the site), or [batch, embedding] for another one in each row.
        scale: Factor; a number, or [batch].
        at: At which tokens; by default all.

    Returns:
        The steered model. Another vector, scale or layer compiles nothing new.

    Raises:
        ValueError: The site does not exist or the vector does not fit it.
    """
    factor = jnp.asarray(scale, jnp.float32)
    named_scale = pz.nx.wrap(factor, *(("batch",) if factor.ndim else ()))
    return attach_edits(
        model,
        find_places(model, [site]),
        lambda place: Steer(
            place.selected, at or everywhere(), named_over(model, place, vector, "vector"), named_scale
        ),
    )

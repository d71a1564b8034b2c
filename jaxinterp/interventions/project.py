"""Projection of the stream out of, or onto, a subspace."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.interventions.edit import (
    Edit,
    NamedArray,
    Place,
    attach_edits,
    find_places,
    site_axes,
)
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import Positions, everywhere
from jaxinterp.sites.selectors import Site


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class Project(Edit):
    """Removes the component in a subspace, or everything but it.

    Attributes:
        basis: Orthonormal rows, [component, ...last axis of the site].
        onto: Whether the subspace is what remains.
    """

    basis: NamedArray
    onto: bool = dataclasses.field(default=False, metadata={"pytree_node": False})

    def edited(self, value: NamedArray, **_: Any) -> NamedArray:
        """See `Edit.edited`."""
        (axis,) = (str(name) for name in self.basis.named_shape if name != axes.COMPONENT)
        basis = self.basis.astype(value.dtype)
        inside = pz.nn.contract(axes.COMPONENT, pz.nn.contract(axis, value, basis), basis)
        return inside if self.onto else value - inside


def project(
    model: LanguageModel, site: Site, basis: Any, onto: bool = False, at: Positions | None = None
) -> LanguageModel:
    """Projects a site's array out of a subspace, or onto it.

    With orthonormal rows `b_i` spanning the rows of `basis`, `x` becomes `x - sum_i (x . b_i) b_i`, or that sum
    itself with `onto`.

    Args:
        model: The model; it stays as it is.
        site: Where; the projection acts on the last axis of the site.
        basis: [component, embedding] (or another last axis), or one direction [embedding]; any independent vectors.
        onto: Whether the subspace is what remains instead of what goes.
        at: At which tokens; by default all.

    Returns:
        The edited model.

    Raises:
        ValueError: The site does not exist, or the basis has the wrong width or dependent rows.
    """
    rows = np.atleast_2d(np.asarray(basis, np.float64))

    def make(place: Place) -> Edit:
        axis = site_axes(place)[-1]
        width = model.architecture.axis_sizes().get(axis)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"basis has shape {list(np.shape(basis))}; at {place.address[0]} it needs rows of {width}")
        orthonormal, triangle = np.linalg.qr(rows.T)
        if len(rows) > rows.shape[1] or np.abs(np.diag(triangle)).min() < 1e-10 * np.abs(triangle).max():
            raise ValueError("the rows of the basis are linearly dependent; remove the redundant ones")
        named = pz.nx.wrap(jnp.asarray(orthonormal.T, jnp.float32), axes.COMPONENT, axis)
        return Project(place.selected, at or everywhere(), named, onto)

    return attach_edits(model, find_places(model, [site]), make)

"""The usual grids of a sweep: one site at every layer, with every head of it or at every token."""

from __future__ import annotations

from jaxinterp import axes
from jaxinterp.activations.sweep import Cell, grid
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.patch import patch
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites import selectors
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import at
from jaxinterp.sites.selectors import Site


def site_named(name: str, *layers: int) -> Site:
    """A site by its name, at some layers or at all.

    Raises:
        ValueError: There is no such site in a block.
    """
    known = [site for site in axes.SITES if site not in axes.UNLAYERED and hasattr(selectors, site)]
    if name not in known:
        raise ValueError(f"there is no site {name!r} in a block; choose head or one of {', '.join(known)}")
    return getattr(selectors, name)(*(layers or (...,)))


def ablations(model: LanguageModel, what: str) -> list[Cell]:
    """Cells that take one thing out of a model each.

    Args:
        model: The model.
        what: `"head"` for every head of every layer, or a site, such as `"mlp_out"`, at every layer.

    Returns:
        Cells labelled `layer`, and `head` if these are heads.

    Raises:
        ValueError: There is no such site.

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> len(ablations(toy("llama"), "head")), len(ablations(toy("llama"), "mlp_out"))
        (12, 3)
    """
    layers = range(model.architecture.layers)
    if what == "head":
        heads = range(model.architecture.heads)
        return grid(lambda lm, layer, head: ablate(lm, selectors.head(layer, head)), layer=layers, head=heads)
    site_named(what)
    return grid(lambda lm, layer: ablate(lm, site_named(what, layer)), layer=layers)


def patches(model: LanguageModel, what: str, cache: Cache) -> list[Cell]:
    """Cells that put what one token of other texts has at a site in place of the model's own.

    Args:
        model: The model.
        what: A site, such as `"resid_pre"`.
        cache: A run on the other texts that has read it.

    Returns:
        Cells labelled `layer` and `position`, which counts back from the end of each text: 1 is its last token.

    Raises:
        ValueError: There is no such site.
    """
    site_named(what)
    longest = cache.mask.shape[1]
    return grid(
        lambda lm, layer, position: patch(lm, site_named(what, layer), cache, at=at(-position)),
        layer=range(model.architecture.layers),
        position=range(1, longest + 1),
    )

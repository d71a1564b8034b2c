"""Activation patching: activations of another run put in place of the model's own."""

from __future__ import annotations

from jaxinterp.interventions.interchange import PositionPairs, interchange
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import Positions
from jaxinterp.sites.selectors import Site


def patch(
    model: LanguageModel,
    site: Site,
    cache: Cache,
    at: Positions | None = None,
    positions: PositionPairs | None = None,
) -> LanguageModel:
    """Puts activations of another run in place of the model's own.

    Row `i` of a batch takes from row `i` of the cache. It is `jaxinterp.interventions.interchange.interchange` of the
    whole space.

    Args:
        model: The model; it stays as it is.
        site: Where, with heads or units if only those are exchanged.
        cache: The other run, which has read this site.
        at: At which tokens; by default all.
        positions: (position in this text, position in the other) pairs, or int [batch, choice, 2] for other pairs in
            each row; negative ones count from the end of their own text. By default each token takes from the same
            position, and tokens beyond the other text's end keep their own.

    Returns:
        The patched model.

    Raises:
        ValueError: The site does not exist or was not read, or a position lies outside the other text.
    """
    return interchange(model, site, cache, at=at, positions=positions)

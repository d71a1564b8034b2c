"""Mechanistic interpretability in JAX: models as trees, edits as data.

Examples:
    >>> import jaxinterp as ji
    >>> lm = ji.load("builtin:countdown-6m-grpo")
    >>> blind = ji.ablate(lm, ji.head(4, 5))
    >>> logits, acts = ji.run(blind, ["Using the numbers [3, 4], "], sites=[ji.resid_post(2)])
    >>> acts["resid_post", 2].shape
    (1, 8, 256)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

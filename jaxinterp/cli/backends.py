"""Where jax computes, and whether that is where it should: it falls back to the CPU without an error."""

from __future__ import annotations

import ctypes
import sys

from jaxinterp.cli.arguments import say

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of settings in glibc's malloc.h
_LARGEST = 2**31 - 1

_PLATFORMS = {"cuda12": "gpu", "cuda13": "gpu", "tpu": "tpu"}
"""Accelerator of an image -> the backend that it is for."""


def require(backend: str) -> None:
    """Refuses to go on elsewhere.

    Args:
        backend: "cpu", "gpu" or "tpu".

    Raises:
        ValueError: jax computes on another backend.
    """
    found = _found()
    if found != backend:
        raise ValueError(
            f"--require-backend {backend}: jax computes on {found}. Install jax[cuda13] or jax[tpu]; the job has to "
            "ask for the device, the container has to be given it, and JAX_PLATFORMS may not exclude it"
        )


def warn_of_fallback() -> None:
    """Says so if this image is for an accelerator and jax computes on the CPU."""
    from jaxinterp import artefacts

    accelerator = (artefacts.image() or {}).get("accelerator", "cpu")
    if accelerator in _PLATFORMS and _found() == "cpu":
        say(
            f"WARNING: this image is for {accelerator}, and jax finds none and computes on the CPU; "
            f"jaxinterp --require-backend {_PLATFORMS[accelerator]} VERB makes that an error"
        )


def reuse_freed_memory() -> bool:
    """Has glibc keep what jax frees on a CPU, where there is such a thing.

    Otherwise every large array is made of pages that the system has to clear first, which takes a tenth of the time of
    a sweep. The process holds about as much as it did at its peak until it ends.

    Returns:
        Whether it does.
    """
    if _found() != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def _found() -> str:
    import jax

    try:
        return jax.default_backend()
    except RuntimeError as error:
        raise ValueError(f"jax finds no device: {str(error).splitlines()[0]}") from error

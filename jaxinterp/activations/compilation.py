"""Compiled programs are kept on disk, so that a second process need not compile them again."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import platformdirs

_MOST = 2 << 30
"""Bytes that the kept programs may take; the least recently used go first."""


@functools.cache
def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, unless it has been configured already.

    `JAX_COMPILATION_CACHE_DIR` says where, `JAX_ENABLE_COMPILATION_CACHE=false` says no.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    folder = Path(platformdirs.user_cache_dir("jaxinterp")) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

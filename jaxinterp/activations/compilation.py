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
    drop_untimed(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def drop_untimed(folder: Path) -> None:
    """Removes kept programs of which it is not known when they were last used.

    A process that was killed leaves them, or one that sets no limit; JAX could then neither remove nor add any other.

    Args:
        folder: Where the programs are kept.
    """
    for entry in folder.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink(missing_ok=True)

import functools
import os
import tempfile
from pathlib import Path

# Set before anything imports jax: the CPU, and one folder of compiled programs for all workers and subprocesses.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "jaxinterp-tests-compiled"))

import gguf
import hypothesis
import jax
import numpy as np
import pytest

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Lets go of what a module compiled, so that two workers fit into the memory of a small machine."""
    yield
    jax.clear_caches()


@pytest.fixture
def reference_reader(monkeypatch):
    """A function that opens a large GGUF file once for all that transformers does with it, and returns the reader.

    Most of the minute that transformers takes for a vocabulary of 262,144 tokens is Python's work for slices of a
    memory map, and for tables of tensor names that it makes anew for every submodule. Here the slices are of a plain
    array, which holds the same bytes, and a table is kept.
    """

    def opened(path: Path) -> gguf.GGUFReader:
        with monkeypatch.context() as within:
            within.setattr(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8))
            reader = gguf.GGUFReader(path)
        monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        monkeypatch.setattr(gguf, "GGUFReader", {str(path): reader}.__getitem__)
        return reader

    return opened

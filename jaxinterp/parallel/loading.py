"""Weights from disk straight into their places on a mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxinterp.models import language_model
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel import mesh as meshes
from jaxinterp.parallel.rules import weight_shardings


def load_sharded(
    source: str | Path, mesh: meshes.Layout, dtype: Any = "float32", revision: str | None = None
) -> LanguageModel:
    """Loads a model onto a mesh.

    Of each tensor a process reads the parts that its own devices hold, one at a time, so that its host never has more
    in memory than those and one part more. (Of a GGUF file it is those and one whole tensor.)

    Args:
        source: As in `jaxinterp.load`; every host has to reach it.
        mesh: A line such as `"fsdp=2,tensor=4"`, a `Mesh`, or a mesh of JAX that `Mesh.arrange` made.
        dtype: Dtype of every weight, as in `jaxinterp.load`.
        revision: Revision of a hub model.

    Returns:
        The same model as `shard(load(source, dtype, revision), mesh)`.

    Raises:
        ValueError: As in `jaxinterp.load` and `jaxinterp.shard`.
    """
    laid_out = meshes.arrange(mesh)
    return language_model.load(
        source, dtype, revision, place=lambda architecture: weight_shardings(architecture, laid_out)
    )

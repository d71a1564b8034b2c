"""Verbs about whole vocabularies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from jaxinterp.cli.arguments import Model, load_model, say


def neighbours(
    model: Model,
    /,
    *,
    output: Path,
    table: Literal["W_E", "W_U"] = "W_E",
    count: int = 10,
    dimension_count: int = 100,
    metric: Literal["cosine", "euclidean"] = "cosine",
    threshold: float = 0.95,
    trained: bool = False,
    block: int = 2048,
    blocks: int | None = None,
    memory: float = 0.25,
) -> None:
    """Find every token's neighbours, the weights that rebuild it from them, and its intrinsic dimension.

    Works in blocks of tokens on all devices there are; a run that was ended goes on when it is started again.

    Args:
        model: The model.
        output: The folder to make: a file for each block, and a manifest.
        table: "W_E", the embedding, or "W_U", the unembedding.
        count: Neighbours from which a token is rebuilt.
        dimension_count: Neighbours whose intrinsic dimension is found; 0 for none.
        metric: "cosine" or "euclidean".
        threshold: Share of the neighbours' variance that the counted components explain.
        trained: Whether to leave out tokens that were never trained, whose rows are zero or equal to another's.
        block: Tokens in a file.
        blocks: The most blocks to do now.
        memory: GiB that each device may take besides three copies of the table.
    """
    import numpy as np

    from jaxinterp.analysis import vocabulary_blocks
    from jaxinterp.tasks.vocabularies import trained_rows

    lm = load_model(model)
    rows, source = np.asarray(lm.token_table(table), np.float32), lm.source
    del lm
    tokens = np.flatnonzero(trained_rows(rows)) if trained else np.arange(len(rows))
    settings = vocabulary_blocks.Settings(
        neighbours=count, dimension_neighbours=dimension_count, metric=metric, threshold=threshold
    )
    say(f"{count} neighbours of {len(tokens)} tokens, {rows.shape[1]} wide, in {output}")
    started = time.monotonic()
    manifest = vocabulary_blocks.measure_vocabulary(
        rows[tokens] if trained else rows,
        output,
        settings,
        source=f"{source}, {table}",
        tokens=tokens,
        block=block,
        blocks=blocks,
        memory=int(memory * 2**30),
    )
    held = sum(end - first for first, end in (entry["rows"] for entry in manifest["blocks"]))
    rest = "" if manifest["complete"] else "; the same command goes on"
    say(f"{held} of {len(tokens)} tokens after {time.monotonic() - started:.0f} s{rest}")

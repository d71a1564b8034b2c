"""Verbs that plan for a Cloud TPU, without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxinterp.cli.arguments import Many


def plan(
    source: Annotated[Positional[str], arg(metavar="SHAPE")],
    /,
    *,
    topology: str = "v5e:2x4",
    workload: Literal["forward", "edited_forward", "generate", "patch_sweep", "train"] = "forward",
    mesh: str | None = None,
    dtype: str = "bfloat16",
    rows: int = 16,
    seq: int = 512,
    new: int = 128,
    output: Path | None = None,
) -> None:
    """Compile a workload for a Cloud TPU slice, without a TPU and without weights, and say what it takes.

    Args:
        source: A config.json, a folder that holds one, or a shape that ships with the package, such as
            shape:qwen2.5-3b and shape:llama-3-8b.
        topology: The slice: generation and chips, such as v5e:4x4, v6e:2x2 or v5p:2x2x1.
        workload: What is run: a pass that reads the residual stream, the same under edits of every block, generation,
            a sweep that patches every layer and position, or a training step.
        mesh: How chips share the work, such as "data=2,tensor=4"; by default chosen from the sizes.
        dtype: Of the weights: "float32" or "bfloat16".
        rows: Texts.
        seq: Tokens in each text.
        new: Tokens that are generated behind each.
        output: The table to write as well (.parquet, with a .csv beside it, or .json).
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Before jax starts: planning needs no accelerator.
    from jaxinterp import artefacts
    from jaxinterp.analysis.plans import plan as planning
    from jaxinterp.config import as_dict

    asked = planning.Settings(workload=workload, topology=topology, mesh=mesh, dtype=dtype, rows=rows, seq=seq, new=new)
    table = planning.measure(source, asked)
    if output is not None:
        origin = artefacts.provenance(as_dict(asked), [source])
        if output.suffix == ".json":
            artefacts.write_json({"provenance": origin, "rows": table.to_dicts()}, output)
        else:
            artefacts.write_table(table, output, origin)
    print(planning.describe(table))


def plan_table(*, plan: Many, output: Path) -> None:
    """Put plans together as one table, and print it for a page.

    Args:
        plan: A table that `plan` wrote (.parquet); repeat for several.
        output: The table to write (.parquet; a .csv appears beside it).
    """
    from jaxinterp import artefacts
    from jaxinterp.analysis.plans import summary

    tables, origins = zip(*map(artefacts.read_table, plan), strict=True)
    table = summary.summarise(tables)
    sources = list(dict.fromkeys(source for origin in origins for source in origin["models"]))
    asked = {"plans": [origin["config"] for origin in origins]}
    artefacts.write_table(table, output, artefacts.provenance(asked, sources))
    print(summary.markdown(table), end="")

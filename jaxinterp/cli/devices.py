"""Verbs for many devices: sweep a model on a mesh, say what each process holds, and check that all work as one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from jaxinterp.cli.arguments import Model, join_processes, load_model, say


def sweep(
    model: Model,
    /,
    *,
    prompts: Path,
    output: Path,
    right: str,
    wrong: str | None = None,
    ablate: str | None = None,
    patch: str | None = None,
    corrupted: Path | None = None,
    folder: Path | None = None,
    dtype: str = "float32",
    mesh: str | None = None,
    distributed: bool = False,
) -> None:
    """Measure what each of many edits does to an answer, on one device, many, or many hosts.

    Ended and started again with the same flags, it goes on where it was.

    Args:
        model: The model.
        prompts: A text file with one prompt a line.
        output: The table to write (.parquet; a .csv appears beside it).
        right: The token after the prompt whose logit is measured.
        wrong: A token whose logit is subtracted; without it, the log-probability of the right one is measured.
        ablate: What to take out, one at a time: "head", or a site such as "mlp_out" at every layer.
        patch: A site such as "resid_pre", at every layer and token, to be replaced by what it is in the corrupted text.
        corrupted: For patches, a text file with the other text of each prompt, a line for each.
        folder: Where finished blocks are kept; by default beside the output. All processes have to reach it.
        dtype: Of the weights.
        mesh: How devices take part, such as "sweep=2,tensor=4"; by default each device takes some of the edits.
        distributed: Whether this is one of several processes that do it together, as srun starts them.
    """
    if (ablate is None) == (patch is None) or (patch is None) != (corrupted is None):
        raise ValueError("give either --ablate, or --patch together with --corrupted")
    mesh = join_processes(mesh, distributed)
    import jaxinterp as ji
    from jaxinterp import artefacts
    from jaxinterp.activations import site_cells
    from jaxinterp.parallel.placement import first_process

    lm = load_model(model, dtype, mesh)
    texts = _lines(prompts)
    metric = ji.log_prob(right) if wrong is None else ji.logit_diff(right, wrong)
    others = None
    if corrupted is not None and patch is not None:
        others = _lines(corrupted)
        _, cache = ji.run(lm, others, sites=[site_cells.site_named(patch)], logits=None)
        cells = site_cells.patches(lm, patch, cache)
    else:
        cells = site_cells.ablations(lm, str(ablate))
    started = time.monotonic()
    say(f"sweeping {len(cells)} edits of {len(texts)} prompts on {mesh or 'this machine'}")
    place = folder or output.with_name(f"{output.stem}-blocks")
    table = ji.sweep(lm, texts, cells, metric, corrupted=others, folder=place)
    if first_process():
        asked = {"ablate": ablate, "patch": patch, "right": right, "wrong": wrong, "mesh": mesh, "dtype": dtype}
        artefacts.write_table(table, output, artefacts.provenance(asked, models=[lm.source]))
        say(f"{table.height} rows in {time.monotonic() - started:.0f} s -> {output}")


def placement(
    model: Model,
    /,
    *,
    mesh: str,
    output: Annotated[Path | None, arg(metavar="PATH")] = None,
    dtype: str = "float32",
    distributed: bool = False,
) -> None:
    """Read a model onto a mesh, and say what each process holds of it and how much host memory that took.

    Args:
        model: The model.
        mesh: How devices take part, such as "fsdp=2,tensor=4".
        output: A file for the same as JSON.
        dtype: Of the weights.
        distributed: Whether this is one of several processes that do it together, as srun starts them.
    """
    asked = join_processes(mesh, distributed)
    import jax

    from jaxinterp import artefacts
    from jaxinterp.parallel import processes
    from jaxinterp.parallel.placement import first_process

    jax.block_until_ready(jax.numpy.zeros(8) + 1)
    before, _ = processes.resident()
    started = time.monotonic()
    lm = load_model(model, dtype, asked)
    jax.block_until_ready(lm.body)
    seconds = time.monotonic() - started
    _, most = processes.resident()
    rows = processes.compare(lm, **processes.held(lm), peak=most - before, seconds=seconds)
    if not first_process():
        return
    for row in rows:
        print(
            f"process {row['process']}: {row['devices']} devices hold {row['held']:.1f} MiB; read {row['read']:.1f} of "
            f"{row['whole']:.1f} MiB in {row['seconds']:.1f} s; host memory grew by {row['peak']:.1f} MiB at most"
        )
    if output is not None:
        origin = artefacts.provenance({"mesh": mesh, "dtype": dtype}, models=[lm.source])
        artefacts.write_json({"processes": rows, "provenance": origin}, output)


def distributed_check(
    *, output: Path, model: str = "builtin:countdown-6m-grpo", mesh: str | None = None, alone: bool = False
) -> None:
    """Check that the processes of a job work as one: an edited model on all of them gives what it gives on one device.

    Args:
        output: The record to write (.json): the hosts, what each process holds, and the largest difference.
        model: The model, which has to fit on one device.
        mesh: How devices take part; by default two share a model, if there is an even number.
        alone: Whether this is the only process.
    """
    join_processes(None, distributed=not alone)
    import jax
    import numpy as np

    import jaxinterp as ji
    from jaxinterp import artefacts
    from jaxinterp.parallel import processes
    from jaxinterp.parallel.placement import first_process

    count = len(jax.devices())
    asked = mesh or (f"data={count // 2},tensor=2" if count % 2 == 0 else f"data={count}")
    tokens = np.random.default_rng(0).integers(0, 8, (2, 12))
    found = []
    for lm in (load_model(model), load_model(model, mesh=asked)):
        edited = ji.ablate(lm, ji.head(0, 0))
        written = ji.generate_tokens(edited, tokens, 4, keep_logits=True)
        found.append((ji.run(edited, tokens)[0], written.logits))
    error = max(float(np.abs(here - there).max()) for here, there in zip(*found, strict=True))
    rows = processes.compare(lm, **processes.held(lm))
    hosts = processes.hosts(lm)
    if not first_process():
        return
    origin = artefacts.provenance({"mesh": asked}, models=[lm.source])
    record = {"error": error, "hosts": hosts, "processes": rows, "local_devices": jax.local_device_count()}
    artefacts.write_json(record | origin, output)
    say(f"{len(rows)} processes on {', '.join(hosts)} as {asked} differ from one device by {error:.1e} at most")


def _lines(file: Path) -> list[str]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file} is empty; write one prompt a line")
    return lines

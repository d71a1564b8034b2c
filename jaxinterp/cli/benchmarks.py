"""Verbs that measure speed and memory."""

from __future__ import annotations

import os
from pathlib import Path

from jaxinterp.cli.arguments import Many, Model, load_model


def bench(model: Model, /, *, output: Path) -> None:
    """Measure reading, editing, compiling and generating, next to transformers where that is installed.

    Args:
        model: The model.
        output: The table to write (.parquet; a .csv appears beside it).
    """
    from jaxinterp import artefacts
    from jaxinterp.analysis import speed

    table = speed.measure(model)
    artefacts.write_table(table, output, artefacts.provenance(models=[model]))
    for row in table.iter_rows(named=True):
        limit = "" if row["limit"] is None else f"  (limit {row['limit']:.4g}: {'kept' if row['kept'] else 'NOT KEPT'})"
        print(f"{row['measurement']}: {row['value']:.4g} {row['unit']}{limit}")


def benchmark(
    model: Model,
    /,
    *,
    workers: Path,
    output: Path,
    environments: Path | None = None,
    config: str = "{}",
    task: Many = (),
) -> None:
    """Do the same work with this package and with its peers, in turn, and write what each needed.

    Args:
        model: A Hugging Face folder, such as `export` and `random-model` write.
        workers: The folder of the peers' scripts; workflows/peers in a checkout.
        output: The table to write (.parquet; a .csv appears beside it).
        environments: The folder of the peers' virtual environments, made by `snakemake benchmarks`; without it all
            peers run in the present environment.
        config: Settings as JSON, or the path of a YAML or JSON file, a workflow's configuration among them; see
            workflows/schemas/benchmarks.schema.json.
        task: A task or a workload to do instead of the settings' own, such as "w3"; repeat for several.
    """
    # Before jax starts: a process that merely prepares inputs shall not take most of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from jaxinterp import artefacts
    from jaxinterp.analysis import benchmark as bench
    from jaxinterp.config import as_dict, load_config, read_settings

    given = read_settings(config)
    given = given["benchmarks"].get("config", {}) if "benchmarks" in given else given
    given |= {"tasks": list(task)} if task else {}
    settings = load_config(bench.Settings, given, where="benchmarks")
    launches = bench.find_launches(settings, workers, environments)
    table = bench.measure(Path(model), launches, settings)
    artefacts.write_table(table, output, artefacts.provenance(as_dict(settings), [model], settings.sizes.seed))


def benchmark_figure(*, table: Path, output: Path) -> None:
    """Draw the benchmark's figure from its table.

    Args:
        table: What `benchmark` wrote.
        output: The figure to write (.svg).
    """
    from jaxinterp import artefacts
    from jaxinterp.figures import benchmark as drawing

    frame, origin = artefacts.read_table(table)
    artefacts.write_figure(drawing.draw(frame), output, origin)


def benchmark_sampling(model: Model, /, *, output: Path, rows: int = 16, new: int = 64, repeats: int = 2) -> None:
    """Measure how quickly responses are drawn in training, beside a loop that reads the whole text for every token.

    Args:
        model: A model that plays CountDown.
        output: The table to write (.parquet; a .csv appears beside it).
        rows: Problems in the batch, from those that ship with the package.
        new: Most tokens of a response.
        repeats: Timed repeats, of which the quickest counts.
    """
    from jaxinterp import artefacts
    from jaxinterp.models.nnx import Decoder
    from jaxinterp.tasks.countdown import eval_problems
    from jaxinterp.training import sampling_speed
    from jaxinterp.training.practice import row_width
    from jaxinterp.training.sampling import pad_left

    loaded = load_model(model)
    prompts = [loaded.require_tokenizer().encode(problem.prompt) for problem in eval_problems()[:rows]]
    decoder = Decoder.from_weights(loaded.architecture, loaded.weights())
    table = sampling_speed.measure(decoder, *pad_left(prompts, row_width(prompts), 0), new, repeats)
    artefacts.write_table(table, output, artefacts.provenance({"rows": rows, "new": new}, [model]))
    for row in table.iter_rows(named=True):
        print(f"{row['way']}: {row['tokens_per_second']:,.0f} tokens/s ({row['tokens']} in {row['seconds']:.2f} s)")

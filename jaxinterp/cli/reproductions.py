"""Verbs about experiments: run, draw, check, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from jaxinterp.cli.arguments import Experiment, Pairs, join_processes, load_model, say, split_pairs


def experiments() -> None:
    """List the experiments."""
    from jaxinterp import experiments as package

    for name in package.names():
        module = package.find(name)
        print(f"{name:<12} {(module.__doc__ or '').strip().splitlines()[0]}")


def run(
    experiment: Experiment,
    /,
    *,
    output: Path,
    model: Pairs = (),
    config: str = "{}",
    input: Pairs = (),  # noqa: A002
    arrays: Path | None = None,
    dtype: str = "float32",
    mesh: str | None = None,
    distributed: bool = False,
) -> None:
    """Run an experiment and write its table.

    Args:
        experiment: Its name; `jaxinterp experiments` lists them.
        output: The table to write (.parquet; a .csv appears beside it).
        model: ROLE=MODEL, for each role that the experiment reads; MODEL may be a folder that `fetch` made.
        config: Settings as JSON, or the path of a YAML or JSON file; see `jaxinterp schema`.
        input: NAME=PATH of a table (.parquet) or arrays (.safetensors) that another experiment made.
        arrays: Where to write the experiment's arrays, if it makes any (.safetensors).
        dtype: Of the weights: "float32", or "bfloat16" for a model that is too large otherwise.
        mesh: How the devices share each model, such as "data=2,tensor=4"; by default it is on one.
        distributed: Whether this is one of several processes that do it together, as srun starts them; the first one
            writes.
    """
    mesh = join_processes(mesh, distributed)
    from inspect import signature

    from jaxinterp import artefacts, experiments
    from jaxinterp.cli.backends import reuse_freed_memory
    from jaxinterp.config import as_dict, load_config, read_settings
    from jaxinterp.parallel.placement import first_process

    reuse_freed_memory()
    module = experiments.find(experiment)
    settings = load_config(module.Config, read_settings(config), where=experiment)
    models = {role: load_model(source, dtype, mesh) for role, source in split_pairs("--model", model).items()}
    inputs = _Inputs({name: _read_input(path) for name, path in split_pairs("--input", input).items()})
    say(f"running {experiment}")
    started = time.monotonic()
    takes_inputs = "inputs" in signature(module.run).parameters
    if inputs and not takes_inputs:
        raise ValueError(f"--input: the experiment {experiment} reads nothing of others; leave the flag out.")
    result = module.run(settings, models, **({"inputs": inputs} if takes_inputs else {}))
    table, made = result if isinstance(result, tuple) else (result, None)
    origin = artefacts.provenance(as_dict(settings), models={role: lm.source for role, lm in models.items()})
    if arrays is not None and made is None:
        raise ValueError(f"--arrays {arrays}: the experiment {experiment} makes no arrays; leave the flag out.")
    if not first_process():
        return
    if arrays is not None and made is not None:
        artefacts.write_arrays(made.values, arrays, made.axes, origin)
    artefacts.write_table(table, output, origin)
    say(f"{experiment}: {table.height} rows in {time.monotonic() - started:.0f} s -> {output}")


class _Inputs(dict[str, Any]):
    """What an experiment reads of others; asking for something that was not given says how to give it."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"this experiment reads what `{name}` made: pass --input {name}=PATH.")


def _read_input(path: str) -> Any:
    """What another experiment made: its table, or its arrays by name."""
    from jaxinterp import artefacts

    reader = artefacts.read_table if path.endswith(".parquet") else artefacts.read_arrays
    return reader(path)[0]


def figure(experiment: Experiment, /, *, table: Path, output: Path) -> None:
    """Draw an experiment's figure from its table.

    Args:
        experiment: Its name.
        table: What `run` wrote.
        output: The figure to write (.svg).
    """
    from jaxinterp import artefacts, experiments

    frame, origin = artefacts.read_table(table)
    artefacts.write_figure(experiments.find(experiment).figure(frame), output, origin)


def check(experiment: Experiment, /, *, table: Path, output: Path) -> None:
    """Hold an experiment's table against the paper's claims; a claim that is not met is reported, not an error.

    Args:
        experiment: Its name.
        table: What `run` wrote.
        output: The list of claims to write (.json).
    """
    from jaxinterp import artefacts, experiments
    from jaxinterp.experiments import claims

    frame, _ = artefacts.read_table(table)
    records = claims.records(experiments.find(experiment).check(frame))
    artefacts.write_json(records, output)
    for record in records:
        say(f"{'met    ' if record['met'] else 'NOT MET'}  {record['ours']:.4g}  {record['criterion']}")


def claims(
    experiments: Annotated[Positional[tuple[str, ...]], arg(metavar="EXPERIMENT")],
    /,
    *,
    results: Path,
    output: Path,
) -> None:
    """Gather the claims of several experiments into one list.

    Args:
        experiments: Experiments, in the order wanted.
        results: The folder with one folder per experiment, each with its check.json.
        output: The list to write (.json), each claim with the experiment it is from; a Markdown table (.md) appears
            beside it.
    """
    from jaxinterp import artefacts
    from jaxinterp.experiments.claims import summarise

    gathered = [
        {"experiment": name, **record}
        for name in experiments
        for record in artefacts.read_json(results / name / "check.json")
    ]
    artefacts.write_json(gathered, output)
    artefacts.write_text(summarise(gathered) + "\n", output.with_suffix(".md"))
    say(f"{sum(record['met'] for record in gathered)} of {len(gathered)} claims met -> {output}")


def schema(experiment: Experiment, /, *, output: Path | None = None) -> None:
    """Print the JSON schema of an experiment's settings, or write it.

    Args:
        experiment: Its name, or "benchmarks".
        output: The file to write instead of printing.
    """
    import json

    from jaxinterp import artefacts, config, experiments
    from jaxinterp.analysis.benchmark_settings import Settings

    document = config.schema(Settings if experiment == "benchmarks" else experiments.find(experiment).Config)
    if output is None:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        artefacts.write_json(document, output)


def report(
    experiments: Annotated[Positional[tuple[str, ...]], arg(metavar="EXPERIMENT")],
    /,
    *,
    results: Path,
    models: tuple[Path, ...],
    introduction: Path,
    output: Path,
) -> None:
    """Gather a run's figures, claims, tables and model pages into one page.

    Args:
        experiments: Experiments to show, in this order.
        results: The folder with one folder per experiment, and the pages of each model under models/.
        models: The folder of each model to show, as `fetch` made it.
        introduction: The caption above them all (.rst); those of the experiments stand beside it.
        output: The HTML page to write; it needs no other file and no network.
    """
    from jaxinterp import artefacts
    from jaxinterp.figures import report as pages

    artefacts.write_text(pages.render(results, models, experiments, introduction), output)
    say(f"open {output} in a browser")

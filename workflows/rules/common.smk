import functools
import hashlib
import json
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate
from snakemake_interface_executor_plugins.settings import DeploymentMethod

from jaxinterp.artefacts import package_digest, read_json
from jaxinterp.config import refuse_unknown_keys
from jaxinterp.experiments import code_digest

ROOT = Path(workflow.basedir)
code_digest = functools.cache(code_digest)  # Many rules call the same code.
SECTIONS = []
PAPERS = {}  # Paper -> experiment -> what `part` says of it, in the order of the paper's report.


def read_paper(name, parts):
    """Makes a target of a paper's experiments; `rules/papers.smk` has the rules."""
    PAPERS[name] = parts
    for experiment in parts:
        read_section(experiment)


def part(arrays=None, priority=0, **inputs):
    """What an experiment needs beside models (name -> file of another one), the name of the arrays it makes, and how
    soon it runs among those that could: long ones first, so that none is left to run alone at the end."""
    return {"arrays": arrays, "priority": priority, "inputs": inputs}


def read_section(name):
    """Checks an experiment's section of the config before any job runs, and fills in the defaults."""
    SECTIONS.append(name)
    path = ROOT / "workflows" / "schemas" / f"{name}.schema.json"
    schema = json.loads(path.read_text())
    shape = {"properties": {"models": {}, "config": schema}, "additionalProperties": False}
    refuse_unknown_keys(config[name], {**shape, "$defs": schema.get("$defs", {})}, name)
    for role, model in config[name]["models"].items():
        if model not in config["models"]:
            known = ", ".join(config["models"])
            raise ValueError(f"{name}.models.{role}: there is no model '{model}' under models; there are: {known}.")
    validate(config[name]["config"], schema=str(path))
    return config[name]


def refuse_unknown_sections():
    own = ["models", "edited", "dtype", "memory", "threads", "image", "distributed", "require_backend"]
    known = dict.fromkeys([*own, *SECTIONS, "pathvars"], {})  # pathvars: Snakemake's own
    refuse_unknown_keys(config, {"properties": known, "additionalProperties": False}, "config")


def containers_are_used():
    return DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method


def image():
    """What jobs run in: a file of the checkout, or an image's address. A file built here must hold the code that is here."""
    if ":" in config["image"]:
        return config["image"]
    path = ROOT / config["image"]
    marker = path.with_suffix(".json")
    if containers_are_used() and marker.exists() and read_json(marker)["code"] != package_digest():
        raise ValueError(
            f"{path} holds other code than this checkout; build it again with"
            f" containers/build.sh {read_json(marker)['accelerator']}, or run without --software-deployment-method."
        )
    return str(path)


def refuse_unreachable_storage():
    """Asks the bucket once: one that is away would otherwise show only when a job has run and cannot store its result."""
    provider = workflow.storage_registry.default_storage_provider
    if provider is None:
        return
    prefix = workflow.storage_settings.default_storage_prefix
    try:
        probe = provider.object(f"{prefix.rstrip('/')}/reachable")
        known = probe.is_valid_query()
        if known:
            probe.exists()
    except Exception as error:
        raise WorkflowError(
            f"{prefix} cannot be reached ({type(error).__name__}: {error}). Nothing was run. Look at the network, the"
            " address and the credentials, then give the same command again: it goes on with what the bucket holds."
        )
    if not known:
        raise WorkflowError(f"{prefix} is no place for results: it {known.reason}; see --default-storage-prefix.")


def srun_resources():
    """What a job of several processes asks Slurm for; nothing when it has one process alone."""
    processes = config["distributed"]["processes"]
    return {"mpi": "srun", "nodes": processes, "tasks": processes} if processes > 1 else {}


def srun_words():
    """What starts each process, in the image if jobs run in one. No `--cleanenv`: Slurm tells each process its place."""
    processes, coordinator = (config["distributed"][key] for key in ("processes", "coordinator"))
    start = ["srun", f"--nodes={processes}", f"--ntasks={processes}"] if processes > 1 else []
    if containers_are_used():
        start += ["apptainer", "exec", "--bind", f"{ROOT},{Path.cwd()}", "--env", "PYTHONPATH=", image()]
    return [*start, "env", f"JAX_COORDINATOR_ADDRESS={coordinator}"] if coordinator else start


def backend_flags():
    """What makes a job that finds no accelerator fail, instead of taking a thousand times as long."""
    return ["--require-backend", config["require_backend"]] if config["require_backend"] else []


def caption(name):
    return str(ROOT / "workflows" / "report" / f"{name}.rst")


def as_json(settings):
    return json.dumps(settings, sort_keys=True)


def peers():
    """Whom the benchmark asks, beside this package itself."""
    return [peer for peer in config["benchmarks"]["config"]["peers"] if peer != "jaxinterp"]


def lock_file(peer):
    """Every package of a peer's environment, pinned."""
    return ROOT / "workflows" / "peers" / "locks" / f"{peer}.txt"


def recipe(stage):
    """What `jaxinterp train` takes: a name or a path as it is, settings as JSON."""
    given = config["train_countdown"][stage]
    return given if isinstance(given, str) else as_json(given)


def text_digest(*paths):
    """A short hash of some files' texts: what changes them runs a rule again, a mere touch does not."""
    return hashlib.sha256("".join(path.read_text() for path in paths).encode()).hexdigest()[:12]


def models_of(experiments):
    """The models that some experiments use, each once."""
    return list(dict.fromkeys(model for name in experiments for model in config[name]["models"].values()))


def model_folders(name):
    """Where `fetch_model` puts each model of an experiment, by role."""
    return {role: f"<resources>/models/{model}" for role, model in config[name]["models"].items()}


def model_flags(name):
    """What goes behind --model: ROLE=FOLDER for each role."""
    return lambda wildcards, input: [f"{role}={input[role]}" for role in config[name]["models"]]


def input_flags(inputs):
    """What other experiments made, as --input NAME=PATH for each."""
    return lambda wildcards, input: ["--input", *(f"{name}={input[name]}" for name in inputs)] if inputs else []


wildcard_constraints:
    model="|".join(config["models"]),

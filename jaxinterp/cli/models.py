"""Verbs about models: bring, look, speak, write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxinterp.cli.arguments import Many, Model, edited, join_processes, load_model, say


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
    say(f"placing {found.source} in {output}")
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

    lm = load_model(model)
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

    artefacts.write_text(pages.model_page(edited(load_model(model), edit)), out)


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
    mesh: str | None = None,
    distributed: bool = False,
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
        mesh: How the devices share the model, such as "data=2,tensor=4"; by default it is on one.
        distributed: Whether this is one of several processes that do it together, as srun starts them; the first one
            prints.
    """
    mesh = join_processes(mesh, distributed)
    import jax

    import jaxinterp as ji
    from jaxinterp.parallel.placement import first_process

    lm = load_model(model, mesh=mesh)
    if chat:
        tokenizer = lm.require_tokenizer()
        prompt = tuple(tokenizer.chat([{"role": "user", "content": text}]) for text in prompt)
    lm = edited(lm, edit)
    texts = ji.generate(
        lm, list(prompt), max_new_tokens=max_new_tokens, temperature=temperature, key=jax.random.key(seed)
    )
    for text, more in zip(prompt, texts, strict=True) if first_process() else ():
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


def export(model: Model, /, *, output: Path) -> None:
    """Write a model as a Hugging Face folder in float32, which other libraries can read.

    Args:
        model: The model.
        output: The folder to make.
    """
    import jaxinterp as ji

    ji.save(load_model(model), output)


def dry_run(
    source: Annotated[Positional[str], arg(metavar="SHAPE")],
    /,
    *,
    dtype: str = "bfloat16",
    devices: int = 1,
    memory: float = 80.0,
    seq: int = 1024,
) -> None:
    """Trace a model's programs without its weights, and say what memory they take.

    Args:
        source: A config.json, a folder that holds one, or a shape that ships with the package, such as
            shape:qwen2.5-3b and shape:r1-distill-qwen-14b.
        dtype: Of the weights: "float32", "float16" or "bfloat16".
        devices: How many there are.
        memory: Of each, in GiB.
        seq: Tokens in each text.
    """
    from jaxinterp.analysis import dry_run as trial

    print(trial.describe(trial.measure(source, dtype, devices, memory, seq)))

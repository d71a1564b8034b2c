"""The verb that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxinterp.cli.arguments import join_processes, say


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    /,
    *,
    output: Path,
    start: str | None = None,
    checkpoints: Path | None = None,
    distributed: bool = False,
) -> None:
    """Train a small model and write it as a Hugging Face folder.

    A run that was ended goes on from its last checkpoint when the same is asked for again.

    Args:
        recipe: Settings as JSON, the path of a YAML or JSON file, such as the recipe.json of a trained model, or the
            name of a recipe that ships with the package, such as countdown-smoke.
        output: The folder to write: weights, tokenizer, recipe, log and model card.
        start: The model that practises, instead of the one that the recipe names.
        checkpoints: Where checkpoints are while the model is trained; by default beside the output.
        distributed: Whether this is one of several processes that do it together, as srun starts them, on the devices
            that the recipe names; the first one writes.
    """
    join_processes(None, distributed)
    from jaxinterp.activations.compilation import keep_compiled_programs
    from jaxinterp.config import load_config
    from jaxinterp.training import grpo_recipe
    from jaxinterp.training import recipe as recipes

    keep_compiled_programs()
    given = recipes.read(recipe)
    if given.get("stage") == "grpo":
        given |= {} if start is None else {"start": start}
        practice = load_config(grpo_recipe.GrpoRecipe, given, where="recipe")
        last = grpo_recipe.train(practice, output, checkpoints).row(-1, named=True)
        say(
            f"{practice.name}: {last['step']} steps in {last['seconds']:.0f} s; reward {last['reward']:.3f} -> {output}"
        )
        return
    if start is not None:
        raise ValueError("--start is for practice; a model that learns from texts begins with random weights")
    settings = load_config(recipes.Recipe, given, where="recipe")
    log = recipes.train(settings, output, checkpoints)
    last = log.row(-1, named=True)
    say(
        f"{settings.name}: {last['tokens']:,} tokens in {last['seconds']:.0f} s; {last['held_out']:.3f} nats per token "
        f"of other texts -> {output}"
    )


def training_figure(
    models: Annotated[Positional[tuple[Path, ...]], arg(metavar="MODEL ...")], /, *, output: Path
) -> None:
    """Draw how models were trained, from the logs in their folders.

    Args:
        models: Folders that `train` wrote, all of supervised training or all of practice.
        output: The figure to write (.svg).
    """
    from jaxinterp import artefacts
    from jaxinterp.figures import training_log

    logs = {folder.name: artefacts.read_table(folder / "training_log.parquet")[0] for folder in models}
    artefacts.write_figure(training_log.draw(logs), output, artefacts.provenance(models=[str(path) for path in models]))

"""The verb that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxinterp.cli.arguments import say


def train(recipe: Annotated[Positional[str], arg(metavar="RECIPE")], /, *, output: Path) -> None:
    """Train a small model from nothing and write it as a Hugging Face folder.

    Args:
        recipe: Settings as JSON, or the path of a YAML or JSON file, such as the recipe.json of a trained model.
        output: The folder to write: weights, tokenizer, recipe, log and model card.
    """
    from jaxinterp.activations.compilation import keep_compiled_programs
    from jaxinterp.config import load_config, read_settings
    from jaxinterp.training import recipe as recipes

    keep_compiled_programs()
    settings = load_config(recipes.Recipe, read_settings(recipe), where="recipe")
    log = recipes.train(settings, output)
    last = log.row(-1, named=True)
    say(
        f"{settings.name}: {last['tokens']:,} tokens in {last['seconds']:.0f} s; {last['held_out']:.3f} nats per token "
        f"of other texts -> {output}"
    )

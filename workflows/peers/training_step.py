# ruff: noqa: INP001  # a script
"""The training step beside the same step in PyTorch: same weights, same batches, same optimiser, in turn, one process.

    python workflows/peers/training_step.py --output training_step.parquet

The peer is transformers' Qwen 2 with its own attention and PyTorch's fused AdamW, without torch.compile. The gate: the
losses agree, so that both have learned the same.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import polars as pl
import torch
import transformers

from jaxinterp import artefacts
from jaxinterp.config import load_config
from jaxinterp.models import decoder as tree
from jaxinterp.models.language_model import LanguageModel, save
from jaxinterp.models.nnx import to_weights
from jaxinterp.training import corpora, language_model, recipe
from jaxinterp.training.language_model import Course
from jaxinterp.training.packing import Batches

GATE, DRIFT = 1e-4, 1e-2
"""How far losses may be apart, in nats: the first two, before anything is learned, and all of them.

Adam makes a whole step of a gradient that is all rounding, so that two right programs drift apart.
"""


def main() -> int:
    """Measures, prints and writes; 1 if the gate is not passed or the step is slower."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="countdown-6m", help="whose model is trained")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="the first of them are not counted")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; give the process as many cores")
    parser.add_argument("--output", type=Path, required=True, help="the table to write (.parquet)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = load_config(recipe.Recipe, recipe.read(given.recipe), where="recipe")
    course = Course(steps=given.steps + 1, rows=given.rows, learning_rate=1e-3, warm_up=1, log_every=1)
    tokenizer = corpora.tokenizer(settings.corpus)
    config = recipe.configuration(settings, tokenizer)
    decoder, architecture = recipe.initial_decoder(settings, config)
    rows = np.random.default_rng(0).integers(0, architecture.vocabulary, (given.rows, given.length + 1), np.int32)
    order = Batches(rows, course.rows, course.seed)
    with tempfile.TemporaryDirectory() as place:
        body = tree.build(architecture, to_weights(decoder))
        model = LanguageModel(
            body=body, architecture=architecture, config=json.dumps(config), tokenizer=tokenizer, source=settings.name
        )
        save(model, Path(place) / "model")
        step_peer = peer(Path(place) / "model", course)
    theirs: list[tuple[float, float]] = []

    def measure(_: object) -> dict[str, float]:
        theirs.append(step_peer(order[len(theirs)], len(theirs)))
        return {}

    _, log = language_model.train(decoder, rows, course, measure=measure)
    counted = log[2:-1]
    ours = [row["tokens_per_second"] for row in counted.iter_rows(named=True)]
    tokens = given.rows * given.length
    peers = [tokens / seconds for seconds, _ in theirs[2:-1]]
    losses = [loss for _, loss in theirs]
    apart = np.abs(log["loss"].to_numpy() - losses)
    agrees = apart[:2].max() <= GATE and apart.max() <= DRIFT
    table = pl.DataFrame(
        {
            "peer": ["jaxinterp", "torch"],
            "version": [jax.__version__, f"{torch.__version__}, transformers {transformers.__version__}"],
            "tokens_per_second": [statistics.median(ours), statistics.median(peers)],
            "slowest": [min(ours), min(peers)],
            "fastest": [max(ours), max(peers)],
            "steps": [len(ours), len(peers)],
            "utilisation": [counted["utilisation"].median(), None],
            "threads": [given.threads] * 2,
            "losses_apart": [0.0, apart.max()],
        }
    )
    artefacts.write_table(table, given.output, artefacts.provenance(vars(given) | {"output": str(given.output)}))
    print(table)
    ratio = table["tokens_per_second"][0] / table["tokens_per_second"][1]
    print(
        f"tokens per second over PyTorch's: {ratio:.2f}; losses at most {apart[:2].max():.2g} nats apart at first "
        f"(gate {GATE}) and {apart.max():.2g} later (gate {DRIFT})"
    )
    return int(not agrees or ratio < 1)


def peer(folder: Path, course: Course) -> Callable[[np.ndarray, int], tuple[float, float]]:
    """PyTorch's step.

    Args:
        folder: The model.
        course: Settings.

    Returns:
        A function that takes a batch and the number of the step, and gives seconds and the loss.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": course.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8, fused=True)
    schedule = language_model.schedule(course)

    def step(batch: np.ndarray, number: int) -> tuple[float, float]:
        began = time.perf_counter()
        tokens = torch.from_numpy(batch.astype(np.int64))
        for group in optimiser.param_groups:
            group["lr"] = float(schedule(number))
        optimiser.zero_grad(set_to_none=True)
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), course.clip)
        optimiser.step()
        return time.perf_counter() - began, float(loss.detach())

    return step


if __name__ == "__main__":
    sys.exit(main())

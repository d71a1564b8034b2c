"""How fast reading, editing, compiling and generating are, as ratios measured in one run.

The peer is the same weights in transformers on PyTorch, if both are installed; the rows that compare with it are
left out otherwise. Measurements of a pair alternate, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from jaxinterp.activations import reading
from jaxinterp.activations.generate import generate_tokens
from jaxinterp.activations.run import run
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.steer import steer
from jaxinterp.models.language_model import LanguageModel, load, save
from jaxinterp.sites.selectors import head, resid_post

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured.

    Attributes:
        batch: Rows.
        seq: Tokens per row.
        prompt: Prompt tokens in generation.
        new: New tokens in generation.
        repeats: Timed repetitions of each, after one warm-up.
        threads: Threads PyTorch may use.
    """

    batch: int = 8
    seq: int = 128
    prompt: int = 11
    new: int = 64
    repeats: int = 5
    threads: int = 2


def measure(source: str, workload: Workload | None = None) -> pl.DataFrame:
    """Runs the benchmark on one model; it turns the process's persistent compilation cache off.

    Args:
        source: Where the model is, as for `load`.
        workload: Sizes and repetitions.

    Returns:
        One row a measurement: `measurement`, `value`, `unit`, `limit` (what the project promises), `kept`, and the
        median seconds of both sides where the value is a ratio.
    """
    work = workload or Workload()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = [_loading_memory(source)]
    model = load(source)
    generator = np.random.default_rng(0)
    vocabulary = model.architecture.vocabulary
    tokens = generator.integers(0, vocabulary, (work.batch, work.seq)).astype(np.int32)
    vector = generator.normal(size=model.architecture.embedding).astype(np.float32)
    middle = model.architecture.layers // 2
    steered = steer(model, resid_post(middle), vector, 0.1)
    rows.append(_compiling(model, tokens, middle))
    rows += _recompiling(model, tokens, vector)

    def plain() -> None:
        run(model, tokens)

    plain_seconds, reading = _alternate(plain, lambda: run(model, tokens, sites=[resid_post()]), work.repeats)
    rows.append(_ratio("reading every resid_post / plain forward", reading, plain_seconds, 1.10))
    peer = _load_peer(model, work.threads)
    if peer is None:
        _LOG.warning("torch and transformers are not installed; the rows that compare with them are left out")
    else:
        ours, theirs = _alternate(plain, lambda: peer.forward(tokens), work.repeats)
        rows.append(_ratio("plain forward / transformers forward", ours, theirs, 1.0))
        prompts = tokens[:, : work.prompt]
        new = {"steered": steered, "unsteered": model}
        for name, edited in new.items():
            ours, theirs = _alternate(
                lambda edited=edited: generate_tokens(_endless(edited), prompts, work.new),
                lambda: peer.generate(prompts, work.new),
                max(2, work.repeats // 2),
            )
            limit = 1.2 if name == "steered" else None
            rows.append(_ratio(f"{name} generation / transformers generate, tokens per second", theirs, ours, limit))
    return pl.DataFrame(rows, schema=_SCHEMA)


_SCHEMA = {
    "measurement": pl.String,
    "value": pl.Float64,
    "unit": pl.String,
    "limit": pl.Float64,
    "at_most": pl.Boolean,
    "kept": pl.Boolean,
    "numerator_seconds": pl.Float64,
    "denominator_seconds": pl.Float64,
}


def _row(name: str, value: float, unit: str, limit: float | None, at_most: bool, **seconds: float) -> dict[str, Any]:
    kept = None if limit is None else (value <= limit if at_most else value >= limit)
    return {"measurement": name, "value": value, "unit": unit, "limit": limit, "at_most": at_most, "kept": kept} | {
        "numerator_seconds": seconds.get("numerator"),
        "denominator_seconds": seconds.get("denominator"),
    }


def _ratio(name: str, numerator: list[float], denominator: list[float], limit: float | None) -> dict[str, Any]:
    at_most = "tokens per second" not in name
    pairs = [one / other for one, other in zip(numerator, denominator, strict=True)]
    return _row(
        name,
        statistics.median(pairs),
        "ratio",
        limit,
        at_most,
        numerator=statistics.median(numerator),
        denominator=statistics.median(denominator),
    )


def _alternate(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Wall seconds of two functions, run in turn after a warm-up of each."""
    first()
    second()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            begin = time.perf_counter()
            (first, second)[which]()
            seconds[which].append(time.perf_counter() - begin)
    return seconds


def _compiling(model: LanguageModel, tokens: np.ndarray, layer: int) -> dict[str, Any]:
    """CPU seconds that the first run of an edited model takes beyond those of the second."""
    edited, seconds = ablate(model, head(layer, 0)), []
    for _ in range(2):
        begin = time.process_time()
        run(edited, tokens)
        seconds.append(time.process_time() - begin)
    return _row("trace and compile of an edited model", seconds[0] - seconds[1], "CPU seconds", 6.0, True)


def _recompiling(model: LanguageModel, tokens: np.ndarray, vector: np.ndarray) -> list[dict[str, Any]]:
    """Programs compiled when only numbers of an edit change."""
    small = tokens[:1, :16]
    last = model.architecture.layers - 1
    changes = {
        "another head is ablated": [ablate(model, head(layer, index)) for layer, index in ((0, 0), (0, 1), (last, 0))],
        "the steering scale changes": [steer(model, resid_post(last), vector, scale) for scale in (0.5, 1.0, 2.0)],
    }
    rows = []
    for name, edits in changes.items():
        run(edits[0], small, logits="last")
        before = reading.programs()
        for edited in edits[1:]:
            run(edited, small, logits="last")
        rows.append(_row(f"programs compiled when {name}", reading.programs() - before, "count", 0.0, True))
    return rows


def _loading_memory(source: str) -> dict[str, Any]:
    """Peak host memory of a process that loads the model, beyond its imports, over the float32 weights."""
    script = (
        "import resource, sys, jaxinterp as ji, jax.numpy as jnp\n"
        "jnp.zeros(1).block_until_ready()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "lm = ji.load(sys.argv[1])\n"
        "weights = sum(array.size for array in lm.weights().values()) * 4\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / weights)\n"
    )
    done = subprocess.run(  # noqa: S603  # our own interpreter on our own script
        [sys.executable, "-c", script, source], check=True, capture_output=True, text=True
    )
    return _row("peak memory while loading / float32 weights", float(done.stdout.split()[-1]), "ratio", 1.5, True)


def _endless(model: LanguageModel) -> LanguageModel:
    """The model without end tokens, so that both sides generate equally many."""
    return dataclasses.replace(model, architecture=dataclasses.replace(model.architecture, eos=()))


@dataclasses.dataclass(frozen=True)
class _Peer:
    torch: Any
    model: Any

    def forward(self, tokens: np.ndarray) -> None:
        with self.torch.no_grad():
            self.model(self.torch.from_numpy(tokens.astype(np.int64)), use_cache=False)

    def generate(self, tokens: np.ndarray, new: int) -> None:
        with self.torch.no_grad():
            ids = self.torch.from_numpy(tokens.astype(np.int64))
            mask = self.torch.ones_like(ids)
            self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
            )


def _load_peer(model: LanguageModel, threads: int) -> _Peer | None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        save(dataclasses.replace(model, tokenizer=None), Path(folder) / "model")
        peer = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    return _Peer(torch, peer.eval())

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
import numpy as np
from flax import nnx
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.training import language_model
from jaxinterp.training.checkpoints import Checkpoints

folder, output, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
sizes = dict(vocabulary=17, embedding=16, layers=2, heads=2, kv_heads=1, projection=8, neurons=32)
ropes = (Rope(theta=1e4, rotary=8),) * 2
decoder = Decoder(Architecture(family="llama", context=32, ropes=ropes, **sizes), nnx.Rngs(0))
rows = np.random.default_rng(0).integers(0, 17, (40, 13)).astype(np.int32)
course = language_model.Course(steps=12, rows=8, warm_up=2, log_every=1, save_every=2)
with Checkpoints(folder) as checkpoints:
    trained, log = language_model.train(
        decoder, rows, course, checkpoints=checkpoints, measure=lambda _: time.sleep(pause) or {}
    )
np.savez(output, **{name: np.asarray(array) for name, array in to_weights(trained).items()})
log.write_parquet(output + ".parquet")
"""


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment, stderr=subprocess.PIPE
    )


def finish(*arguments):
    process = start(*arguments)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error.decode()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One run that goes through, and one that is killed with SIGKILL between checkpoints and started again."""
    place = tmp_path_factory.mktemp("runs")
    finish(place / "through", place / "through.npz", 0)
    killed = start(place / "killed", place / "killed.npz", 0.5)
    try:
        deadline = time.monotonic() + 200
        while not (place / "killed" / "4").exists():
            assert time.monotonic() < deadline and killed.poll() is None, killed.communicate()[1].decode()
            time.sleep(0.05)
        os.kill(killed.pid, signal.SIGKILL)
    finally:
        killed.kill()
        killed.communicate()
    assert not (place / "killed.npz").exists()
    rows = [
        json.loads(line) for line in (place / "killed" / "log.jsonl").read_text().splitlines() if line.endswith("}")
    ]
    assert 4 <= len(rows) < 12
    finish(place / "killed", place / "killed.npz", 0)
    return place


def test_a_killed_run_goes_on_to_the_same_bits(results):
    with np.load(results / "through.npz") as through, np.load(results / "killed.npz") as killed:
        assert set(through) == set(killed) and len(through) > 10
        for name in through:
            np.testing.assert_array_equal(through[name], killed[name])


def test_the_log_of_a_killed_run_is_whole(results):
    through, killed = (pl.read_parquet(results / f"{name}.npz.parquet") for name in ("through", "killed"))
    assert killed["step"].to_list() == list(range(1, 13))
    for column in ("tokens", "loss", "gradient_norm", "learning_rate"):
        assert through[column].to_list() == killed[column].to_list()
    assert killed["seconds"].is_sorted()

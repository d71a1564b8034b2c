"""The benchmark in other dtypes and on other devices: what is loaded, what passes, who refuses, how much is used."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
import yaml

import jaxinterp as ji
from jaxinterp import cli, config
from jaxinterp.analysis import benchmark
from jaxinterp.analysis.benchmark_flops import forward_flops, task_flops
from jaxinterp.analysis.benchmark_inputs import Sizes, make_inputs, size_of_logits
from jaxinterp.analysis.benchmark_settings import Settings
from jaxinterp.analysis.benchmark_table import Measurement, difference, tabulate
from jaxinterp.analysis.benchmark_workers import DEVICE_SHARE, Launch
from jaxinterp.models import families
from jaxinterp.models.language_model import logits
from jaxinterp.models.random_model import SHAPES, write_random_model
from jaxinterp.models.toy import toy

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ROOT / "workflows" / "peers"

FAKE = """
import sys
sys.path.insert(0, {workers!r})
import numpy as np
from protocol import DTYPES, Worker, serve, variant

class Fake(Worker):
    packages = ("numpy",)
    {knows}

    def wait(self):
        self.waited = True

    @variant("w1_first", "right")
    def first(self):
        self.waited = False
        return {{"logits": np.load({logits!r})}}

    @variant("w1_new_length", "says what it was told")
    def told(self):
        told = [self.text("dtype"), self.text("device"), float(self.inputs["device_share"]), self.waited]
        raise ValueError(" ".join(map(str, told)))

serve(Fake())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("random") / "model"
    write_random_model(place, "tiny", "bfloat16")
    return place


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """Ours in bfloat16 beside a peer that knows all dtypes and hands in float32 logits, and one that knows float32."""
    place = tmp_path_factory.mktemp("peers")
    model = ji.load(folder)
    np.save(place / "logits.npy", logits(model, make_inputs(model, Sizes(), "w1")["w1_first"])[:, -1])
    launches = {"jaxinterp": Launch(Path(sys.executable), WORKERS / "worker_jaxinterp.py")}
    for name, knows in (("exact", "dtypes = DTYPES"), ("narrow", "")):
        script = place / f"{name}.py"
        script.write_text(FAKE.format(workers=str(WORKERS), logits=str(place / "logits.npy"), knows=knows))
        launches[name] = Launch(Path(sys.executable), script)
    options = {"reference": "exact", "repeats": 1, "dtype": "bfloat16", "peak_flops": 1e12}
    return benchmark.measure(folder, launches, Settings(tasks=("w1_first", "w1_new_length"), **options))


def row(table, **wanted):
    return table.filter(**wanted).row(0, named=True)


def test_ours_computes_in_the_dtype_asked_for_and_passes_its_gate(measured):
    ours = row(measured, task="w1_first", peer="jaxinterp", start="warm")
    assert ours["gate"] == "passed" and ours["dtype"] == "bfloat16" and ours["device"] == "cpu"
    assert 1e-3 < ours["gate_difference"] < 5e-2, "less than that is no bfloat16"


def test_utilisation_is_operations_over_seconds_and_speed(measured):
    ours = row(measured, task="w1_first", peer="jaxinterp", start="warm")
    _, architecture = families.read_architecture(SHAPES["tiny"], "tiny")
    flops = forward_flops(architecture, rows=1, length=16)
    assert ours["flop_utilisation"] == pytest.approx(flops / ours["wall_median"] / 1e12)
    assert measured.filter(pl.col("start") != "warm")["flop_utilisation"].is_null().all()


def test_workers_are_told_where_to_compute_and_waited_for_and_who_cannot_has_a_row(measured):
    told = row(measured, task="w1_new_length", peer="exact")
    assert told["reason"] == f"ValueError: bfloat16 cpu {DEVICE_SHARE} True"
    refused = measured.filter(peer="narrow")
    assert set(refused["gate"]) == {"not measured"}
    assert "this worker is written for dtype float32, not for bfloat16" in refused["reason"][0]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU here")
def test_without_a_gpu_the_row_says_so(folder):
    settings = Settings(peers=("jaxinterp",), tasks=("w2_residuals",), repeats=1, device="gpu")
    table = benchmark.measure(folder, benchmark.find_launches(settings, WORKERS), settings)
    assert table["gate"].to_list() == ["not measured"] and "JAX finds no GPU here" in table["reason"][0]


def test_operations_are_counted_once_for_each_weight_key_and_logit():
    full = toy("mistral", sliding_window=None).architecture
    weights = sum(np.prod(list(sizes.values())) for sizes in full.block_weights().values() if len(sizes) > 1)
    pairs = 10 * 11 // 2  # of a query and a key no later than it
    by_hand = 2 * 10 * weights * 3 + 3 * 4 * 8 * pairs * 2 * 2 + 2 * 32 * 101
    assert forward_flops(full, rows=5, length=10) == 5 * by_hand
    windowed = forward_flops(toy("mistral").architecture, rows=5, length=10)
    assert 5 * by_hand - windowed == 5 * 3 * 4 * 8 * 4 * (pairs - (1 + 2 + 3 + 7 * 4)), "four keys at most"
    _, billion = families.read_architecture(SHAPES["1b"], "1b")
    matrices = 1_235_814_400 - 2048 * (1 + 2 * 16)  # all but norms; the table, as the unembedding, once a text
    short = forward_flops(billion, rows=1, length=1)
    assert short == 2 * matrices + 16 * 4 * 32 * 64


def test_only_plain_forward_passes_have_operations():
    model = toy()
    named = {
        name: set(task_flops(model.architecture, make_inputs(model, Sizes(), name))) for name in ("w1", "w2", "w6")
    }
    assert named == {"w1": {"w1_first", "w1_new_length"}, "w2": {"w2_residuals", "w2_all"}, "w6": set()}


def test_effects_are_compared_over_the_logits_that_they_are_differences_of():
    model = toy()
    arrays = make_inputs(model, Sizes(), "w4")
    assert size_of_logits(model, arrays) == pytest.approx(np.abs(logits(model, arrays["w4_tokens"])[0, -1]).max())
    given, right = {"effect": np.array([1.0, 2.5])}, {"effect": np.array([1.0, 2.0])}
    assert difference(given, right, "absolute", scale=10.0) == 0.05
    assert difference(given, right, "relative", scale=10.0) == 0.25, "activations are their own scale"
    tokens = {"tokens": np.array([[7, 8, 9, 9]])}
    assert difference(tokens, {"tokens": np.array([[7, 8, 1, 9]])}, "tokens", scale=10.0) == 0.25


def entry(task, dtype, difference):
    answers = [{"wall": 1.0, "cpu": 1.0, "peak_memory": 1.0, "extra_memory": 0.0}]
    return Measurement(task, "torch", "x", "warm", "1", answers, None, difference, dtype=dtype)


@pytest.mark.parametrize(
    ("task", "dtype", "difference", "gate"),
    [
        ("w4_heads", "float32", 1e-2, "failed"),
        ("w4_heads", "bfloat16", 4e-2, "passed"),
        ("w4_heads", "bfloat16", 6e-2, "failed"),
        ("w4_heads", "float16", 1e-2, "failed"),
        ("w5_grid", "float32", 1e-3, "failed"),
        ("w5_grid", "bfloat16", 0.5, "not gated"),
    ],
)
def test_each_dtype_has_its_gate(task, dtype, difference, gate):
    table = tabulate([entry(task, dtype, difference)])
    assert table["gate"].to_list() == [gate] and table["gate_difference"].to_list() == [difference]
    assert table["wall_median"].is_null().item() == (gate == "failed")


def test_what_is_no_model_is_computed_in_float32():
    assert [Settings(dtype="bfloat16").dtype_of(task) for task in ("w6_edges", "w7_probes")] == ["bfloat16", "float32"]
    assert Settings(tasks=("w2", "w6_forward")).chosen() == ["w2_residuals", "w2_all", "w6_forward"]
    with pytest.raises(ValueError, match="peak_flops is -1"):
        Settings(peak_flops=-1.0).chosen()


@pytest.mark.parametrize("name", ["benchmarks-h100", "benchmarks-h100-1b", "benchmarks-h100-8b"])
def test_the_configurations_for_a_gpu_are_complete(name):
    given = yaml.safe_load((ROOT / "workflows" / "config" / f"{name}.yaml").read_text())
    settings = config.load_config(Settings, given["benchmarks"]["config"])
    assert settings.chosen() and settings.device == "gpu" and settings.peak_flops > 1e13
    assert all(launch.python == Path(sys.executable) for launch in benchmark.find_launches(settings, WORKERS).values())
    source = given.get("models", {}).get(given["benchmarks"]["models"]["model"], "")
    assert source.partition("random:")[2] in ("", *SHAPES) and (settings.dtype == "bfloat16") == bool(source)


def test_the_command_line_reads_a_workflows_configuration(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"benchmarks": {"models": {"model": "x"}, "config": {"repeat": 2, "tasks": ["w3"]}}})
    )
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    arguments = ["benchmark", folder, "--workers", WORKERS, "--output", tmp_path / "t.parquet", "--config", path]
    monkeypatch.setattr(sys, "argv", ["jaxinterp", *map(str, arguments)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "benchmarks: unknown key 'repeat' (did you mean 'repeats'?)" in capsys.readouterr().err
    path.write_text(path.read_text().replace("repeat:", "repeats:"))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--task", "w9"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "there is no benchmark task 'w9'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["jaxinterp", "schema", "benchmarks"])
    cli.main()
    assert "peak_flops" in json.loads(capsys.readouterr().out)["properties"]

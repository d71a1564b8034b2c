"""The benchmark's driver on a toy model with peers made here: who is right, who is wrong, who raises, who dies."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp import config
from jaxinterp.analysis import benchmark
from jaxinterp.analysis.benchmark_inputs import Sizes, indirect_objects, make_inputs
from jaxinterp.analysis.benchmark_settings import PEERS, Settings
from jaxinterp.analysis.benchmark_table import Measurement, difference, tabulate
from jaxinterp.analysis.benchmark_workers import Launch, WorkerProcess
from jaxinterp.figures import benchmark as figure
from jaxinterp.models.toy import toy

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ROOT / "workflows" / "peers"

FAKE = """
import os, sys, time
sys.path.insert(0, {workers!r})
import numpy as np
from protocol import Worker, serve, variant

class Fake(Worker):
    packages = ("numpy",)
    absent = {{"w6_edges": "there is nothing to call"}}

    def load(self):
        print("a library that talks on stdout")

    @variant("w8_neighbours", "right")
    def neighbours(self):
        with open({calls!r}, "a") as calls:
            print({name!r}, file=calls)
        points = self.inputs["w8_points"].astype(np.float64)
        distances = ((points[:, None] - points) ** 2).sum(-1)
        np.fill_diagonal(distances, np.inf)
        return {{"indices": np.argsort(distances, axis=1)[:, : self.number("w8_neighbours")]}}

    @variant("w8_weights", "slow")
    def slow(self):
        time.sleep(0.6)
        return {{"weights": np.zeros(3)}}

    @variant("w8_neighbours", "wrong")
    def almost(self):
        found = self.neighbours()["indices"]
        found[0, 0] = 0
        return {{"indices": found}}

    @variant("w8_weights", "raises")
    def refuse(self):
        raise ValueError("grouped queries are\\nnot supported")

    @variant("w8_weights", "dies")
    def die(self):
        os._exit(3)

serve(Fake())
"""


def fake(folder, name):
    script = folder / f"{name}.py"
    script.write_text(FAKE.format(workers=str(WORKERS), calls=str(folder / "calls"), name=name))
    return Launch(Path(sys.executable), script)


def own():
    return Launch(Path(sys.executable), WORKERS / "worker_jaxinterp.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("toy") / "model"
    ji.save(toy(num_hidden_layers=1), place)
    return place


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("peers")
    launches = {"exact": fake(place, "exact"), "jaxinterp": own(), "other": fake(place, "other")}
    settings = Settings(
        peers=tuple(launches),
        tasks=("w8_neighbours", "w8_weights"),
        reference="exact",
        repeats=2,
        long_run=0.5,
        sizes=Sizes(tokens=40, neighbours=3),
    )
    table = benchmark.measure(folder, launches, settings)
    return table, (place / "calls").read_text().split()


def row(table, **wanted):
    return table.filter(**wanted).row(0, named=True)


def test_a_right_answer_is_timed_and_a_wrong_one_is_not(measured):
    table, _ = measured
    ours = row(table, task="w8_neighbours", peer="jaxinterp", start="warm")
    assert ours["gate"] == "passed" and ours["gate_difference"] == 0
    assert 0 < ours["wall_min"] <= ours["wall_median"] and ours["cpu_median"] > 0
    assert ours["peak_memory"] > 50 and ours["repeats"] == 2 and ours["ratio_to_ours"] == 1
    assert "jaxinterp" in ours["version"] and "jax " in ours["version"]
    for start in ("first", "warm"):
        wrong = row(table, task="w8_neighbours", peer="other", variant="wrong", start=start)
        assert wrong["gate"] == "failed"
        assert wrong["gate_difference"] > 1e-3, "one of the named neighbours is farther away"
        assert wrong["wall_min"] is None and wrong["wall_median"] is None and wrong["cpu_median"] is None
        assert "differs from the reference" in wrong["reason"]


def test_the_reference_is_compared_with_and_named(measured):
    table, _ = measured
    assert row(table, task="w8_neighbours", peer="exact", variant="right", start="warm")["gate"] == "reference"
    assert row(table, task="w8_neighbours", peer="other", variant="right", start="warm")["gate"] == "passed"
    assert row(table, task="w8_weights", peer="jaxinterp", start="warm")["gate"] == "failed", "it is no array of zeros"


def test_who_cannot_has_a_row_with_the_reason(measured):
    table, _ = measured
    refused = row(table, task="w8_weights", peer="other", variant="raises")
    assert refused["gate"] == "not measured" and refused["repeats"] == 0
    assert refused["reason"] == "ValueError: grouped queries are not supported"
    assert "ended with status 3" in row(table, task="w8_weights", peer="other", variant="dies")["reason"]
    again = row(table, task="w8_neighbours", peer="other", variant="right", start="warm")
    assert again["repeats"] == 2, "a new process takes the place of one that died"


def test_peers_take_turns(measured):
    _, calls = measured
    first, repeats = calls[:4], calls[4:]
    assert first == ["exact", "exact", "other", "other"], "wrong answers are made from right ones"
    assert repeats.count("exact") == repeats.count("other") == 4
    assert max(len(part.split()) for part in " ".join(repeats).split("exact")) <= 4, "nobody repeats before the others"


def test_a_long_run_that_no_target_is_set_against_is_made_once_and_the_table_says_so(measured):
    table, _ = measured
    slow = row(table, task="w8_weights", peer="other", variant="slow", start="warm")
    assert slow["repeats"] == 1 and slow["wall_median"] > 0.5


def test_cold_starts_are_fresh_processes_with_and_without_compiled_programs(folder):
    settings = Settings(peers=("jaxinterp",), tasks=("w1_first", "w1_new_length"), repeats=1)
    table = benchmark.measure(folder, {"jaxinterp": own()}, settings)
    assert table["gate"].unique().to_list() == ["no reference"]
    cold = row(table, task="w1_first", start="cold")
    again = row(table, task="w1_first", start="cold, compiled before")
    warm = row(table, task="w1_first", start="warm")
    assert cold["wall_median"] > 1 > warm["wall_median"], "a cold start counts from the start of the process"
    assert cold["cpu_median"] > again["cpu_median"], "programs that an earlier process compiled are not compiled again"
    assert row(table, task="w1_new_length", start="cold")["wall_median"] < cold["wall_median"]


def test_our_results_pass_the_gate_of_hooks_on_torch(folder):
    launches = {"torch": Launch(Path(sys.executable), WORKERS / "worker_torch.py"), "jaxinterp": own()}
    sizes = Sizes(prompts=2, length=8, batch=1, pairs=2)
    settings = Settings(peers=tuple(launches), tasks=("w2_all", "w6_forward"), repeats=1, sizes=sizes)
    table = benchmark.measure(folder, launches, settings)
    assert table.filter(pl.col("gate").is_in(["passed", "reference"])).height == table.height, table["reason"].to_list()
    assert set(table["peer"]) == {"torch", "jaxinterp"}


def test_a_worker_that_does_not_answer_is_given_up(tmp_path):
    script = tmp_path / "sleeps.py"
    script.write_text("import sys, time\nsys.stdin.readline()\ntime.sleep(60)\n")
    process = WorkerProcess("sleeper", Launch(Path(sys.executable), script), 1, tmp_path, tmp_path / "log", 0.3)
    assert "no answer to 'describe' within 0 s" in process.ask("describe")["error"]
    assert "error" in process.ask("describe")


def test_a_worker_that_does_not_start_is_an_error_with_its_last_words(folder, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("raise ImportError('no such library')\n")
    with pytest.raises(ValueError, match=r"the worker of broken does not start(.|\n)*no such library"):
        benchmark.measure(folder, {"broken": Launch(Path(sys.executable), script)}, Settings(tasks=("w8_weights",)))


@pytest.mark.parametrize(
    ("given", "kind", "wanted"),
    [
        ([1.0, 2.5], "absolute", 0.5),
        ([1.0, 2.5], "relative", 0.25),
        ([1.0, np.nan], "relative", np.inf),
        ([1.0], "absolute", np.inf),
        ([[1.0, 2.0]], "absolute", np.inf),
    ],
)
def test_differences_are_measured_and_what_is_missing_is_infinitely_far(given, kind, wanted):
    assert difference({"x": np.array(given)}, {"x": np.array([1.0, 2.0])}, kind) == wanted
    assert difference({"y": np.array(given)}, {"x": np.array([1.0, 2.0])}, kind) == np.inf


def entry(task, peer, variant, wall, start="warm", difference=0.0):
    answers = [{"wall": wall * more, "cpu": wall, "peak_memory": 1.0, "extra_memory": 0.0} for more in (2, 1, 1)]
    return Measurement(task, peer, variant, start, "1", answers, None, difference)


def test_targets_are_held_against_our_fastest_time():
    table = tabulate(
        [
            entry("w3_patching", "jaxinterp", "slow", 4.0),
            entry("w3_patching", "jaxinterp", "sweep", 1.0),
            entry("w3_patching", "transformer_lens", "x", 12.5),
            entry("w3_patching", "nnsight", "invokes batched", 2.9),
            entry("w3_patching", "nnsight", "loop of traces", 9.0),
            entry("w5_generate", "jaxinterp", "x", 2.0),
            entry("w5_grid", "jaxinterp", "x", 8.5),
            entry("w4_heads", "transformer_lens", "x", 1.0),
        ]
    )
    lens = row(table, peer="transformer_lens", task="w3_patching")
    assert lens["ratio_to_ours"] == 12.5 and lens["reached"] is True
    assert row(table, variant="invokes batched")["reached"] is False
    assert row(table, variant="loop of traces")["target"] is None
    assert row(table, task="w5_grid")["reached"] is False, "8.5 s for a grid is more than 4 runs of 2 s"
    assert row(table, task="w4_heads")["reached"] is None, "we have no time to compare with"
    failed = tabulate([entry("w3_patching", "jaxinterp", "x", 1.0, difference=2e-4)])
    assert failed["gate"].to_list() == ["failed"] and failed["wall_median"].to_list() == [None]


def test_the_figure_shows_who_was_measured_and_who_was_not(measured, tmp_path):
    table, _ = measured
    drawn = figure.draw(table)
    drawn.savefig(tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert "W8  nearest neighbours of every token" in text
    assert "gate failed" in text and "not possible" in text
    with pytest.raises(ValueError, match="no rows"):
        figure.draw(table.clear())


def test_settings_are_checked_and_their_schema_is_up_to_date():
    with pytest.raises(ValueError, match="there is no benchmark task 'w9'"):
        Settings(tasks=("w9",)).chosen()
    with pytest.raises(ValueError, match="repeated at least once"):
        Settings(repeats_of={"w3_patching": 0}).chosen()
    with pytest.raises(ValueError, match="the peer 'torch' has no environment"):
        benchmark.find_launches(Settings(peers=("jaxinterp", "torch")), WORKERS, Path("nowhere"))
    stored = ROOT / "workflows" / "schemas" / "benchmarks.schema.json"
    assert json.loads(stored.read_text()) == json.loads(json.dumps(config.schema(Settings)))


def test_every_peer_has_a_lock_and_a_script_and_no_lock_names_a_registry():
    for peer in PEERS:
        assert (WORKERS / f"worker_{peer}.py").exists()
        if peer != benchmark.OURS:
            text = (WORKERS / "locks" / f"{peer}.txt").read_text()
            assert "://" not in text and "index" not in text.split("-o")[1]
            assert all("==" in line for line in text.splitlines() if not line.startswith("#"))


def test_inputs_of_a_model_without_tokenizer_are_pairs_that_differ_in_one_place():
    clean, corrupted, answers = indirect_objects(toy(), 3, np.random.default_rng(0))
    assert ((clean != corrupted).sum(axis=1) == 1).all()
    assert answers.shape == (3, 2)
    arrays = make_inputs(toy(), Sizes(examples=60, length=16), "w7")
    assert arrays["w7_train"].shape == (4, 60, 32) == arrays["w7_test"].shape
    assert np.abs(arrays["w7_train"].mean(axis=1)).max() < 1e-4
    assert set(arrays["w7_train_labels"]) == {False, True}

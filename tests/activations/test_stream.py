"""Captures on disk: what `run` reads, and nothing that was half written."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import axes
from jaxinterp.activations import memory
from jaxinterp.activations import stream as streaming
from jaxinterp.activations.run import forward_pass
from jaxinterp.activations.shards import map_arrays, open_stream
from jaxinterp.activations.stream import model_digest, stream
from jaxinterp.models.toy import toy

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
MODEL = toy("gemma2", **SIZES)
TEXTS = [np.random.default_rng(n).integers(0, 101, length).tolist() for n, length in enumerate((5, 9, 3, 16, 1, 7, 7))]
SITES = [ji.resid_post(), ji.z(1), ji.pattern(0), ji.ln_scale(1), ji.ln_final(), ji.Site("k", (0,), axes.KV_HEAD, (1,))]


@pytest.fixture(scope="module")
def whole():
    return ji.run(MODEL, TEXTS, sites=SITES)[1]


def expected(whole, row, site, layer, last=False):
    length = len(TEXTS[row])
    names = axes.SITES[site][0][1:]
    array = whole[site, layer][row]
    here = tuple(slice(-length, None) if name in (axes.SEQ, axes.KV_SEQ) else slice(None) for name in names)
    array = array[here]
    return np.take(array, -1, names.index(axes.SEQ)) if last else array


@pytest.mark.parametrize("positions", ["all", "last"])
def test_what_is_on_disk_is_what_run_reads(whole, tmp_path, positions):
    stored = stream(MODEL, TEXTS, SITES, tmp_path / "c", batch_size=3, positions=positions)
    assert stored.manifest["complete"] and len(stored) == len(TEXTS) and len(stored.manifest["shards"]) == 3
    np.testing.assert_array_equal(stored.lengths, [len(text) for text in TEXTS])
    assert set(stored.addresses) == set(whole)
    for row, text in enumerate(TEXTS):
        assert stored.tokens(row).tolist() == text
        for site, layer in stored.addresses:
            array = stored.read(row, site, layer)
            assert isinstance(array, np.memmap), "the array was read into memory"
            wanted = expected(whole, row, site, layer, positions == "last")
            np.testing.assert_allclose(array, wanted, atol=1e-5, err_msg=f"{site} {layer}, text {row}")
    tokens = np.concatenate(list(stored.matrices("resid_post", 1)))
    flat = whole["resid_post", 1][whole.mask] if positions == "all" else whole["resid_post", 1][:, -1]
    np.testing.assert_allclose(tokens, flat, atol=1e-5)


def test_batches_are_caches_like_those_of_run(whole, tmp_path):
    stored = stream(MODEL, TEXTS, SITES, tmp_path, batch_size=2)
    (cache,) = stored.batches(len(TEXTS))
    np.testing.assert_array_equal(cache.tokens[cache.mask], whole.tokens[whole.mask])
    np.testing.assert_array_equal(cache.mask, whole.mask)
    for address in whole:
        for row in range(len(TEXTS)):
            names = axes.SITES[address[0]][0][1:]
            here = tuple(
                slice(-len(TEXTS[row]), None) if name in (axes.SEQ, axes.KV_SEQ) else slice(None) for name in names
            )
            np.testing.assert_allclose(cache[address][row][here], whole[address][row][here], atol=1e-5)
    assert [len(part.tokens) for part in stored.batches(3, [("resid_post", 0)])] == [3, 3, 1]


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_narrow_dtypes_round_and_no_more(whole, tmp_path, dtype, bits):
    stored = stream(MODEL, iter(TEXTS), SITES[:2], tmp_path, dtype=dtype)
    for row in range(len(TEXTS)):
        array = stored.read(row, "resid_post", 1)
        assert array.dtype == dtype
        wanted = expected(whole, row, "resid_post", 1)
        np.testing.assert_allclose(array.astype(np.float32), wanted, rtol=2.0**-bits, atol=2e-5)
    loud = ji.steer(MODEL, ji.resid_post(1), np.full(16, 1e5, np.float32))
    with pytest.raises(ValueError, match="too much for float16; use bfloat16"):
        stream(loud, TEXTS, ji.resid_post(1), tmp_path / "loud", dtype="float16")


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "c"
    program = f"""
        import os, signal
        from pathlib import Path
        import jaxinterp as ji
        from jaxinterp.activations import stream as streaming
        from jaxinterp.models.toy import toy
        real = streaming.artefacts.write_arrays
        def killed(arrays, path, *rest):
            if path.name.endswith("2.safetensors"):
                Path(path.parent, ".shard-000002.safetensors.1.partial").write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            real(arrays, path, *rest)
        streaming.artefacts.write_arrays = killed
        streaming.stream(toy("gemma2", **{SIZES}), {TEXTS}, ji.resid_post(), Path({str(folder)!r}), batch_size=2)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ)
    assert ended.returncode == -signal.SIGKILL
    partial = open_stream(folder)
    assert not partial.manifest["complete"] and len(partial) == 4
    first, second = (folder / f"shard-00000{number}.safetensors" for number in (0, 1))
    kept = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:-1] + b"x")  # a damaged shard is as good as none
    with pytest.raises(ValueError, match="missing or damaged"):
        open_stream(folder, verify=True)

    stored = stream(MODEL, iter(TEXTS), ji.resid_post(), folder, batch_size=2)
    assert stored.manifest["complete"] and len(open_stream(folder, verify=True)) == len(TEXTS)
    assert first.stat().st_mtime_ns == kept, "a finished shard was written again"
    assert not list(folder.glob(".*.partial"))
    anew = stream(MODEL, TEXTS, ji.resid_post(), tmp_path / "anew", batch_size=2)
    for row in range(len(TEXTS)):
        np.testing.assert_array_equal(stored.read(row, "resid_post", 1), anew.read(row, "resid_post", 1))


def test_a_complete_folder_runs_nothing_again(tmp_path, monkeypatch):
    stream(MODEL, TEXTS, ji.resid_post(0), tmp_path)
    monkeypatch.setattr(streaming, "run", None)
    assert len(stream(MODEL, TEXTS, ji.resid_post(0), tmp_path)) == len(TEXTS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": ji.ablate(MODEL, ji.head(0, 1))}, "captures of another model"),
        ({"model": toy("gemma2", seed=1, **SIZES)}, "captures of another model"),
        ({"sites": ji.resid_pre(0)}, "captures of other sites"),
        ({"texts": TEXTS[1:]}, "captures of other texts"),
        ({"texts": TEXTS[:-1]}, "captures of other texts"),
        ({"texts": [*TEXTS, [1, 2]]}, "is complete with 7 texts, but more were given"),
        ({"dtype": "bfloat16"}, "written with dtype 'float32'"),
        ({"positions": "last"}, "written with positions 'all'"),
        ({"resume": False}, "holds captures already"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, sentence):
    stream(MODEL, TEXTS, ji.resid_post(0), tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    arguments = {"model": MODEL, "texts": TEXTS, "sites": ji.resid_post(0), "folder": tmp_path} | change
    with pytest.raises(ValueError, match=sentence):
        stream(**arguments)
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sites": []}, "no site was given"),
        ({"sites": [ji.resid_post(0), ji.resid_post()]}, "asked for twice"),
        ({"sites": ji.resid_post(5)}, "this model has no resid_post"),
        ({"texts": []}, "there are no texts"),
        ({"texts": [[1], []]}, "text 1 is empty"),
        ({"texts": [[1, 500]]}, "the vocabulary is"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of"),
        ({"positions": "first"}, "must be 'all' or 'last'"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"memory": 100}, "one row takes up to"),
        ({"memory": 10**5, "batch_size": 7}, "smaller batch_size"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, change, sentence):
    arguments = {"model": MODEL, "texts": TEXTS, "sites": ji.resid_post(0), "folder": tmp_path} | change
    with pytest.raises(ValueError, match=sentence):
        stream(**arguments)


def test_a_full_disk_is_refused_before_anything_runs(tmp_path, monkeypatch):
    free = type("usage", (), {"free": 1000})
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(streaming, "run", None)
    with pytest.raises(ValueError, match="the captures of 7 texts take"):
        stream(MODEL, TEXTS, ji.resid_post(), tmp_path)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis.txt but no manifest.json"):
        stream(MODEL, TEXTS, ji.resid_post(), tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "another"}))
    with pytest.raises(ValueError, match="is not that of captured activations"):
        open_stream(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        map_arrays(tmp_path / "cut.safetensors")


def test_the_digest_of_a_model_is_that_of_its_numbers_and_edits():
    same = toy("gemma2", **SIZES)
    steered = [ji.steer(MODEL, ji.resid_post(0), np.full(16, value, np.float32)) for value in (1.0, 1.0, 2.0)]
    digests = [model_digest(model) for model in (MODEL, same, *steered)]
    assert digests[0] == digests[1] and digests[2] == digests[3] and len(set(digests)) == 3


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
@pytest.mark.parametrize(
    ("sites", "logits"),
    [((), "last"), ((), "all"), ((ji.resid_post(),), "last"), ((ji.pattern(), ji.mlp_post()), "all")],
)
def test_the_bound_holds_for_what_the_compiler_says_it_needs(family, sites, logits):
    sizes = {"hidden_size": 16} if sites else {"hidden_size": 128, "intermediate_size": 512}  # activations, or weights
    model = toy(family, vocab_size=1000, num_hidden_layers=4, **sizes)
    rows, seq = 4, 64
    tokens, mask = np.zeros((rows, seq), np.int32), np.ones((rows, seq), bool)
    needs = forward_pass.lower(model.body, tokens, mask, sites=sites, logits=logits).compile().memory_analysis()
    needed = needs.temp_size_in_bytes + needs.output_size_in_bytes
    bound = rows * memory.bytes_per_row(model.architecture, sites, seq=seq, logits=logits)
    bound += memory.bytes_fixed(model.architecture)
    loose = 4 if sites == (ji.resid_post(),) else 3  # the bound counts whole scores, which are made in parts here
    assert needed <= bound <= loose * needed, f"needs {needed} bytes, the bound says {bound}"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_bound_holds_for_the_memory_a_process_takes():
    """On the CountDown model: what running many rows adds to the peak of one that has compiled and run before."""
    program = """
        import re, numpy as np, jaxinterp as ji
        from jaxinterp.activations.memory import bytes_fixed, bytes_per_row
        from pathlib import Path
        def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        def now(): return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        lm = ji.load("builtin:countdown-6m-grpo")
        rows, seq, sites = 64, 256, [ji.resid_post(), ji.mlp_post()]
        tokens = np.ones((rows, seq), np.int32)
        from jaxinterp.activations.run import forward_pass
        compiled = forward_pass.lower(lm.body, tokens, tokens > 0, sites=tuple(sites), logits="last").compile()
        Path("/proc/self/clear_refs").write_text("5")
        before = now()
        out = compiled(lm.body, tokens, tokens > 0)
        out[0].block_until_ready()
        print(peak() - before, bytes_fixed(lm.architecture) + rows * bytes_per_row(lm.architecture, sites, seq=seq))
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, env=os.environ, capture_output=True, text=True
    )
    taken, bound = map(int, out.stdout.split())
    assert taken <= bound <= 3 * taken, f"took {taken / 2**20:.0f} MiB, the bound says {bound / 2**20:.0f} MiB"


def test_memory_left_is_the_least_of_machine_and_control_groups(tmp_path):
    processes, groups = tmp_path / "proc", tmp_path / "cgroup"
    (processes / "self").mkdir(parents=True)
    (groups / "batch" / "job").mkdir(parents=True)
    (processes / "meminfo").write_text("MemTotal: 64000 kB\nMemAvailable: 32000 kB\n")
    assert memory.host_memory(processes, groups) == 32000 * 1024
    (processes / "self" / "cgroup").write_text("0::/batch/job\n")
    (groups / "batch" / "job" / "memory.max").write_text("max\n")
    (groups / "batch" / "memory.max").write_text("20000000\n")
    (groups / "batch" / "memory.current").write_text("19000000\n")
    (groups / "batch" / "memory.stat").write_text("anon 1000\ninactive_file 5000000\n")
    assert memory.host_memory(processes, groups) == 6_000_000
    assert memory.available() == memory.available(jax.devices("cpu")[0]) or memory.available() > 0


def test_batches_get_smaller_with_less_memory(tmp_path):
    assert memory.rows_that_fit(1000, memory=5000) == 4
    with pytest.raises(ValueError, match="one row takes up to"):
        memory.rows_that_fit(1000, memory=999)
    each = streaming._row_cost(MODEL, (ji.resid_post(0),), max(map(len, TEXTS)))
    stored = stream(MODEL, TEXTS, ji.resid_post(0), tmp_path, memory=3 * each + memory.bytes_fixed(MODEL.architecture))
    assert [shard["rows"] for shard in stored.manifest["shards"]] == [[0, 2], [2, 4], [4, 6], [6, 7]]

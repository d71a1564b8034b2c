import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxinterp.analysis import vocabulary_blocks
from jaxinterp.analysis.intrinsic_dimension import local_dimension
from jaxinterp.analysis.neighbourhoods import reconstruction_errors
from jaxinterp.analysis.neighbours import locally_linear_weights, nearest_neighbours
from jaxinterp.analysis.vocabulary_blocks import Settings, measure_vocabulary, read_vocabulary

SETTINGS = Settings(neighbours=5, dimension_neighbours=12)
N = 200
PROGRAM = """
    import os, signal, sys
    import numpy as np
    from jaxinterp.analysis import vocabulary_blocks
    table = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    settings = vocabulary_blocks.Settings(neighbours=5, dimension_neighbours=12)
"""


def table(seed=0):
    return np.random.default_rng(seed).normal(size=(N, 16)).astype(np.float32)


def measure(folder, rows=None, **options):
    rows = table() if rows is None else rows
    return measure_vocabulary(rows, folder, **{"settings": SETTINGS, "block": 50, "progress": False} | options)


def run(text):
    ours = textwrap.dedent(PROGRAM) + textwrap.dedent(text)
    return subprocess.run([sys.executable, "-c", ours], check=False, env=os.environ, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "n"
    assert measure(folder)["complete"]
    return read_vocabulary(folder)[0]


def same(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_hold_what_is_measured_at_once(metric, tmp_path):
    settings = Settings(neighbours=5, dimension_neighbours=12, metric=metric)
    measure(tmp_path, settings=settings, memory=2**17)
    found, manifest = read_vocabulary(tmp_path)
    near, distances = nearest_neighbours(table(), 12, metric)
    np.testing.assert_array_equal(found["neighbours"], near)
    np.testing.assert_allclose(found["distances"], distances, rtol=1e-5, atol=1e-6)
    weights = locally_linear_weights(table(), near[:, :5])
    np.testing.assert_allclose(found["weights"], weights, atol=1e-5)
    errors = reconstruction_errors(table(), np.arange(N), near[:, :5], weights)
    np.testing.assert_allclose(found["errors"], errors, rtol=1e-4)
    np.testing.assert_array_equal(found["components"], local_dimension(table(), near).components)
    assert found["tokens"].tolist() == list(range(N)) and len(manifest["blocks"]) == 4
    assert manifest["settings"]["metric"] == metric and manifest["provenance"]["version"]


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, whole):
    folder = tmp_path / "n"
    ended = run(f"""
        real = vocabulary_blocks.artefacts.write_arrays
        def killed(arrays, path, *rest):
            if path.name.startswith("tokens-0000100"):
                (path.parent / ".tokens-0000100-0000150.safetensors.1.partial").write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            real(arrays, path, *rest)
        vocabulary_blocks.artefacts.write_arrays = killed
        vocabulary_blocks.measure_vocabulary(table, {str(folder)!r}, settings, block=50)
    """)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="holds 100 of 200 tokens"):
        read_vocabulary(folder)
    first, second = sorted(folder.glob("tokens-*.safetensors"))
    kept = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:-1] + b"x")  # a damaged block is as good as none

    assert not measure(folder, block=25, blocks=2)["complete"]  # other blocks may go on, and only some of them
    assert measure(folder, block=25)["complete"]
    assert first.stat().st_mtime_ns == kept, "a finished block was written again"
    assert not list(folder.glob(".*.partial"))
    same(read_vocabulary(folder)[0], whole)
    assert measure(folder)["complete"] and first.stat().st_mtime_ns == kept


def test_several_devices_share_the_blocks(tmp_path, whole):
    ended = run(f"""
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        used = set()
        real = vocabulary_blocks.neighbours.search
        def search(pool, *rest, **options):
            used.update(pool.vectors.devices())
            return real(pool, *rest, **options)
        vocabulary_blocks.neighbours.search = search
        manifest = vocabulary_blocks.measure_vocabulary(table, {str(tmp_path / "n")!r}, settings, block=50)
        assert manifest["complete"] and len(used) == 2, used
    """)
    assert ended.returncode == 0, ended.stderr
    same(read_vocabulary(tmp_path / "n")[0], whole)


def test_tokens_are_named_by_their_ids_and_progress_is_said(tmp_path, caplog, whole):
    ids = np.arange(N) * 3 + 7
    with caplog.at_level("INFO", logger="jaxinterp"):
        measure(tmp_path, tokens=ids, progress=True)
    found, _ = read_vocabulary(tmp_path)
    assert found["tokens"].tolist() == ids.tolist()
    np.testing.assert_array_equal(found["neighbours"], ids[whole["neighbours"]])
    assert "200 of 200 tokens" in caplog.text and "a second, 0.0 min left" in caplog.text


def test_an_error_on_a_device_ends_the_run_and_keeps_what_is_done(tmp_path, monkeypatch):
    real, calls = vocabulary_blocks.local_dimension, []

    def broken(vectors, near, **options):
        calls.append(near)
        if len(calls) == 4:
            raise RuntimeError("out of luck")
        return real(vectors, near, **options)

    monkeypatch.setattr(vocabulary_blocks, "local_dimension", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        measure(tmp_path)
    monkeypatch.undo()
    assert measure(tmp_path, blocks=1)["complete"]


def test_without_a_dimension_none_is_kept(tmp_path):
    measure(tmp_path, settings=Settings(neighbours=3, dimension_neighbours=0))
    found, _ = read_vocabulary(tmp_path)
    assert "components" not in found and found["neighbours"].shape == (N, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": Settings(neighbours=200)}, "200 neighbours are asked for, but each token has 199 others"),
        ({"settings": Settings(neighbours=0)}, "at least 1"),
        ({"rows": table(1)}, "neighbourhoods of another table"),
        ({"settings": Settings(neighbours=6, dimension_neighbours=12)}, "written with neighbours 5, not 6"),
        ({"block": 0}, "at least 1"),
        ({"tokens": np.arange(3)}, r"\(3,\) ids"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, words):
    measure(tmp_path, blocks=1)
    with pytest.raises(ValueError, match=words):
        measure(tmp_path, **options)


def test_folders_and_tables_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt but no manifest.json"):
        measure(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        measure(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="row 4 of 1 such rows of the vectors is zero"):
        measure(tmp_path / "n", np.where(np.arange(N)[:, None] == 4, 0, table()))
    (tmp_path / "n" / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="not that of a vocabulary's neighbourhoods"):
        read_vocabulary(tmp_path / "n")

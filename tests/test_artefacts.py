import json
import math
import multiprocessing
import os
import signal

import jax
import matplotlib.figure
import numpy as np
import polars as pl
import pytest

from jaxinterp import artefacts

WHERE = {"version": "0.1.0", "config": {"seed": 3}, "models": {"a": "pypi:a==1"}}


@pytest.fixture
def frame():
    return pl.DataFrame({"layer": [0, 1, 2], "accuracy": [0.123456789, 1e-9, None], "model": ["a", "b", "ü"]})


def test_table_and_provenance_come_back_whole(tmp_path, frame):
    artefacts.write_table(frame, tmp_path / "deep" / "t.parquet", WHERE)
    table, where = artefacts.read_table(tmp_path / "deep" / "t.parquet")
    assert table.equals(frame)
    assert where == WHERE
    csv = (tmp_path / "deep" / "t.csv").read_text().splitlines()
    assert csv[0] == "layer,accuracy,model"
    assert csv[1].split(",")[1] == "0.123457"
    assert float(csv[2].split(",")[1]) == 1e-9
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["t.csv", "t.parquet"]


def test_table_refuses_nested_columns_and_other_endings(tmp_path, frame):
    with pytest.raises(ValueError, match=r"columns xs are nested"):
        artefacts.write_table(pl.DataFrame({"xs": [[1]]}), tmp_path / "t.parquet", WHERE)
    with pytest.raises(ValueError, match=r"\.parquet file"):
        artefacts.write_table(frame, tmp_path / "t.csv", WHERE)
    assert list(tmp_path.iterdir()) == []


def test_broken_and_missing_tables_are_one_sentence(tmp_path, frame):
    artefacts.write_table(frame, tmp_path / "t.parquet", WHERE)
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t\.parquet: not a whole Parquet file"):
        artefacts.read_table(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"no\.parquet: there is no such table"):
        artefacts.read_table(tmp_path / "no.parquet")


def test_arrays_keep_values_types_and_axes(tmp_path):
    arrays = {"map": np.arange(6.0).reshape(2, 3).T, "scale": np.float32(2.5), "ids": np.array([1, 2], np.int32)}
    axes = {"map": ("embedding", "target"), "ids": ("vocabulary",)}
    artefacts.write_arrays(arrays, tmp_path / "m.safetensors", axes, WHERE)
    back, where = artefacts.read_arrays(tmp_path / "m.safetensors")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert where["axes"] == {"map": ["embedding", "target"], "scale": [], "ids": ["vocabulary"]}
    assert where["config"] == {"seed": 3}


def test_arrays_without_axes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="array 'w' has 2 dimensions"):
        artefacts.write_arrays({"w": np.zeros((2, 2))}, tmp_path / "m.safetensors", {"w": ("layer",)}, WHERE)
    with pytest.raises(ValueError, match="array 'w' has 1 dimensions"):
        artefacts.write_arrays({"w": np.zeros(2)}, tmp_path / "m.safetensors", {}, WHERE)
    assert list(tmp_path.iterdir()) == []


def test_truncated_arrays_are_one_sentence(tmp_path):
    path = tmp_path / "m.safetensors"
    artefacts.write_arrays({"w": np.zeros(9)}, path, {"w": ("layer",)}, WHERE)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"m\.safetensors: not a whole safetensors file"):
        artefacts.read_arrays(path)


def test_json_refuses_what_is_not_a_number(tmp_path):
    artefacts.write_json([{"ours": np.float32(0.5), "n": np.int64(3), "low": None}], tmp_path / "check.json")
    assert artefacts.read_json(tmp_path / "check.json") == [{"ours": 0.5, "n": 3, "low": None}]
    with pytest.raises(ValueError, match=r"check\.json: a number is not finite"):
        artefacts.write_json([{"ours": math.nan}], tmp_path / "check.json")
    assert artefacts.read_json(tmp_path / "check.json")[0]["n"] == 3, "a failed write leaves the old file"
    with pytest.raises(TypeError, match="set cannot be written"):
        artefacts.write_json({"a": {1}}, tmp_path / "a.json")


def test_figure_carries_its_provenance_and_is_stable(tmp_path):
    for name in ("a.svg", "b.svg"):
        figure = matplotlib.figure.Figure()
        figure.subplots().plot([0, 1], [1, 2])
        with matplotlib.rc_context({"svg.hashsalt": "jaxinterp"}):
            artefacts.write_figure(figure, tmp_path / name, WHERE)
    text = (tmp_path / "a.svg").read_text()
    assert "pypi:a==1" in text
    assert text == (tmp_path / "b.svg").read_text()


def test_provenance_says_what_ran():
    where = artefacts.provenance({"seed": 7, "k": 2}, models={"a": "pypi:a==1"})
    assert where["seed"] == 7
    assert where["models"] == {"a": "pypi:a==1"}
    assert where["device"].startswith("cpu")
    told = {"version", "commit", "config", "models", "seed", "jax", "time"}
    assert set(where) == told | {"image", "backend", "device", "devices", "processes"}
    assert where["backend"] == "cpu" and where["devices"] == jax.device_count() and where["processes"] == 1
    assert where["image"] == artefacts.image()
    json.dumps(where)


def test_provenance_names_the_image_that_it_ran_in(tmp_path, monkeypatch):
    marker = {"name": "jaxinterp-cpu", "accelerator": "cpu", "commit": "abc"}
    (tmp_path / "marker.json").write_text(json.dumps(marker))
    monkeypatch.setattr(artefacts, "_MARKER", tmp_path / "marker.json")
    monkeypatch.setattr(artefacts, "_PACKAGE", tmp_path / "site-packages" / "jaxinterp")
    where = artefacts.provenance()
    assert where["image"] == marker
    assert where["commit"] == "abc", "an installed package has no checkout to ask"
    (tmp_path / "marker.json").write_text("{")
    with pytest.raises(ValueError, match=r"marker\.json: not JSON"):
        artefacts.provenance()


def test_the_digest_of_the_package_tells_other_code_from_the_same(tmp_path, monkeypatch):
    def digest(**sources):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.setattr(artefacts, "_PACKAGE", folder)
        return artefacts.package_digest()

    first = digest(a="x = 1\n", b="")
    assert digest(a="x = 1\n", b="") == first, "wherever it lies"
    assert len({first, digest(a="x = 2\n", b=""), digest(a="", b="x = 1\n"), digest(a="x = 1\n")}) == 4


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    artefacts.write_text("old", tmp_path / "page.html")
    with pytest.raises(RuntimeError), artefacts.replacing(tmp_path / "page.html") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "page.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def _write_and_die(path):
    with artefacts.replacing(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    path = tmp_path / "t.txt"
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()

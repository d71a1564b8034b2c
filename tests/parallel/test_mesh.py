import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import jaxinterp as ji
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.models.toy import CONFIGS, toy
from jaxinterp.parallel.mesh import AXES, Mesh, groups
from jaxinterp.parallel.placement import mesh_of
from jaxinterp.parallel.rules import check, weight_shardings
from jaxinterp.parallel.stacked import lay_out


def abstract(line):
    return AbstractMesh(Mesh.of(line).shape, AXES)


def specs(architecture, line):
    return {name: sharding.spec for name, sharding in weight_shardings(architecture, abstract(line)).items()}


@pytest.mark.parametrize("line", ["data=2,tensor=4", "data=2 tensor=4", "tensor=4,data=2"])
def test_one_line_says_a_mesh(line):
    assert Mesh.of(line) == Mesh(data=2, tensor=4)
    assert Mesh.of(str(Mesh.of(line))) == Mesh.of(line)
    assert Mesh.of(None) == Mesh.of("") == Mesh()
    assert (Mesh.of(line).size, Mesh.of(line).rows) == (8, 2)


@pytest.mark.parametrize("line", ["model=2", "data", "data=0", "data=-1", "data=2,data=2", "data=two"])
def test_a_line_that_is_no_mesh_is_a_sentence(line):
    with pytest.raises(ValueError, match="is not understood; give each of"):
        Mesh.of(line)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_divided_by_heads_units_and_width(family):
    found = specs(toy(family).architecture, "fsdp=2,tensor=2")
    for layer in range(3):
        block = f"blocks.{layer}."
        for name in ("W_Q", "W_K", "W_V"):
            assert found[block + name] == PartitionSpec("tensor", None, "fsdp")
        assert found[f"{block}W_O"] == PartitionSpec("fsdp", "tensor", None)
        assert found[f"{block}W_in"] == PartitionSpec("tensor", "fsdp")
        assert found[f"{block}W_out"] == PartitionSpec("fsdp", "tensor")
    biases = {name: spec for name, spec in found.items() if "b_Q" in name or "b_K" in name}
    assert set(biases.values()) <= {PartitionSpec("tensor", None)}


def test_a_vocabulary_that_does_not_divide_is_whole():
    assert specs(toy("qwen2").architecture, "tensor=2")["W_U"] == PartitionSpec(None, "fsdp")
    assert specs(toy("qwen2", vocab_size=102).architecture, "tensor=2")["W_U"] == PartitionSpec("tensor", "fsdp")


def test_too_few_key_value_heads_are_whole_on_every_device():
    found = specs(toy("llama").architecture, "tensor=4")
    assert found["blocks.0.W_Q"] == PartitionSpec("tensor", None, "fsdp")
    assert found["blocks.0.W_K"] == found["blocks.0.W_V"] == PartitionSpec(None, None, "fsdp")


def test_what_does_not_divide_is_named_all_at_once():
    architecture = toy("llama").architecture
    with pytest.raises(ValueError, match=r"4 of head do not divide among 3.*32 of embedding do not divide among 5"):
        check(architecture, abstract("fsdp=5,tensor=3"))
    wide = toy("llama", num_attention_heads=6, num_key_value_heads=2).architecture
    with pytest.raises(ValueError, match="2 of kv_head neither divide among 3 devices of tensor nor divide"):
        check(wide, abstract("tensor=3"))


def test_more_devices_than_there_are_is_a_sentence():
    with pytest.raises(ValueError, match="64 devices are asked for, and there are 1; lower one axis"):
        ji.shard(toy("llama"), "data=8,tensor=8")
    with pytest.raises(ValueError, match="at least 1"):
        Mesh(data=0).arrange()
    with pytest.raises(ValueError, match="a mesh has the axes sweep, data, fsdp, tensor, not model"):
        ji.shard(toy("llama"), jax.sharding.Mesh(np.array(jax.devices()), ("model",)))
    with pytest.raises(ValueError, match="no/such/folder"):
        ji.load_sharded("no/such/folder", "data=1")


def test_a_batch_of_training_divides():
    with pytest.raises(ValueError, match="there are 1"):
        lay_out(Mesh(data=3), toy().architecture, 7)


def test_a_model_on_one_device_of_a_mesh_is_the_same_model():
    lm = ji.ablate(toy("llama"), ji.head(1, 2))
    placed = ji.shard(lm, "data=1")
    assert mesh_of(lm.body) is None
    assert mesh_of(placed.body).size == 1
    tokens = np.arange(12).reshape(2, 6)
    np.testing.assert_allclose(ji.run(placed, tokens)[0], ji.run(lm, tokens)[0], atol=1e-6)


def test_a_model_without_numbers_says_where_they_would_be():
    shapes = ji.shard(load_shapes("shape:qwen2.5-3b", "bfloat16"), "data=1")
    weight = shapes.weights()["blocks.35.W_K"]
    assert weight.sharding.spec == PartitionSpec("tensor", None, "fsdp")
    assert isinstance(weight, jax.ShapeDtypeStruct)


def test_groups_hold_a_whole_model_each():
    mesh = Mesh().arrange()
    ((only,),) = groups(mesh)
    assert only.shape == mesh.shape

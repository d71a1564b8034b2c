"""Plans by the TPU's own compiler, on shapes small enough for seconds; skipped where libtpu is not installed."""

import json
import subprocess
import sys

import pytest

pytest.importorskip(
    "libtpu", reason="libtpu is not installed, which has the TPU's compiler: pip install jaxinterp[tpu-plan]"
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh as Devices
from jax.sharding import NamedSharding, PartitionSpec

from jaxinterp import artefacts
from jaxinterp.analysis.plans import compiler, plan, workloads
from jaxinterp.analysis.plans.chips import CHIPS, Topology
from jaxinterp.analysis.plans.compiler import DoesNotFitError
from jaxinterp.analysis.plans.shapes import Load
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.models.toy import CONFIGS
from jaxinterp.parallel.mesh import Mesh

CONFIG = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def value(table, part, quantity):
    (found,) = table.filter((table["part"] == part) & (table["quantity"] == quantity))["value"]
    return found


def products(rows, seq, chips, *, read=1):
    """Operations of all matrix products of a forward pass on each chip."""
    width, units, heads, kv_heads, head = 512, 512, 8, 4, 128
    weights = width * head * (2 * heads + 2 * kv_heads) + 3 * width * units
    attention = 2 * heads * head * seq
    return 2 * rows * (5 * seq * (weights + attention) + read * width * 512) / chips


def test_a_forward_pass_takes_what_its_products_take_and_two_sums_a_block(config):
    settings = plan.Settings(topology="v5e:2x2", mesh="data=2,tensor=2", rows=8, seq=128)
    table = plan.measure(config, settings)
    assert value(table, "whole", "flops") == pytest.approx(products(8, 128, 4), rel=0.1)
    assert value(table, "forward pass", "all-reduce") == 2 * 5 + 1, "attention and MLP of each block, and the embedding"
    model = load_shapes(config, "bfloat16")
    held = sum(np.prod(weight.shape) for weight in model.weights().values()) * 2 / 2
    read = 5 * 4 * 128 * 512 * 2
    assert value(table, "forward pass", "arguments") * 2**30 == pytest.approx(held, rel=0.02)
    assert value(table, "forward pass", "results") * 2**30 == pytest.approx(read, rel=0.1)
    assert value(table, "whole", "fits") == 1.0
    text = plan.describe(table)
    assert "on v5e:2x2 as data=2,tensor=2" in text and ": fits" in text and "11 all-reduce" in text


def test_blocks_that_are_not_compiled_count_as_if_they_were(config, monkeypatch):
    devices = compiler.devices_of(Topology.of("v5e:2x2"))
    mesh = Mesh(tensor=4).arrange(devices)
    load = Load(rows=4, seq=64, new=4, memory=15.75)
    model = load_shapes(config, "bfloat16")
    (guessed,) = workloads.parts("forward", model, mesh, load)
    monkeypatch.setattr("jaxinterp.analysis.plans.shapes.FEW", 5)
    (compiled,) = workloads.parts("forward", model, mesh, load)
    assert guessed.cost.flops == pytest.approx(compiled.cost.flops, rel=0.01)
    assert guessed.cost.bytes == pytest.approx(compiled.cost.bytes, rel=0.1)
    assert guessed.cost.arguments == compiled.cost.arguments
    assert guessed.cost.results == compiled.cost.results
    assert guessed.cost.sent["all-reduce"] == compiled.cost.sent["all-reduce"]


def test_a_shallow_model_and_one_with_learned_positions(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2", **CONFIGS["gpt2"], "n_layer": 1}))
    settings = plan.Settings(workload="generate", topology="v5e:2x2", mesh="data=4", rows=4, seq=48, new=16)
    assert value(plan.measure(path, settings), "token", "times") == 16
    with pytest.raises(ValueError, match="has 64 learned positions, and 65 tokens are asked for"):
        plan.measure(path, plan.Settings(workload="generate", topology="v5e:2x2", seq=48, new=17))


def test_edits_of_every_block_compile_and_cost_little(config):
    settings = plan.Settings(workload="edited_forward", topology="v5e:2x2", mesh="tensor=4", rows=4, seq=64)
    table = plan.measure(config, settings)
    plain = products(4, 64, 4)
    assert plain < value(table, "whole", "flops") < 1.5 * plain


def test_a_generated_token_keeps_keys_and_values_on_the_chips_of_their_heads(config):
    settings = plan.Settings(workload="generate", topology="v5e:2x2", mesh="tensor=4", rows=8, seq=64, new=64)
    table = plan.measure(config, settings)
    kept = 2 * 5 * 8 * 128 * 4 * 128 * 2 / 4
    weights = value(table, "prompt", "arguments") * 2**30
    assert value(table, "token", "times") == 64
    assert value(table, "token", "arguments") * 2**30 - weights == pytest.approx(kept, rel=0.1)
    assert value(table, "token", "results") * 2**30 < kept / 4, "they are replaced where they lie"
    assert value(table, "token", "flops") < value(table, "prompt", "flops") / 20


def test_training_divides_what_it_keeps_over_fsdp(config):
    settings = plan.Settings(workload="train", topology="v5e:2x2", rows=8, seq=64)
    table = plan.measure(config, settings)
    parameters = value(table, "whole", "parameters")
    assert table["mesh"][0] == "fsdp=4"
    assert value(table, "training step", "arguments") * 2**30 == pytest.approx(12 * parameters / 4, rel=0.05)
    assert value(table, "training step", "flops") == pytest.approx(4 * products(8, 64, 4, read=64), rel=0.15)


@pytest.mark.parametrize("topology", ["v5e:4x4", "v6e:2x2", "v5p:2x2x1"])
def test_other_slices(config, topology):
    table = plan.measure(config, plan.Settings(topology=topology, rows=16, seq=16))
    assert value(table, "whole", "fits") == 1.0
    assert value(table, "whole", "available") == CHIPS[topology.partition(":")[0]].memory


def test_what_does_not_fit_is_said_with_what_to_change(config):
    settings = plan.Settings(topology="v5e:2x2", mesh="data=4", rows=64, seq=16384)
    table = plan.measure(config, settings)
    assert value(table, "whole", "fits") == 0.0
    needed = value(table, "whole", "memory")
    assert needed is None or needed > 15.75
    text = plan.describe(table)
    assert "DOES NOT FIT" in text and "take fewer texts at a time: about --rows" in text


def program(shape):
    mesh = Devices(np.array(compiler.devices_of(Topology.of("v5e:2x2"))), ("chips",))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))


def test_a_program_beyond_a_chips_memory_says_how_much_it_takes():
    with pytest.raises(
        DoesNotFitError, match=r"^squares takes 16\.00 GiB of each chip, and there are 15\.75"
    ) as caught:
        compiler.compile_cost(lambda x: (x @ x).sum(), program((65536, 65536)), what="squares")
    assert caught.value.needed == 16 * 2**30


def test_what_a_tpu_cannot_do_is_a_sentence():
    with pytest.raises(ValueError, match=r"^eigenvalues: a TPU cannot do this: .*eig"):
        compiler.compile_cost(jnp.linalg.eigvals, program((8, 8)), what="eigenvalues")


def test_a_slice_that_the_compiler_does_not_know_is_a_sentence():
    with pytest.raises(ValueError, match=r"topology v5e:3x5: the compiler (does not take it|sees)"):
        compiler.devices_of(Topology.of("v5e:3x5"))


@pytest.mark.slow
def test_a_patching_sweep_shares_its_cells(config, tmp_path):
    path = tmp_path / "plan.parquet"
    command = [
        sys.executable,
        "-m",
        "jaxinterp.cli",
        "plan",
        config,
        "--topology",
        "v5e:2x2",
        "--workload",
        "patch_sweep",
    ]
    command += ["--mesh", "sweep=2,tensor=2", "--rows", "4", "--seq", "64", "--output", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    table, origin = artefacts.read_table(path)
    assert origin["config"]["workload"] == "patch_sweep" and origin["models"] == [str(config)]
    assert "sweep=2" in done.stdout and ": fits" in done.stdout
    entered = table.filter(table["part"].str.starts_with("entering") & (table["quantity"] == "times"))["value"].sum()
    assert entered >= 5, "one tile for each column that cells may start at"

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jaxinterp.models.nnx import Decoder
from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.parallel.mesh import Mesh
from jaxinterp.training import language_model
from jaxinterp.training.checkpoints import Checkpoints

sizes = dict(vocabulary=18, embedding=16, layers=2, heads=2, kv_heads=2, projection=8, neurons=32)
architecture = Architecture(
    family="qwen2", context=32, ropes=(Rope(theta=1e4, rotary=8),) * 2, qkv_bias=True, tied=False, **sizes
)
decoder = Decoder(architecture, nnx.Rngs(0))
rows = np.random.default_rng(0).integers(0, 17, (40, 13)).astype(np.int32)
course = language_model.Course(steps=8, rows=8, warm_up=2, log_every=1, save_every=4)
found = {"devices": len(jax.devices())}
meshes = {"one": "data=1", "data": "data=4", "fsdp": "fsdp=4", "tensor": "fsdp=2,tensor=2"}
for name, line in meshes.items():
    sharded = []
    def look(now):
        weights = nnx.state(now)
        leaves = jax.tree_util.tree_leaves_with_path(weights)
        parts = [(str(path), leaf, leaf.addressable_shards[0].data) for path, leaf in leaves]
        sharded[:] = [[path, leaf.shape, part.shape, len(leaf.sharding.device_set)] for path, leaf, part in parts]
        return {}
    with Checkpoints(sys.argv[1] + "/" + name) as checkpoints:
        _, log = language_model.train(
            decoder, rows, course, devices=Mesh.of(line), measure=look,
            checkpoints=checkpoints
        )
    found[name] = {"losses": log["loss"].to_list(), "norms": log["gradient_norm"].to_list(), "shards": sharded}
import shutil
shutil.rmtree(sys.argv[1] + "/fsdp/8")
with Checkpoints(sys.argv[1] + "/fsdp") as checkpoints:
    _, log = language_model.train(decoder, rows, course, checkpoints=checkpoints)
found["resumed on one"] = log["loss"].to_list()
print("RESULT" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    place = str(tmp_path_factory.mktemp("runs"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, place], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("RESULT")[2])


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_several_devices_learn_what_one_learns(found, name):
    assert found["devices"] == 4
    np.testing.assert_allclose(found[name]["losses"], found["one"]["losses"], rtol=1e-5)
    np.testing.assert_allclose(found[name]["norms"], found["one"]["norms"], rtol=1e-3)


@pytest.mark.parametrize(("name", "parts"), [("data", 1), ("fsdp", 4)])
def test_weights_are_split_over_fsdp_alone(found, name, parts):
    split = [whole for _, whole, part, devices in found[name]["shards"] if np.prod(whole) == parts * np.prod(part)]
    assert all(devices == 4 for *_, devices in found[name]["shards"])
    assert sum(map(np.prod, split)) / sum(np.prod(whole) for _, whole, *_ in found[name]["shards"]) > 0.95


def test_a_run_goes_on_on_other_devices(found):
    np.testing.assert_allclose(found["resumed on one"], found["one"]["losses"], rtol=1e-5)


def test_heads_and_units_are_split_over_tensor_too(found):
    parts = {path: np.prod(whole) / np.prod(part) for path, whole, part, _ in found["tensor"]["shards"]}
    assert len(parts) == len(found["one"]["shards"])
    for name, times in (("W_Q", 4), ("W_K", 4), ("W_O", 4), ("W_in", 4), ("W_out", 4), ("W_E", 4), ("ln_attn.w", 2)):
        assert next(count for path, count in parts.items() if f"'{name}'" in path) == times

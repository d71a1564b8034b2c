import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.models.toy import toy
from jaxinterp.training.mesh import Mesh, make

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jaxinterp.models.nnx import Decoder
from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.training import language_model, mesh
from jaxinterp.training.checkpoints import Checkpoints

sizes = dict(vocabulary=18, embedding=16, layers=2, heads=2, kv_heads=1, projection=8, neurons=32)
architecture = Architecture(
    family="qwen2", context=32, ropes=(Rope(theta=1e4, rotary=8),) * 2, qkv_bias=True, tied=False, **sizes
)
decoder = Decoder(architecture, nnx.Rngs(0))
rows = np.random.default_rng(0).integers(0, 17, (40, 13)).astype(np.int32)
course = language_model.Course(steps=8, rows=8, warm_up=2, log_every=1, save_every=4)
found = {"devices": len(jax.devices())}
for name, devices in {"one": (1, 1), "data": (4, 1), "fsdp": (1, 4), "both": (2, 2)}.items():
    sharded = []
    def look(now):
        weights = nnx.state(now)
        leaves = jax.tree_util.tree_leaves_with_path(weights)
        parts = [(str(path), leaf, leaf.addressable_shards[0].data) for path, leaf in leaves]
        sharded[:] = [[path, leaf.shape, part.shape, len(leaf.sharding.device_set)] for path, leaf, part in parts]
        return {}
    with Checkpoints(sys.argv[1] + "/" + name) as checkpoints:
        _, log = language_model.train(
            decoder, rows, course, devices=mesh.Mesh(data=devices[0], fsdp=devices[1]), measure=look,
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


@pytest.mark.parametrize("name", ["data", "fsdp", "both"])
def test_several_devices_learn_what_one_learns(found, name):
    assert found["devices"] == 4
    np.testing.assert_allclose(found[name]["losses"], found["one"]["losses"], rtol=1e-5)
    np.testing.assert_allclose(found[name]["norms"], found["one"]["norms"], rtol=1e-3)


@pytest.mark.parametrize(("name", "parts"), [("data", 1), ("fsdp", 4), ("both", 2)])
def test_weights_are_split_over_fsdp_alone(found, name, parts):
    split = [whole for _, whole, part, devices in found[name]["shards"] if np.prod(whole) == parts * np.prod(part)]
    assert all(devices == 4 for *_, devices in found[name]["shards"])
    assert sum(map(np.prod, split)) / sum(np.prod(whole) for _, whole, *_ in found[name]["shards"]) > 0.95


def test_a_run_goes_on_on_other_devices(found):
    np.testing.assert_allclose(found["resumed on one"], found["one"]["losses"], rtol=1e-5)


def test_what_does_not_divide_is_a_sentence():
    architecture = toy().architecture
    for mesh, rows, sentence in (
        (Mesh(data=3), 7, "there are 1"),
        (Mesh(data=0), 7, "at least 1"),
        (Mesh(fsdp=3), 9, "does not divide among 3 devices of fsdp"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make(mesh, architecture, rows)

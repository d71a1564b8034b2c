"""One model on 1, 2, 4 and 8 devices, and on several processes: the same numbers, and the shards that the rules say."""

import pytest

EIGHT = ("tensor=2", "data=2", "tensor=4", "fsdp=2,tensor=4", "data=2,fsdp=2,tensor=2", "sweep=4,tensor=2", "data=8")


@pytest.fixture(scope="module")
def four(devices):
    devices.run("brief", "llama", "none", "tensor=2,data=2", devices=4)
    return devices


@pytest.fixture(scope="module")
def whole(devices):
    devices.run("model", "llama", "none", "tensor=2,data=2", "fsdp=2,sweep=2", devices=4)
    return devices


def test_four_devices_run_and_generate_what_one_does(four):
    four.agree("llama", "tensor=2,data=2")


def test_each_device_holds_its_shard(four):
    found = four.about("llama", "tensor=2,data=2")
    assert found["devices"] == 4
    # 4 heads and 2 key-value heads of width 8, 48 units, 96 tokens, width 32: half of each, but of the width.
    assert found["weights"]["blocks.1.W_Q"] == [2, 8, 32]
    assert found["weights"]["blocks.1.W_K"] == found["weights"]["blocks.1.W_V"] == [1, 8, 32]
    assert found["weights"]["blocks.1.W_O"] == [32, 2, 8]
    assert found["weights"]["blocks.1.W_gate"] == [24, 32]
    assert found["weights"]["W_E"] == [48, 32]
    # Rows over data, and two sums over tensor in each block: behind attention and behind the MLP.
    assert found["leaving"] == [12, 10, 32]
    assert found["collectives"] == 2
    assert found["cache"] == [[1, 12, 1, 16, 8]], "rows over data, key-value heads over tensor"


@pytest.mark.slow
def test_two_processes_share_one_model(four):
    four.run("brief", "llama", "tensor=4", devices=2, processes=2)
    four.agree("llama", "tensor=4")
    assert four.about("llama", "tensor=4")["weights"]["blocks.0.W_K"] == [2, 8, 32], "2 heads are whole on 4 devices"


@pytest.mark.slow
def test_four_processes_do_what_one_device_does(four):
    four.run("brief", "llama", "fsdp=2,data=2", processes=4)
    four.agree("llama", "fsdp=2,data=2")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tensor=2,data=2", "fsdp=2,sweep=2"])
def test_four_devices_sweep_what_one_does_too(whole, mesh):
    whole.agree("llama", mesh)


@pytest.mark.slow
def test_fsdp_shares_the_width(whole):
    found = whole.about("llama", "fsdp=2,sweep=2")
    assert found["weights"]["blocks.1.W_Q"] == [4, 8, 16]
    assert found["weights"]["W_E"] == [96, 16]
    assert found["leaving"] == [12, 10, 16]


@pytest.mark.slow
def test_two_processes_do_what_one_device_does(whole):
    said = whole.run("model", "llama", "sweep=2,tensor=2", devices=2, processes=2)
    assert "sweep=2,tensor=2" in said
    whole.agree("llama", "sweep=2,tensor=2")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3"])
def test_eight_devices_do_what_one_does_in_every_family(devices, family):
    meshes = EIGHT if family == "llama" else ("data=2,fsdp=2,tensor=2", "sweep=4,tensor=2")
    devices.run("model", family, "none", *meshes, devices=8)
    for mesh in meshes:
        devices.agree(family, mesh)
    about = devices.about(family, "data=2,fsdp=2,tensor=2")
    assert about["devices"] == 8
    assert about["weights"]["blocks.0.W_Q"] == [2, 8, 16]
    if family == "llama":
        assert devices.about(family, "tensor=4")["weights"]["blocks.0.W_Q"] == [1, 8, 32]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "count", "mesh"), [(2, 2, "fsdp=2,tensor=2"), (4, 1, "data=2,fsdp=2")])
def test_processes_train_what_one_device_trains(devices, processes, count, mesh):
    devices.run("train", "q", "none")
    devices.run("train", "q", mesh, devices=count, processes=processes)
    devices.agree("q", mesh)

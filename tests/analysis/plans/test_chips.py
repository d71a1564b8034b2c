"""Slices, collectives and costs: what needs no compiler."""

import dataclasses

import polars as pl
import pytest

from jaxinterp.analysis.plans import collectives, compiler, plan, summary, sweeps
from jaxinterp.analysis.plans.chips import CHIPS, SLICES, Topology
from jaxinterp.analysis.plans.compiler import Cost
from jaxinterp.analysis.plans.shapes import Part
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.parallel.mesh import Mesh

GIB = 2**30


def test_slices_are_read_and_refused():
    assert (Topology.of("v5e:4x4").chips, Topology.of("v5p:2x2x1").chips, str(Topology.of("v6e:2x4"))) == (
        16,
        4,
        "v6e:2x4",
    )
    for name, sentence in {
        "v9:2x2": "there is no generation 'v9'",
        "v5e": "write two numbers of chips, as in v5e:2x2",
        "v5e:2x2x1": "write two numbers",
        "v5p:4x4": "write three numbers of chips, as in v5p:2x2x1",
        "v5e:0x4": "write two numbers",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            Topology.of(name)
    for generation, grids in SLICES.items():
        sizes = [Topology.of(f"{generation}:{grid}").chips for grid in grids]
        assert sizes == sorted(sizes)
    assert all(chip.source.startswith("https://") for chip in CHIPS.values())


PROGRAM = """HloModule m

%fused (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0} parameter(0)
}

%all-reduce-scatter.1 (p: f32[16,4]) -> f32[4,4] {
  %a = f32[16,4]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %f = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%fused
  %g = bf16[32,128]{1,0} all-gather(%f), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %s = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%f), replica_groups=[2,4]<=[8], dimensions={0}
  %d = bf16[32,128]{1,0} all-gather-done(%s)
  %c = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,0}}
  %r = bf16[2,128]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}
"""


def test_collectives_are_counted_with_the_bytes_that_a_chip_sends():
    found = collectives.count(PROGRAM)
    gathered = 2 * 32 * 128 * 3 / 4
    assert found == {
        "all-gather": (2.0, 2 * gathered),
        "reduce-scatter": (2.0, 4 * 16 * 4 * 3 / 4 + 2 * 2 * 128 * 4 * 3 / 4),
        "collective-permute": (1.0, 40.0),
    }


def cost(**numbers):
    given = {"flops": 0.0, "bytes": 0.0, "arguments": 0.0, "results": 0.0, "working": 0.0}
    return Cost(**given | numbers)


def test_further_blocks_add_what_the_last_one_did():
    two = cost(flops=10.0, working=7.0, sent={"all-reduce": (5.0, 50.0)})
    three = cost(flops=14.0, working=6.0, sent={"all-reduce": (7.0, 70.0), "all-gather": (1.0, 8.0)})
    five = three.continued(two, 2)
    assert (five.flops, five.working) == (22.0, 6.0)
    assert five.sent == {"all-reduce": (11.0, 110.0), "all-gather": (3.0, 24.0)}


def test_the_least_time_is_bound_by_the_slowest():
    chip = CHIPS["v5e"]
    second = {"flops": chip.flops, "bytes": chip.bandwidth}
    assert plan.least_time(cost(flops=2 * second["flops"], bytes=second["bytes"]), chip) == (2.0, "operations")
    assert plan.least_time(cost(bytes=3 * second["bytes"]), chip) == (3.0, "memory")
    assert plan.least_time(cost(sent={"all-reduce": (1.0, 2 * chip.links)}), chip) == (4.0, "links")


def test_a_program_without_all_weights_runs_beside_what_the_first_left():
    first = Part("unedited run", 1, cost(arguments=10.0, results=5.0, working=1.0))
    block = Part("a block", 9, cost(arguments=2.0, working=4.0), whole=False)
    assert plan.peak([first]) == 16.0
    assert plan.peak([first, block]) == 21.0


@pytest.mark.parametrize(
    ("name", "topology", "workload", "mesh"),
    [
        ("qwen2.5-3b", "v5e:2x2", "forward", "data=4"),
        ("llama-3-8b", "v5e:2x4", "generate", "data=4,tensor=2"),
        ("llama-3-8b", "v5e:2x4", "patch_sweep", "tensor=2,sweep=4"),
        ("llama-3-70b", "v5e:4x4", "forward", "tensor=16"),
        ("llama-3-70b", "v5e:2x4", "forward", "tensor=8"),
        ("llama-3-8b", "v5e:4x4", "train", "fsdp=4,tensor=4"),
        ("qwen2.5-3b", "v5p:2x2x1", "train", "fsdp=4"),
    ],
)
def test_a_mesh_divides_the_weights_as_far_as_needed(name, topology, workload, mesh):
    settings = plan.Settings(workload=workload, topology=topology)
    model = load_shapes(f"shape:{name}", "bfloat16")
    assert plan.choose_mesh(model, Topology.of(topology), settings) == Mesh.of(mesh)


def test_advice_names_what_would_fit():
    model = load_shapes("shape:llama-3-70b", "bfloat16")
    settings = plan.Settings(topology="v5e:2x4")
    changes = plan.advice(model, settings, Topology.of("v5e:2x4"), Mesh(tensor=8), None)
    assert changes == [
        f"take a slice whose chips hold the weights with room to spare: --topology {found}"
        for found in ("v5e:4x4", "v5p:2x2x1", "v6e:2x4")
    ]
    model = load_shapes("shape:llama-3-8b", "float32")
    settings = dataclasses.replace(settings, dtype="float32", rows=64)
    changes = plan.advice(model, settings, Topology.of("v5e:2x4"), Mesh(data=2, tensor=4), 20.0)
    assert changes[:4] == [
        "take --dtype bfloat16: weights take half",
        "take fewer texts at a time: about --rows 42",
        "take shorter texts than --seq 512",
        "divide the weights further: --mesh tensor=8",
    ]


def test_blocks_are_passed_by_the_cells_that_entered_before_them():
    assert sweeps._block_passes(positions=1, layers=4, tile=1, most=100) == 1 + 2 + 3
    assert sweeps._block_passes(positions=4, layers=3, tile=4, most=100) == 1 + 2
    assert sweeps._block_passes(positions=1, layers=3, tile=4, most=100) == 0.25 + 0.5
    assert sum(sweeps._columns(512).values()) == 512
    assert list(sweeps._columns(512)) == [0, 128, 256, 384, 511]


def test_without_libtpu_the_sentence_says_how_to_get_it_and_its_licence(monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu is not installed.*pip install 'jaxinterp\[tpu-plan\]'.*licence"):
        plan.measure("shape:qwen2.5-3b", plan.Settings(topology="v5e:2x2"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workload": "dream"}, "there is no workload 'dream'; there are forward"),
        ({"rows": 0}, "each must be positive"),
        ({"mesh": "data=2"}, "mesh data=2 has 2 devices, and v5e:2x4 has 8 chips"),
        ({"mesh": "rows=8"}, "is not understood"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan.measure("shape:qwen2.5-3b", plan.Settings(**settings))


def test_a_summary_has_a_row_for_each_plan():
    asked = {"model": "shape:m", "workload": "generate", "topology": "v5e:2x2", "mesh": "tensor=4", "dtype": "bfloat16"}
    asked |= {"rows": 4, "seq": 16, "new": 8}
    rows = [
        *[("whole", name, value) for name, value in {"memory": 2.5, "available": 15.75, "fits": 1.0}.items()],
        *[("whole", name, 3e12) for name in ("flops", "bytes", "sent")],
        *[("whole", "least time", 0.25), ("whole", "compiled in", 7.0)],
        *[
            ("prompt", "times", 1.0),
            ("prompt", "all-reduce", 5.0),
            ("token", "times", 8.0),
            ("token", "all-reduce", 5.0),
        ],
    ]
    table = pl.DataFrame(rows, schema=["part", "quantity", "value"], orient="row")
    table = table.select(*(pl.lit(value).alias(name) for name, value in asked.items()), pl.all(), note=pl.lit(None))
    found = summary.summarise([table])
    assert found["collectives"].to_list() == ["45 all-reduce"]
    assert summary.markdown(found).splitlines()[2] == (
        "| m | generate | v5e:2x2 | tensor=4 | 4 x 16 + 8 | yes | 2.5 | 3 | 3,000 | 3,000 | 0.25 | 7 |"
    )

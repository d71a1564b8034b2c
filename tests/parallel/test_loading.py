import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinterp.models import checkpoint, convert, families
from jaxinterp.models.language_model import save
from jaxinterp.models.toy import CONFIGS, toy

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_part_of_a_weight_is_read_without_the_rest(family, tmp_path):
    lm = toy(family)
    save(lm, tmp_path / "model")
    stored = checkpoint.open_checkpoint(tmp_path / "model")
    found, architecture = families.read_architecture(stored.config, family)
    shapes, weights = architecture.weights(), lm.weights()
    for rule in convert.expand(found.rules, architecture):
        sizes = shapes[rule.weights[0]]
        for number, name in enumerate(rule.weights):
            cuts = [sorted(RANDOM.choice(count + 1, 2, replace=False).tolist()) for count in sizes.values()]
            slices, finish = rule.cut(sizes, number, tuple(map(tuple, cuts)))
            block = stored.read_part(rule.key, slices, np.float32)
            wanted = np.asarray(weights[name])[tuple(slice(*cut) for cut in cuts)]
            np.testing.assert_array_equal(finish(block), wanted)


@pytest.mark.parametrize(("family", "times"), [("llama", 1), ("gpt2", 1), ("gpt_neox", 3)])
def test_no_more_is_read_than_a_device_holds(family, times):
    """GPT-NeoX keeps queries, keys and values of a head together, so that each is read with the other two."""
    lm = toy(family)
    found, architecture = families.read_architecture(json.loads(lm.config), family)
    shapes = architecture.weights()
    for rule in convert.expand(found.rules, architecture):
        if not rule.weights[0].endswith(("W_Q", "W_O", "W_in")):
            continue
        sizes = shapes[rule.weights[0]]
        part = tuple((0, count // 2) if name in ("head", "neurons") else (0, count) for name, count in sizes.items())
        slices, _ = rule.cut(sizes, 0, part)
        read = np.prod([cut.stop - cut.start for cut in slices])
        held = np.prod([end - first for first, end in part])
        assert read == held * (times if len(rule.weights) > 1 else 1)


def test_an_array_that_is_not_finite_is_refused_in_parts_too(tmp_path):
    lm = toy("llama")
    save(lm, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    stored = checkpoint.open_checkpoint(tmp_path / "model")
    assert stored.read_part("model.norm.weight", (slice(4, 8),), np.float32).shape == (4,)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        stored.read_part("model.norm.weight", (slice(0, 8),), np.float32)

import dataclasses
import json
from typing import Literal

import jsonschema
import pytest

from jaxinterp.config import as_dict, load_config, read_settings, refuse_unknown_keys, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Two parts.

    Attributes:
        train: Share of the first.
    """

    train: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a small experiment.

    Attributes:
        layers: Which layers to read, counted from 0
            over two lines.
        method: How.
        split: The parts.
    """

    layers: tuple[int, ...] = (1, 2)
    method: Literal["zero", "mean"] = "zero"
    scale: float = 1.0
    """In units of the norm."""
    split: Split = Split()
    seed: int = 0


def test_defaults_and_values():
    assert load_config(Config, None) == Config()
    config = load_config(Config, {"layers": [3], "scale": 2, "split": {"train": 0.25}, "method": "mean"})
    assert config == Config(layers=(3,), scale=2.0, split=Split(train=0.25), method="mean")
    assert load_config(Config, as_dict(config)) == config
    assert as_dict(config)["layers"] == [3]


def test_unknown_keys_are_named_with_the_closest():
    with pytest.raises(
        ValueError, match=r"ablation: unknown key 'laiers' \(did you mean 'layers'\?\); the keys are: layers, method"
    ):
        load_config(Config, {"laiers": [1]}, where="ablation")
    with pytest.raises(ValueError, match=r"ablation\.split: unknown key 'test'; the keys are: train"):
        load_config(Config, {"split": {"test": 1.0}}, where="ablation")


@pytest.mark.parametrize(
    ("mapping", "key"),
    [
        ({"layers": 3}, "layers"),
        ({"seed": "3"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"method": "median"}, "method"),
        ({"split": {"train": "half"}}, r"split\.train"),
        ({"seed": True}, "seed"),
    ],
)
def test_wrong_types_are_refused_not_converted(mapping, key):
    with pytest.raises(ValueError, match=rf"^x: key '{key}"):
        load_config(Config, mapping, where="x")


def test_all_problems_at_once():
    with pytest.raises(ValueError, match=r"'seed'.*'method'|'method'.*'seed'"):
        load_config(Config, {"seed": "3", "method": "median"})


def test_schema_stands_alone_and_agrees_with_load_config():
    document = schema(Config)
    jsonschema.Draft202012Validator.check_schema(document)
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(document)))
    assert validator.is_valid(as_dict(Config()))
    assert not validator.is_valid({"laiers": [1]})
    assert not validator.is_valid({"split": {"test": 1.0}})
    assert not validator.is_valid({"seed": "3"})
    assert document["properties"]["layers"]["description"] == "Which layers to read, counted from 0 over two lines."
    assert document["properties"]["scale"]["default"] == 1.0
    assert document["properties"]["scale"]["description"] == "In units of the norm."


def test_keys_are_checked_inside_lists_and_mappings():
    item = {"type": "object", "properties": {"source": {}}, "additionalProperties": False}
    document = {"properties": {"models": {"additionalProperties": item}, "pairs": {"items": item}}}
    refuse_unknown_keys({"models": {"a": {"source": "x"}}, "pairs": [{"source": "y"}]}, document, "config")
    with pytest.raises(ValueError, match=r"config\.models\.a: unknown key 'sorce' \(did you mean 'source'"):
        refuse_unknown_keys({"models": {"a": {"sorce": "x"}}}, document, "config")
    with pytest.raises(ValueError, match=r"config\.pairs\[0\]: unknown key 'b'"):
        refuse_unknown_keys({"pairs": [{"b": "x"}]}, document, "config")


def test_settings_from_json_and_from_a_file(tmp_path):
    assert read_settings('{"a": [1, 2.5], "b": 5e-05}') == {"a": [1, 2.5], "b": 5e-5}
    (tmp_path / "s.yaml").write_text("a: 1\n")
    assert read_settings(str(tmp_path / "s.yaml")) == {"a": 1}
    for text, what in [("nowhere.yaml", "neither JSON nor an existing file"), ("{", "cannot be read")]:
        with pytest.raises(ValueError, match=what):
            read_settings(text)
    (tmp_path / "s.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds a list"):
        read_settings(str(tmp_path / "s.yaml"))

"""What every experiment is made of."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from jaxinterp import config, experiments

BIBLIOGRAPHY = (Path(experiments.__file__).parent / "references.bib").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", experiments.names())
def test_an_experiment_has_the_five_things(name):
    module = experiments.find(name)
    assert re.search(rf"^@\w+\{{{module.PAPER},", BIBLIOGRAPHY, re.MULTILINE)
    assert dataclasses.is_dataclass(module.Config)
    assert list(inspect.signature(module.run).parameters)[:2] == ["config", "models"]
    assert list(inspect.signature(module.figure).parameters) == ["table"]
    assert list(inspect.signature(module.check).parameters) == ["table"]


@pytest.mark.parametrize("name", experiments.names())
def test_settings_are_frozen_named_and_documented(name):
    module = experiments.find(name)
    settings = module.Config()
    first = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, first, None)
    with pytest.raises(TypeError):
        module.Config(getattr(settings, first))
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == "Config"
    )
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert documented, f"{name}.Config.{ast.unparse(field.target)} has no docstring below it"


@pytest.mark.parametrize("name", experiments.names())
def test_an_unknown_setting_is_named(name):
    with pytest.raises(ValueError, match="no_such_setting"):
        config.load_config(experiments.find(name).Config, {"no_such_setting": 1})

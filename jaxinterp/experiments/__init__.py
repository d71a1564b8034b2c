"""Reproductions: one module each, always with PAPER, Config, run, figure and check."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

_PARTS = ("PAPER", "Config", "run", "figure", "check")


def names() -> list[str]:
    """The experiments there are: the modules here that name a paper. None is imported for it.

    Returns:
        Module names in alphabetical order.
    """
    folder = Path(__file__).parent
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if "\nPAPER" in (folder / f"{name}.py").read_text(encoding="utf-8"))


def find(name: str) -> ModuleType:
    """Imports an experiment.

    Args:
        name: One of `names()`.

    Returns:
        The module, with the five things that every experiment has.

    Raises:
        ValueError: If there is none of that name.
        TypeError: If the module lacks one of the five things.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ValueError(f"There is no experiment '{name}'{hint}; there are: {', '.join(names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    missing = [part for part in _PARTS if not hasattr(module, part)]
    if missing:
        raise TypeError(
            f"jaxinterp/experiments/{name}.py lacks {', '.join(missing)}; an experiment has all of {_PARTS}."
        )
    return module


def code_digest(module: str, root: Path | None = None) -> str:
    """A short hash of a module's source and of all it imports from this package, found without importing it.

    A workflow that keeps it among a rule's parameters runs the rule again when code that the rule calls has changed,
    and not when other code has.

    Args:
        module: Dotted name, such as `"jaxinterp.experiments.probing"`.
        root: The folder that holds the package; by default where this one is.

    Returns:
        Twelve hexadecimal digits.
    """
    root = root or Path(__file__).resolve().parents[2]
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name, root)
        if name in found or path is None:
            continue
        found[name] = path.read_text(encoding="utf-8")
        package = name.split(".", maxsplit=1)[0]
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [entry for entry in imported if entry.split(".", maxsplit=1)[0] == package]
    text = "\n".join(f"{name}\n{source}" for name, source in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _source(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None

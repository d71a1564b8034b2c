"""Reproductions: one module each, always with PAPER, Config, run, figure and check."""

from __future__ import annotations

import ast
import difflib
import functools
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
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
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
    package = module.partition(".")[0]
    found: dict[Path, str] = {}
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _sources(name, root):
            if path not in found:
                found[path] = path.read_text(encoding="utf-8")
                here = ".".join(path.parent.relative_to(root).parts)
                waiting += [entry for entry in _imports(found[path], here) if entry.partition(".")[0] == package]
    text = "\n".join(f"{path.relative_to(root)}\n{source}" for path, source in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _imports(source: str, package: str) -> tuple[str, ...]:
    """Modules that a source may import; names imported from a package are taken for modules too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level else str(node.module)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _sources(name: str, root: Path) -> list[Path]:
    """The files of a module, and those of the packages it lies in."""
    parts = name.split(".")
    packages = [root.joinpath(*parts[:length], "__init__") for length in range(1, len(parts) + 1)]
    stems = [*packages, root.joinpath(*parts)]
    return [path for stem in stems for path in (stem.with_suffix(".py"), stem.with_suffix(".pyi")) if path.is_file()]

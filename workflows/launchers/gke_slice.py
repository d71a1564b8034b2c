# ruff: noqa: INP001  # a script, not a package
r"""Runs one command on every host of a Cloud TPU slice on GKE, as `srun` does on Slurm, and waits for it.

Snakemake's executor makes one pod for one job, and a slice of several hosts wants one pod for each host, all at the
same time and able to find each other. Here they are one Indexed Job with a headless Service:

    python workflows/launchers/gke_slice.py --image IMAGE --accelerator tpu-v5-lite-podslice --topology 4x4 \
        --bucket my-bucket -- jaxinterp run ablation ... --output /bucket/jaxinterp/results/ablation/table.parquet

With --dry-run the two manifests are printed and nothing is sent. A host that fails ends the command, with its log; what
was created is deleted in every case.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
import time
import uuid
from typing import Any

CHIPS = "google.com/tpu"
LOCKED_KB = 68_719_476_736
"""The limit of locked memory, in KiB, that Google's guide asks for."""
PORT = 8476
"""At which the first host tells the others where they all are."""


def manifests(asked: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """The Service and the Job of a command.

    Args:
        asked: The arguments of this program.
        name: Of both.

    Returns:
        Two bodies for Kubernetes.

    Raises:
        ValueError: The topology is not one of whole hosts.
    """
    chips = math.prod(int(size) for size in asked.topology.split("x"))
    if chips % asked.chips:
        raise ValueError(
            f"--topology {asked.topology}: {chips} chips are not whole hosts of {asked.chips}; see --chips."
        )
    hosts, labels = chips // asked.chips, {"app": "jaxinterp"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        # The addresses are needed before the pods are ready: they wait for each other.
        "spec": {"clusterIP": "None", "selector": {"job-name": name}, "publishNotReadyAddresses": True},
    }
    spec = {
        "completions": hosts,
        "parallelism": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "activeDeadlineSeconds": 60 * asked.minutes,
        "ttlSecondsAfterFinished": 3600,
        "template": {"metadata": _pod_metadata(asked, labels), "spec": _pod(asked, name)},
    }
    metadata = {"name": name, "labels": labels}
    return [service, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}]


def _pod_metadata(asked: argparse.Namespace, labels: dict[str, str]) -> dict[str, Any]:
    return {"labels": labels} | ({"annotations": {"gke-gcsfuse/volumes": "true"}} if asked.bucket else {})


def _pod(asked: argparse.Namespace, name: str) -> dict[str, Any]:
    nodes = {
        "cloud.google.com/gke-tpu-accelerator": asked.accelerator,
        "cloud.google.com/gke-tpu-topology": asked.topology,
    }
    container: dict[str, Any] = {
        "name": "host",
        "image": asked.image,
        "command": ["/bin/sh", "-c", f"ulimit -l {LOCKED_KB} || true; exec {shlex.join(asked.command)}"],
        "env": [
            {"name": "JAX_PLATFORMS", "value": "tpu,cpu"},
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-0.{name}:{PORT}"},
        ],
        "ports": [{"containerPort": PORT}, {"containerPort": 8471}],  # the second is the TPU driver's own
        "resources": {kind: {CHIPS: str(asked.chips)} for kind in ("requests", "limits")},
        "securityContext": {"runAsUser": 0, "capabilities": {"add": ["SYS_RESOURCE"]}},
    }
    pod: dict[str, Any] = {
        "subdomain": name,
        "restartPolicy": "Never",
        "nodeSelector": nodes | ({"cloud.google.com/gke-spot": "true"} if asked.spot else {}),
        "tolerations": [{"key": CHIPS, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
    }
    if asked.service_account:
        pod["serviceAccountName"] = asked.service_account
    if asked.bucket:
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": asked.bucket}}
        container["volumeMounts"] = [{"name": "bucket", "mountPath": "/bucket"}]
        pod["volumes"] = [{"name": "bucket", "csi": driver}]
    return pod


def run(asked: argparse.Namespace, name: str, bodies: list[dict[str, Any]]) -> int:
    """Creates the Service and the Job, waits for its end, and deletes both.

    Args:
        asked: The arguments of this program.
        name: Of both.
        bodies: As `manifests` gives them.

    Returns:
        Exit status: 0 when every host's command has succeeded.
    """
    from kubernetes import client, config

    try:
        config.load_kube_config()
    except config.ConfigException:
        config.load_incluster_config()
    core, batch = client.CoreV1Api(), client.BatchV1Api()
    service, job = bodies
    core.create_namespaced_service(asked.namespace, service)
    try:
        batch.create_namespaced_job(asked.namespace, job)
        print(f"{name}: {job['spec']['completions']} hosts asked for", file=sys.stderr)
        succeeded = _wait(batch, asked, name)
        _show_logs(core, asked.namespace, name, failed_only=not succeeded)
        return 0 if succeeded else 1
    finally:
        for delete in (batch.delete_namespaced_job, core.delete_namespaced_service):
            try:
                delete(name, asked.namespace, body=client.V1DeleteOptions(propagation_policy="Foreground"))
            except client.ApiException as error:
                if error.status != 404:
                    raise


def _wait(batch: Any, asked: argparse.Namespace, name: str) -> bool:
    """Whether every host succeeded, as soon as that is certain."""
    while True:
        job = batch.read_namespaced_job_status(name, asked.namespace)
        if (job.status.succeeded or 0) >= job.spec.completions:
            return True
        if job.status.failed:
            print(f"{name}: {job.status.failed} of {job.spec.completions} hosts failed or were taken", file=sys.stderr)
            return False
        time.sleep(asked.seconds)


def _show_logs(core: Any, namespace: str, name: str, failed_only: bool) -> None:
    """The log of the first host, or of those that failed."""
    pods = core.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
    chosen = [pod for pod in pods if pod.status.phase == "Failed"] if failed_only else pods[:1]
    for pod in chosen:
        print(f"== {pod.metadata.name}", core.read_namespaced_pod_log(pod.metadata.name, namespace), sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--image", required=True, help="container image, the one for TPU")
    parser.add_argument("--accelerator", required=True, help="GKE's name, such as tpu-v5-lite-podslice")
    parser.add_argument("--topology", required=True, help="chips of the slice, such as 4x4")
    parser.add_argument("--chips", type=int, default=4, help="chips of one host (4)")
    parser.add_argument("--namespace", default="jaxinterp")
    parser.add_argument("--service-account", default="", help="whose rights the pods have")
    parser.add_argument("--bucket", default="", help="of Cloud Storage, without gs://; it is mounted at /bucket")
    parser.add_argument("--spot", action="store_true", help="hosts that may be preempted")
    parser.add_argument("--minutes", type=int, default=120, help="after which the command is ended (120)")
    parser.add_argument("--seconds", type=float, default=10, help="between looks at how far it is (10)")
    parser.add_argument("--dry-run", action="store_true", help="print the manifests only")
    parser.add_argument("command", nargs="+", help="what each host runs, behind --")
    return parser


def main() -> int:
    """Entry point."""
    asked = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = f"jaxinterp-{uuid.uuid4().hex[:10]}"
    try:
        bodies = manifests(asked, name)
    except ValueError as error:
        print(f"gke_slice: {error}", file=sys.stderr)
        return 2
    if asked.dry_run:
        print("\n---\n".join(json.dumps(body, indent=2) for body in bodies))
        return 0
    return run(asked, name, bodies)


if __name__ == "__main__":
    sys.exit(main())

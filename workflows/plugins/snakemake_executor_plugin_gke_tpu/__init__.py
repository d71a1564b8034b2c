"""Snakemake's executor for Kubernetes, for jobs that may ask for the chips of a Cloud TPU host on GKE.

A rule, or a profile for it, asks with three resources:

    tpu=8, tpu_accelerator="tpu-v5-lite-podslice", tpu_topology="2x4"

`tpu_spot=1` takes a host that may be preempted. Snakemake finds the plugin, as `--executor gke-tpu`, when this folder's
parent is on PYTHONPATH or installed (`pip install ./workflows/plugins`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Optional

import snakemake_executor_plugin_kubernetes as base
from kubernetes import client
from snakemake_interface_common.exceptions import WorkflowError

CHIPS = "google.com/tpu"
LOCKED_KB = 68_719_476_736
"""The limit of locked memory, in KiB, that Google's guide asks for: the driver moves data to the chips from there."""

common_settings = dataclasses.replace(base.common_settings, auto_deploy_default_storage_provider=False)
"""A pod installs nothing: its image holds the storage plugins, pinned (`workflows/profiles/gke/Containerfile`)."""


@dataclasses.dataclass
class ExecutorSettings(base.ExecutorSettings):
    """Those of the executor for Kubernetes, and where compiled programs are kept."""

    compilation_cache: Optional[str] = dataclasses.field(  # noqa: UP045  # the form that Snakemake's parser reads
        default=None,
        metadata={"help": "Folder on a persistent volume in which the jobs' compiled programs are kept."},
    )


class Executor(base.Executor):
    """Submits each job as the executor for Kubernetes does, with what a TPU needs added to its body."""

    def run_job(self, job: Any) -> None:
        """Submits a job.

        Args:
            job: Snakemake's job.

        Raises:
            WorkflowError: It asks for chips in a way that one pod cannot have.
        """
        self._resources = dict(job.resources)
        super().run_job(job)

    @property
    def batchapi(self) -> client.BatchV1Api:
        """The client for jobs; what it creates is a whole body, with the chips that the rule asked for."""
        return self._batch

    @batchapi.setter
    def batchapi(self, api: client.BatchV1Api) -> None:
        create = api.create_namespaced_job
        cache = self.workflow.executor_settings.compilation_cache
        api.create_namespaced_job = lambda namespace, body: create(namespace, complete(body, self._resources, cache))
        self._batch = api

    @property
    def kubeapi(self) -> client.CoreV1Api:
        """The client for pods; a failed pod's log is that of the container that failed, not of one before it."""
        return self._core

    @kubeapi.setter
    def kubeapi(self, api: client.CoreV1Api) -> None:
        api.read_namespaced_pod_log = _reader(api.read_namespaced_pod_log)
        self._core = api


def complete(body: client.V1Job, resources: Mapping[str, Any], cache: str | None = None) -> client.V1Job:
    """Adds to a job's body the chips and the time that it asks for, and says on which backend it runs.

    Args:
        body: The body, with one container.
        resources: Those of the rule.
        cache: Folder in which compiled programs are kept.

    Returns:
        The same body.

    Raises:
        WorkflowError: The accelerator or the topology is missing, or the topology has more chips than one host.
    """
    body.api_version, body.kind = "batch/v1", "Job"
    pod = body.spec.template.spec
    container = pod.containers[0]
    chips = int(resources.get("tpu", 0))
    # With a named backend JAX fails where it cannot be had, instead of going on with the CPU.
    variables = {"JAX_PLATFORMS": "tpu,cpu" if chips else "cpu"}
    variables |= {"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}
    container.env = [*(container.env or []), *(client.V1EnvVar(name=key, value=variables[key]) for key in variables)]
    if "runtime" in resources:  # Of the pod, not of the job: waiting for a node does not count.
        pod.active_deadline_seconds = 60 * int(resources["runtime"])
    if not chips:
        return body
    accelerator, topology = (resources.get(name) for name in ("tpu_accelerator", "tpu_topology"))
    if not (accelerator and topology):
        raise WorkflowError(
            f"A job asks for {chips} TPU chips and does not say of which kind: set the resources tpu_accelerator"
            " (such as tpu-v5-lite-podslice) and tpu_topology (such as 2x4)."
        )
    if math.prod(int(size) for size in str(topology).split("x")) != chips:
        raise WorkflowError(
            f"A job asks for {chips} TPU chips of the topology {topology}: one job is one pod on one host, so both must"
            " be of the same number. A slice of several hosts is started with workflows/launchers/gke_slice.py."
        )
    pod.node_selector = {**(pod.node_selector or {}), **selectors(accelerator, topology, resources.get("tpu_spot", 0))}
    pod.tolerations = [*(pod.tolerations or []), client.V1Toleration(key=CHIPS, operator="Exists", effect="NoSchedule")]
    for kind in ("requests", "limits"):
        setattr(container.resources, kind, {**(getattr(container.resources, kind) or {}), CHIPS: str(chips)})
    # Raising the limit of locked memory is for root with this capability alone.
    container.security_context = container.security_context or client.V1SecurityContext(
        run_as_user=0, capabilities=client.V1Capabilities(add=["SYS_RESOURCE"])
    )
    container.args = [container.args[0], f"ulimit -l {LOCKED_KB} || true; {container.args[1]}"]
    return body


def selectors(accelerator: str, topology: str, spot: int = 0) -> dict[str, str]:
    """The labels of the nodes that have these chips.

    Args:
        accelerator: GKE's name of the generation.
        topology: Of the slice, such as "2x4".
        spot: Whether the nodes may be preempted.

    Returns:
        Label -> value.
    """
    labels = {"cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": topology}
    return labels | ({"cloud.google.com/gke-spot": "true"} if spot else {})


def _reader(read: Any) -> Any:
    """A pod that is never restarted has no container before the one that failed, whose log could be asked for."""

    def current(**arguments: Any) -> str:
        try:
            return read(**(arguments | {"previous": False}))
        except client.ApiException as error:
            return f"There is no log ({error.status} {error.reason})."

    return current

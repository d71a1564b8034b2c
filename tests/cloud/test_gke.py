"""Jobs for GKE: what is sent to Kubernetes, and what its pods' commands do when they are really run."""

import base64
import importlib
import json
import subprocess
import sys

import pytest
import yaml
from snakemake_interface_common.exceptions import WorkflowError

from tests.cloud import loopback, submission
from tests.workflows.tiny import ROOT, STAGES

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the extra `test` is not installed")
pytest.importorskip("snakemake_executor_plugin_kubernetes", reason="the extra `test` is not installed")
pytest.importorskip("snakemake_storage_plugin_gcs", reason="the extra `test` is not installed")
pytest.importorskip("gcp_storage_emulator", reason="the extra `test` is not installed")

storage = pytest.importorskip("google.cloud.storage")
client = pytest.importorskip("kubernetes.client")
AnonymousCredentials = pytest.importorskip("google.auth.credentials").AnonymousCredentials
PROFILE = yaml.safe_load((ROOT / "workflows" / "profiles" / "gke" / "profile.yaml").read_text())
LAUNCHER = ROOT / "workflows" / "launchers" / "gke_slice.py"
VERSIONS = ("1.30", kubernetes_validate.latest_version())
MODEL = "resources/models/countdown"


def validate(body):
    for version in VERSIONS:
        kubernetes_validate.validate(body, version, strict=True)


class Submitted:
    """One run of Snakemake with the profile: what came of it."""

    def __init__(self, folder, *words, taken=0):
        self.folder = submission.checkout(folder / "checkout")
        with (
            loopback.google_bucket_server() as address,
            loopback.cluster(folder / "cluster", **submission.SHARED, STORAGE_EMULATOR_HOST=address) as found,
        ):
            cluster, kubeconfig = found
            started = []
            cluster.on_start = lambda pod: started.append(pod) or (len(started) <= taken and pod.take_node())
            command = submission.snakemake("gke", *words, "--envvars", "HF_TOKEN", root=self.folder)
            command += ["--seconds-between-status-checks", "1", "--gke-tpu-compilation-cache", "/cache/compiled"]
            places = {"KUBECONFIG": str(kubeconfig), "IMAGE": "jaxinterp:tpu-gke", "BUCKET": "gcs://results/jaxinterp"}
            variables = submission.environment(**places, **submission.google(address))
            self.status, self.text = submission.finish(command, variables, self.folder)
            self.bucket = read_bucket(address)
            self.cluster = cluster
        self.jobs = cluster.of_kind("Job")
        self.logs = "".join(pod.log for pod in cluster.pods)


def read_bucket(address):
    options = {"credentials": AnonymousCredentials(), "client_options": {"api_endpoint": address}}
    blobs = storage.Client(project="any", **options).list_blobs("results")
    return {blob.name: blob.download_as_bytes() for blob in blobs}


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    chips = ["--set-resources", "fetch_model:tpu=8", "fetch_model:tpu_spot=1"]
    return Submitted(tmp_path_factory.mktemp("gke"), MODEL, *chips, taken=1)


def test_a_pod_leaves_its_result_in_the_bucket(submitted):
    assert submitted.status == 0, submitted.text[-6000:] + submitted.logs[-3000:]
    assert json.loads(submitted.bucket[f"jaxinterp/{MODEL}/source.json"])["source"] == "builtin:countdown-6m-grpo"
    assert len(submitted.bucket[f"jaxinterp/{MODEL}/model.safetensors"]) > 10**7
    assert not (submitted.folder / "resources").exists(), "nothing is shared but the bucket"


def test_a_preempted_pod_is_sent_again_and_said(submitted):
    first, second = submitted.jobs
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert f"Job {first['metadata']['name']} failed." in submitted.text
    assert f"Job {second['metadata']['name']} succeeded." in submitted.text
    assert "Trying to restart job" in submitted.text


def test_bodies_ask_for_the_chips_and_are_valid(submitted):
    for body in submitted.jobs:
        validate(body)
        pod = body["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        for kind in ("requests", "limits"):
            assert container["resources"][kind]["google.com/tpu"] == "8"
        assert pod["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "2x4",
            "cloud.google.com/gke-spot": "true",
        }
        assert pod["serviceAccountName"] == "jaxinterp"
        assert pod["activeDeadlineSeconds"] == 30 * 60, "a pod that hangs is ended"
        assert container["image"] == "jaxinterp:tpu-gke"
        values = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert values["JAX_PLATFORMS"] == "tpu,cpu" and values["JAX_COMPILATION_CACHE_DIR"] == "/cache/compiled"
        assert "pip install" not in container["args"][1], "a pod installs nothing"


def test_the_validator_refuses_what_is_wrong(submitted):
    wrong = json.loads(json.dumps(submitted.jobs[0]))
    wrong["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


def test_no_secret_is_anywhere_but_in_the_clusters_own_secret(submitted):
    others = [json.dumps(body) for body in submitted.cluster.bodies if body["kind"] != "Secret"]
    assert list(submitted.cluster.folder.glob("*/workdir/workflows/rules/common.smk")), "pods unpack the sources"
    everything = [*others, *submitted.bucket.values(), submitted.text, submitted.logs]
    assert not submission.leaks(submitted.folder, submitted.cluster.folder, *everything)
    (secret,) = submitted.cluster.of_kind("Secret")
    held = {name.upper(): base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert held["HF_TOKEN"] == submission.SECRETS["HF_TOKEN"], "what a job needs of them it gets from there"
    assert set(held) & set(submission.SECRETS) == {"HF_TOKEN"}
    assert ("secrets", secret["metadata"]["name"]) in submitted.cluster.deleted


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflows" / "plugins")
    return importlib.import_module("snakemake_executor_plugin_gke_tpu")


def plain_body():
    resources = client.V1ResourceRequirements(requests={"cpu": "950m"}, limits={"cpu": "1000m"})
    words = {"command": ["/bin/sh"], "args": ["-c", "true"]}
    container = client.V1Container(name="snakemake", image="any", resources=resources, **words)
    pod = client.V1PodTemplateSpec(spec=client.V1PodSpec(containers=[container], restart_policy="Never"))
    spec = client.V1JobSpec(backoff_limit=0, template=pod)
    return client.V1Job(metadata=client.V1ObjectMeta(name="any"), spec=spec)


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips"),
    [("tpu-v5-lite-podslice", "2x2", 4), ("tpu-v6e-slice", "2x4", 8), ("tpu-v5p-slice", "2x2x1", 4)],
)
def test_every_kind_of_chip_is_asked_for(plugin, accelerator, topology, chips):
    asked = {"tpu": chips, "tpu_accelerator": accelerator, "tpu_topology": topology}
    body = client.ApiClient().sanitize_for_serialization(plugin.complete(plain_body(), asked))
    validate(body)
    pod = body["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "1000m", "google.com/tpu": str(chips)}
    assert pod["nodeSelector"] == plugin.selectors(accelerator, topology)


def test_a_job_without_chips_stays_on_the_cpu(plugin):
    body = client.ApiClient().sanitize_for_serialization(plugin.complete(plain_body(), {"tpu_topology": "2x4"}))
    validate(body)
    (container,) = body["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "JAX_PLATFORMS", "value": "cpu"}]
    assert "google.com/tpu" not in json.dumps(body) and "securityContext" not in container


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"tpu": 4, "tpu_accelerator": "any", "tpu_topology": "2x4"}, "both must be of the same number"),
        ({"tpu": 8, "tpu_topology": "2x4"}, "does not say of which kind"),
    ],
)
def test_chips_that_no_pod_can_have_are_refused(plugin, asked, sentence):
    with pytest.raises(WorkflowError, match=sentence):
        plugin.complete(plain_body(), asked)


def test_the_profile_names_rules_that_exist():
    text = (ROOT / "workflows" / "rules" / "stages.smk").read_text()
    assert 'f"measure_{experiment}"' in text
    assert set(PROFILE["set-resources"]) == {f"measure_{stage}" for stage in STAGES}


@pytest.mark.slow
def test_an_experiment_runs_in_pods(tmp_path):
    done = Submitted(tmp_path, "verdicts", "--configfile", "workflows/config/test.yaml")
    assert done.status == 0, done.text[-6000:] + done.logs[-3000:]
    assert {"jaxinterp/results/verdicts/check.json", "jaxinterp/logs/verdicts/measure.log"} <= set(done.bucket)
    chips = [
        body["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].get("google.com/tpu")
        for body in done.jobs
    ]
    assert chips.count("8") == 1 and len(chips) == 4, "one job measures; the others take no chips"
    for body in done.jobs:
        validate(body)


def launch(folder, *words, **options):
    flags = ["--image", "jaxinterp:tpu", "--accelerator", "tpu-v5-lite-podslice", *words]
    command = [sys.executable, str(LAUNCHER), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300, **options)


def test_a_slice_of_hosts_is_a_valid_job_and_service(tmp_path):
    flags = ["--topology", "4x4", "--bucket", "mine", "--service-account", "jaxinterp", "--spot", "--dry-run"]
    done = launch(tmp_path, *flags, "--", "jaxinterp", "--help")
    assert done.returncode == 0, done.stderr
    service, job = yaml.safe_load_all(done.stdout)
    validate(service)
    validate(job)
    spec, name = job["spec"], job["metadata"]["name"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (4, 4, "Indexed")
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    done = launch(tmp_path, "--topology", "2x3", "--", "true")
    assert done.returncode == 2 and "6 chips are not whole hosts of 4" in done.stderr


JOINED = """
import os, sys, jax
hosts = os.environ["TPU_WORKER_HOSTNAMES"].split(",")
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], len(hosts), int(os.environ["TPU_WORKER_ID"]),
                           coordinator_bind_address=os.environ["JAX_COORDINATOR_ADDRESS"])
from jax.experimental import multihost_utils
print("sum", multihost_utils.process_allgather(jax.numpy.array(jax.process_index() + 1)).sum(), flush=True)
sys.exit(int(len(sys.argv) > 1 and jax.process_index() == 1))
"""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.slow
def test_the_hosts_of_a_slice_find_each_other_and_are_waited_for(tmp_path, fails):
    (tmp_path / "joined.py").write_text(JOINED)
    with loopback.cluster(tmp_path / "cluster", **submission.SHARED) as (cluster, kubeconfig):
        variables = submission.environment(KUBECONFIG=str(kubeconfig))
        words = ["--topology", "2x4", "--seconds", "1", "--", "python", str(tmp_path / "joined.py")]
        done = launch(tmp_path, *words, *(["fail"] if fails else []), env=variables)
    assert done.returncode == int(fails), done.stdout + done.stderr
    assert "sum 3" in done.stdout
    assert ("hosts failed or were taken" in done.stderr) == fails
    name = cluster.of_kind("Job")[0]["metadata"]["name"]
    assert set(cluster.deleted) == {("jobs", name), ("services", name)}

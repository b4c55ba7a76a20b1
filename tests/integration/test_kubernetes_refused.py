"""Needs of a stack that the laboratory's cluster really lacks: one clear message each, before anything is created.

Or, where only the cluster's own try shows it, at the resource that it stops.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.lab.kubernetes import cluster
from scripts.lab.kubernetes.layout import KUBECONFIG, NODES
from tests.integration.conftest import ROOT, rehearse, rehearse_up
from tests.support import lab_stacks
from tests.support.lab_stacks import CLAIM, apply, written
from tests.support.made_stacks import stack_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

NAMESPACE, OTHER, STACK, USER, NOBODY = "refused", "refused-too", "refused", "deployer", "nobody"
VOLUME, OTHER_VOLUME = 4, 2
UNTOUCHED = "nothing was changed"
DIGEST = f"sha256:{'a' * 64}"
MODEL = written("k8s")["model"].replace("/", "--")


@pytest.fixture(scope="module")
def volume(machine: None) -> Iterator[Path]:
    """Directory of the volume of a namespace that could hold the stack."""
    lab_stacks.two_nodes()
    with lab_stacks.namespace(NAMESPACE, VOLUME) as directory:
        lab_stacks.bind_role(NAMESPACE, USER)
        cluster.kubectl("create", "serviceaccount", NOBODY, f"--namespace={NAMESPACE}")
        yield directory


@pytest.fixture(scope="module")
def settings(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = lab_stacks.kubeconfig_of(USER, NAMESPACE, tmp_path_factory.mktemp("user") / "kubeconfig")
    mine = {"kubeconfig": str(path), "kubeContext": lab_stacks.context_of(USER), "namespace": NAMESPACE}
    return written("k8s") | mine | {"httpsPort": 30446, "replicas": 1, "gatewayReplicas": 1}


@pytest.fixture(scope="module")
def admin(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cluster's admin, by a file that is not the laboratory's: with that one it prepares what is missing."""
    path = tmp_path_factory.mktemp("admin") / "kubeconfig"
    path.touch(0o600)
    path.write_text(KUBECONFIG.read_text())
    return {"kubeconfig": str(path), "kubeContext": written("k8s")["kubeContext"]}


def refused(settings: dict[str, Any], **changed: Any) -> str:
    """Bring the stack up, which must fail; return its words in one line."""
    with stack_file(STACK, settings | changed):
        done = rehearse("up", "--engine", "embedded", stack=STACK)
    assert done.returncode not in {0, None}
    words = " ".join(f"{done.stdout} {done.stderr}".split())
    assert "Traceback" not in words
    assert "fix: " in words
    return words


def refused_untouched(settings: dict[str, Any], **changed: Any) -> str:
    """Bring the stack up, which must fail before anything is created."""
    before = lab_stacks.left(NAMESPACE)
    words = refused(settings, **changed)
    assert lab_stacks.left(NAMESPACE) == before
    return words


def at(path: Path, **cluster_fields: str) -> dict[str, Any]:
    """Return the settings for a kubeconfig with other fields of the cluster."""
    return {"kubeconfig": str(lab_stacks.kubeconfig_of(USER, NAMESPACE, path, **cluster_fields))}


# The way to the cluster


def test_no_cluster(settings: dict[str, Any], tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{closed.getsockname()[1]}"
        words = refused_untouched(settings, **at(tmp_path / "kubeconfig", server=address))
    assert "no answer from the cluster" in words
    assert "fix: is the cluster up, does this machine reach it" in words


def test_a_cluster_of_another_name(settings: dict[str, Any], tmp_path: Path) -> None:
    words = refused_untouched(settings, **at(tmp_path / "kubeconfig", server="https://cluster.invalid:6443"))
    assert "no answer from the cluster" in words


def test_a_cluster_with_another_ca(settings: dict[str, Any], tmp_path: Path) -> None:
    user = yaml.safe_load(KUBECONFIG.read_text())["users"][0]["user"]  # a certificate that is no CA of the cluster's
    data = user["client-certificate-data"]
    words = refused_untouched(settings, **at(tmp_path / "kubeconfig", **{"certificate-authority-data": data}))
    assert "certificate verify failed" in words.lower()


def test_a_token_that_does_not_count(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    document = yaml.safe_load(Path(settings["kubeconfig"]).read_text())
    document["users"][0]["user"]["token"] += "x"
    path.touch(0o600)
    path.write_text(yaml.safe_dump(document))
    words = refused_untouched(settings, kubeconfig=str(path))
    assert "the cluster refuses the credentials of kubeContext" in words
    assert document["users"][0]["user"]["token"] not in words


def test_a_context_that_the_kubeconfig_lacks(settings: dict[str, Any]) -> None:
    words = refused_untouched(settings, kubeContext="production")
    assert f"has no context 'production'; fix: set kubeContext to one of {lab_stacks.context_of(USER)}" in words


# Rights


def test_a_user_without_rights(settings: dict[str, Any], tmp_path: Path) -> None:
    path = lab_stacks.kubeconfig_of(NOBODY, NAMESPACE, tmp_path / "kubeconfig")
    words = refused_untouched(settings, kubeconfig=str(path), kubeContext=lab_stacks.context_of(NOBODY))
    assert f"has no rights in the namespace {NAMESPACE} for secrets (get, list, watch, create, patch, delete)" in words
    assert "fix: have the Role of docs/reference/kubernetes-role.yaml bound to that user" in words


def test_a_user_without_one_of_the_rights(settings: dict[str, Any], tmp_path: Path) -> None:
    role = yaml.safe_load(cluster.kubectl("get", "role", "elastic-vllm", f"--namespace={NAMESPACE}", "-o", "yaml"))
    rules = [rule for rule in role["rules"] if rule["resources"] != ["networkpolicies"]]
    fewer = {"apiVersion": role["apiVersion"], "kind": "Role", "rules": rules}
    apply({**fewer, "metadata": {"name": "fewer", "namespace": NAMESPACE}})
    subject = f"--serviceaccount={NAMESPACE}:{NOBODY}"
    cluster.kubectl("create", "rolebinding", "fewer", "--role=fewer", subject, f"--namespace={NAMESPACE}")
    try:
        path = lab_stacks.kubeconfig_of(NOBODY, NAMESPACE, tmp_path / "kubeconfig")
        words = refused_untouched(settings, kubeconfig=str(path), kubeContext=lab_stacks.context_of(NOBODY))
        assert "for networkpolicies (get, list, watch, create, patch, delete); fix: " in words
    finally:
        cluster.kubectl("delete", "rolebinding,role", "fewer", f"--namespace={NAMESPACE}")


# The namespace


def test_a_namespace_that_is_not_there(settings: dict[str, Any], admin: dict[str, Any]) -> None:
    words = refused_untouched(settings, **admin, namespace="nowhere")
    assert "there is no namespace nowhere; fix: have it made, or set createNamespace to true" in words


def test_a_namespace_that_may_not_be_made(settings: dict[str, Any]) -> None:
    words = refused_untouched(settings, namespace="nowhere", createNamespace=True)
    assert "no right to create namespaces; fix: have the namespace made, and set createNamespace to false" in words


def test_a_namespace_that_is_being_deleted(settings: dict[str, Any], admin: dict[str, Any]) -> None:
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER}})
    metadata = {"name": "kept", "namespace": OTHER, "finalizers": ["example.com/kept"]}
    apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    cluster.kubectl("delete", "namespace", OTHER, "--wait=false")
    try:
        words = refused_untouched(settings, **admin, namespace=OTHER)
        assert f"the namespace {OTHER} is being deleted" in words
    finally:
        patch = '--patch={"metadata": {"finalizers": null}}'
        cluster.kubectl("patch", "configmap", "kept", f"--namespace={OTHER}", "--type=merge", patch)
        cluster.kubectl("wait", "--for=delete", f"namespace/{OTHER}", "--timeout=120s")


# What it has


@contextmanager
def there(manifest: dict[str, Any]) -> Iterator[None]:
    """Have an object in the namespace."""
    manifest["metadata"]["namespace"] = NAMESPACE
    apply(manifest)
    try:
        yield
    finally:
        cluster.kubectl("delete", manifest["kind"], manifest["metadata"]["name"], f"--namespace={NAMESPACE}")


def quota(**hard: str) -> AbstractContextManager[None]:
    spec = {"hard": {key.replace("_", "."): value for key, value in hard.items()}}
    return there({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": spec})


def limit_range() -> AbstractContextManager[None]:
    spec = {"limits": [{"type": "Container", "default": {"memory": "64Mi"}}]}
    return there({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": spec})


def secret() -> AbstractContextManager[None]:
    return there({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}, "type": "Opaque"})


@contextmanager
def gpus(number: int, *, taint: bool) -> Iterator[None]:
    """Have the first node offer GPUs, as a device plugin has it."""
    name = NODES[0].name
    patch = {"status": {"capacity": {"nvidia.com/gpu": str(number)}, "allocatable": {"nvidia.com/gpu": str(number)}}}
    gone = {"status": {"capacity": {"nvidia.com/gpu": None}, "allocatable": {"nvidia.com/gpu": None}}}
    change = ("patch", "node", name, "--subresource=status", "--type=merge")
    cluster.kubectl(*change, f"--patch={json.dumps(patch)}")
    if taint:
        cluster.kubectl("taint", "node", name, "nvidia.com/gpu=present:NoSchedule")
    try:
        yield
    finally:
        cluster.kubectl(*change, f"--patch={json.dumps(gone)}")
        if taint:
            cluster.kubectl("taint", "node", name, "nvidia.com/gpu-")


GPUS = {
    "accelerator": "nvidia",
    "gpuCount": 2,
    "model": "openai/gpt-oss-120b",
    "vllmImage": f"registry.invalid/vllm:0.32.0@{DIGEST}",
    "nginxImage": f"registry.invalid/nginx:1.30.6@{DIGEST}",
}


@pytest.mark.parametrize(
    ("lacking", "changed", "words"),
    [
        (
            nullcontext,
            {"weightsClaim": "nothing"},
            "there is no PersistentVolumeClaim nothing in refused; fix: correct",
        ),
        (
            nullcontext,
            {"weightsClaim": "", "weightsStorageClass": "nothing", "modelRevision": "a" * 40},
            "there is no StorageClass nothing; fix: set weightsStorageClass to one of the cluster's",
        ),
        (nullcontext, {"runtimeClass": "nothing"}, "there is no RuntimeClass nothing; fix: correct runtimeClass"),
        (nullcontext, {"imagePullSecret": "nothing"}, "there is no Secret nothing in refused; fix: correct"),
        (secret, {"imagePullSecret": "registry"}, "the Secret registry has the type Opaque, which no image is pulled"),
        (nullcontext, GPUS, "none of the 2 nodes offers nvidia.com/gpu; fix: install the GPUs' device plugin"),
        (lambda: gpus(1, taint=False), GPUS, "the nodes have room for 0 replicas of 2 nvidia.com/gpu (the most on one"),
        (lambda: gpus(2, taint=True), GPUS, "tainted with nvidia.com/gpu=present:NoSchedule; fix: tolerate the taint"),
        (lambda: quota(pods="2"), {}, "the ResourceQuota small leaves 2 of pods, and this stack needs 6; fix: have it"),
        (
            lambda: quota(requests_memory="1Gi"),
            {},
            "leaves 1Gi of requests.memory, and this stack needs 5Gi",
        ),
        (lambda: quota(limits_memory="99Gi"), {}, "the ResourceQuota small demands limits.memory of every container"),
        (limit_range, {}, "the LimitRange small gives a container 64Mi of memory"),
    ],
)
def test_a_cluster_without_what_the_stack_needs(
    lacking: Callable[[], AbstractContextManager[None]],
    changed: dict[str, Any],
    words: str,
    settings: dict[str, Any],
    admin: dict[str, Any],
) -> None:
    seen_by_admins = bool(changed.keys() & {"weightsStorageClass", "runtimeClass", "accelerator"})
    with lacking():
        said = refused_untouched(settings, **(admin if seen_by_admins else {}), **changed)
    assert words in said
    assert UNTOUCHED in said


@contextmanager
def claimed(*modes: str, nodes: tuple[str, ...]) -> Iterator[None]:
    """Have another namespace with a claim on a volume with these access modes, which these nodes reach."""
    shared = json.loads(cluster.kubectl("get", "persistentvolume", f"shared-{OTHER_VOLUME}", "--output=json"))["spec"]
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    spec = {key: shared[key] for key in ("storageClassName", "capacity", "local")} | {
        "accessModes": list(modes),
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
    }
    claim = lab_stacks.claim(OTHER, OTHER_VOLUME, modes[0])
    claim["spec"]["volumeName"] = "another"
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER}})
    try:
        apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "another"}, "spec": spec})
        apply(claim)
        bound = "--for=jsonpath={.status.phase}=Bound"
        cluster.kubectl("wait", bound, f"persistentvolumeclaim/{CLAIM}", f"--namespace={OTHER}", "--timeout=60s")
        yield
    finally:
        cluster.kubectl("delete", "namespace", OTHER, "--wait")
        cluster.kubectl("delete", "persistentvolume", "another", "--ignore-not-found")


def test_a_claim_that_serves_one_node(settings: dict[str, Any], admin: dict[str, Any]) -> None:
    with claimed("ReadWriteOnce", nodes=(NODES[0].name,)):
        said = refused_untouched(settings, **admin, namespace=OTHER, replicas=2)
        assert f"the PersistentVolumeClaim {CLAIM} serves the pods of one node (ReadWriteOnce)" in said
        assert UNTOUCHED in said


def preflight(*arguments: str) -> tuple[int, str]:
    """Run `preflight` for the stack; return its status and words."""
    command = [str(ROOT / "scripts" / "elastic-vllm"), "preflight", "--stack", STACK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in f"{done.stdout}{done.stderr}"
    return done.returncode, " ".join(done.stdout.split())


def test_preflight_says_the_same_and_knows_a_stack_that_is_up(settings: dict[str, Any]) -> None:
    with stack_file(STACK, settings):
        with quota(pods="2"):
            code, words = preflight()
            assert code == 1
            assert "the ResourceQuota small leaves 2 of pods, and this stack needs 6; fix: have it" in words
        assert preflight()[0] == 0
        rehearse_up("--engine", "embedded", stack=STACK)
        with quota(pods="6"):
            assert preflight()[0] == 0
            assert preflight("--set", "replicas=9")[0] == 1


# What only a pod can tell


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("localhost/elastic-vllm/nothing:0.32.0", "ErrImageNeverPull"),
        (f"registry.invalid/vllm:0.32.0@{DIGEST}", "ErrImagePull"),
    ],
)
def test_an_image_that_can_not_be_pulled(image: str, words: str, settings: dict[str, Any]) -> None:
    said = refused(settings, vllmImage=image)
    assert f"can't run: {words}: " in said
    assert "fix: is the image's name right, do the nodes reach its registry and know its CA, and does it" in said


@contextmanager
def other_weights(directory: Path, change: Callable[[Path], object]) -> Iterator[None]:
    """Have the model's directory changed."""
    model = directory / MODEL
    kept = directory / "kept"
    shutil.copytree(model, kept)
    try:
        change(model)
        yield
    finally:
        shutil.rmtree(model, ignore_errors=True)
        kept.rename(model)


def cut(model: Path) -> None:
    path = next(model.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, f"no weights in /models/{MODEL} (weightsClaim, model); fix: fill the volume again, or correct"),
        (cut, "is cut short or damaged; fix: fill the volume again"),
        (lambda model: (model / "config.json").unlink(), "no config.json; fix: fill the volume again"),
        (lambda model: (model / "config.json").chmod(0o600), "the server's user may not read"),
    ],
)
def test_weights_that_vllm_could_not_load(
    change: Callable[[Path], object], words: str, settings: dict[str, Any], volume: Path
) -> None:
    with other_weights(volume, change):
        said = refused(settings)
    assert words in said
    assert "vllm-pods" not in said.partition("failed")[0]


def test_a_class_that_a_namespaces_user_does_not_see(settings: dict[str, Any]) -> None:
    weights = {"weightsClaim": "", "weightsStorageClass": "nothing", "modelRevision": "a" * 40}
    said = refused(settings, **weights)
    assert "the weights check's pod elastic-vllm-refused-weights-check gets no node: " in said
    assert 'storageclass.storage.k8s.io "nothing" not found; fix: ' in said
    assert "use a volume or a class that these nodes reach" in said


def test_a_volume_that_the_chosen_nodes_do_not_reach(settings: dict[str, Any], admin: dict[str, Any]) -> None:
    """As one in another zone."""
    here, elsewhere = (node.name for node in NODES)
    with claimed("ReadWriteMany", nodes=(here,)):
        said = refused(settings, **admin, namespace=OTHER, nodeSelector={"kubernetes.io/hostname": elsewhere})
    assert "volume node affinity conflict" in said or "didn't match PersistentVolume's node affinity" in said
    assert "use a volume or a class that these nodes reach" in said

"""Further stacks on the laboratory's cluster: with exactly the Role's rights, and one that comes from a machine."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from scripts.lab.kubernetes import cluster
from scripts.lab.kubernetes.configuration import REGISTRIES
from scripts.lab.kubernetes.layout import HERE, NODES
from scripts.lab.tiny_models import MODELS
from tests.integration.conftest import outputs_of, rehearse, rehearse_cluster, rehearse_up
from tests.integration.test_bundle import import_image, project
from tests.integration.test_bundle_push import Built
from tests.support import lab_stacks, local_registry, local_sshd
from tests.support.lab_stacks import written
from tests.support.made_stacks import stack_file
from tests.support.netns_machine import outcomes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

NAMESPACE = "rights"
USER = "deployer"
BUNDLED = {"vllm": "localhost/elastic-vllm/carried-vllm:0.32.0", "nginx": "localhost/elastic-vllm/carried-nginx:1.30.6"}
VOLUME = 3
"""Number of the shared volume; the stack k8s has the first one."""


@pytest.fixture(scope="module")
def settings(machine: None) -> Iterator[dict[str, Any]]:
    """Settings of a stack in a namespace that its administrator has made ready."""
    lab_stacks.two_nodes()
    with lab_stacks.namespace(NAMESPACE, VOLUME):
        yield written("k8s") | {"namespace": NAMESPACE, "httpsPort": 30444, "replicas": 1, "gatewayReplicas": 2}


@pytest.fixture(scope="module")
def user(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig of a user with the Role of docs/reference, bound in the namespace, and with nothing else."""
    lab_stacks.bind_role(NAMESPACE, USER)
    return lab_stacks.kubeconfig_of(USER, NAMESPACE, tmp_path_factory.mktemp("user") / "kubeconfig")


def own(settings: dict[str, Any], user: Path) -> dict[str, Any]:
    """Return the settings for that user."""
    return settings | {"kubeconfig": str(user), "kubeContext": lab_stacks.context_of(USER)}


def test_the_roles_rights_are_enough_from_first_to_last(settings: dict[str, Any], user: Path) -> None:
    before = lab_stacks.left(NAMESPACE)
    with stack_file("rights", own(settings, user)):
        done = rehearse("up", "--engine", "embedded", "--verify", stack="rights")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert set(outcomes(rehearse_up(stack="rights")).values()) == {"unchanged"}
        rehearse_up("--set", "keys={default: [2, 1]}", stack="rights")
        done = rehearse("down", stack="rights")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert lab_stacks.left(NAMESPACE) == before


def test_a_stack_comes_from_a_machine_with_its_key_and_its_ca(settings: dict[str, Any], user: Path) -> None:
    """As docs/guides/to-kubernetes.md says."""
    on_machine = written("test") | {"httpsPort": local_sshd.free_port(), "keys": {"default": [2]}}
    with stack_file("moving", on_machine) as file:
        rehearse_up("--engine", "embedded", stack="moving")
        before = outputs_of("moving")
        in_cluster = own(settings, user) | {"keys": {"default": [2]}}
        file.write_text(yaml.safe_dump({"config": {f"elastic-vllm:{key}": each for key, each in in_cluster.items()}}))
        moved = outcomes(rehearse_up("--engine", "embedded", "--verify", stack="moving"))
        after = outputs_of("moving")
        assert (before["connectorApiKey"], before["caCertificate"]) == (
            after["connectorApiKey"],
            after["caCertificate"],
        )
        assert after["connectorUrl"].startswith(f"https://{NODES[0].address}:30444/")
        kept = {how for name, how in moved.items() if name.startswith(("key-", "certificate-ca"))}
        assert kept <= {"unchanged"}
        assert moved["nginx-container"] == moved["vllm-container"] == "deleted"


@pytest.fixture
def pulled(user: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings that `bundle push` printed for a registry that both nodes reach, which wants a login to pull as well."""
    nginx = written("k8s")["nginxImage"]
    client = docker.from_env()
    # One of its own: kubelet gives what was pulled with a login to no pod without one, by whatever name.
    client.images.build(fileobj=io.BytesIO(f"FROM {nginx}\nLABEL carried=yes\n".encode()), tag=BUNDLED["nginx"])
    import_image(BUNDLED["vllm"], b"vllm")  # 5 GB less to pack; the nodes have the real one
    (tmp_path / "registry").mkdir()
    with local_registry.secure(tmp_path / "registry", HERE) as registry:
        made = Built(project(tmp_path / "project"), tmp_path / "bundle", registry, tmp_path)
        stack = {"target": "kubernetes", "modelCatalogue": "scripts/lab/models.yaml", "model": written("k8s")["model"]}
        made.settings(**stack, **{f"{role}Image": name for role, name in BUNDLED.items()})
        built = made.build(made.bundle, "--weights", str(MODELS / written("k8s")["model"].replace("/", "--")))
        assert built.returncode == 0, built.stdout + built.stderr
        (tmp_path / ".docker").mkdir()
        login = registry.login(tmp_path / ".docker" / "config.json")
        pushed = made.push()
        assert pushed.returncode == 0, pushed.stderr
        printed = yaml.safe_load(pushed.stdout[pushed.stdout.index("config:") :])["config"]
        trusted = [node.library / REGISTRIES / registry.host for node in NODES]
        for place in trusted:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(registry.ca, place / "ca.crt")
        secret = ["create", "secret", "generic", "registry", "--type=kubernetes.io/dockerconfigjson"]
        cluster.kubectl(*secret, f"--from-file=.dockerconfigjson={login}", f"--namespace={NAMESPACE}")
        yield {key.removeprefix("elastic-vllm:"): each for key, each in printed.items()} | {"weightsClaim": ""}
        cluster.kubectl("delete", "secret", "registry", f"--namespace={NAMESPACE}")
        for place in trusted:
            shutil.rmtree(place)
    for name in BUNDLED.values():
        client.images.remove(name)


def test_nodes_pull_the_weights_of_a_bundle_from_the_sites_registry(
    settings: dict[str, Any], user: Path, pulled: dict[str, Any]
) -> None:
    real = {"vllmImage": settings["vllmImage"], "imagePullSecret": "registry"}
    with stack_file("rights", own(settings, user) | pulled | real):
        done = rehearse("up", "--engine", "embedded", "--verify", stack="rights")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        pods = json.loads(cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", "--output=json"))["items"]
        (volume,) = [each["image"] for pod in pods for each in pod["spec"]["volumes"] if "image" in each]
        assert volume == {"reference": pulled["weightsImage"], "pullPolicy": "IfNotPresent"}
        events = cluster.kubectl("get", "events", f"--namespace={NAMESPACE}", "--output=jsonpath={.items[*].message}")
        for role in ("nginx", "weights"):
            assert f'Successfully pulled image "{pulled[f"{role}Image"]}"' in events
        assert set(outcomes(rehearse_up(stack="rights")).values()) == {"unchanged"}


def test_a_network_that_enforces_nothing_is_refused_unless_that_is_accepted(
    settings: dict[str, Any], user: Path
) -> None:
    assert rehearse_cluster("up", "--nodes", "2", "--no-enforce").returncode == 0
    try:
        with stack_file("rights", own(settings, user)):
            refused = rehearse("up", "--engine", "embedded", stack="rights")
            words = " ".join(f"{refused.stdout} {refused.stderr}".split())
            assert refused.returncode == 1
            assert "the cluster's network does not enforce this stack's NetworkPolicies" in words
            assert "a pod with the policy of vllm reaches the metadata server" in words
            pods = cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", "--output=name").split()
            assert not [pod for pod in pods if "-rights-vllm-" in pod]  # none without its walls
            accepted = outcomes(rehearse_up("--set", "unenforcedNetworkPolicies=accept", stack="rights"))
            assert accepted["isolation-check"] == accepted["vllm-pods"] == "created"
    finally:
        assert rehearse_cluster("up", "--nodes", "2").returncode == 0

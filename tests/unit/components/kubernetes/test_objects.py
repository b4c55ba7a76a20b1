"""The objects of target kubernetes: as reviewed, valid for each version of Kubernetes, and what they promise."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.kubernetes.rights import RIGHTS
from components.render import FILES
from tests.support.program import Program, changes
from tests.support.registered import Registered, Secret

PINNED = f"registry.example/models/tiny:1@sha256:{'d' * 64}"
GPUS = {
    "accelerator": "nvidia",
    "model": "openai/gpt-oss-120b",
    "gpuCount": 2,
    "vllmImage": f"docker.io/vllm/vllm-openai:v0.32.0@sha256:{'a' * 64}",
    "nginxImage": f"docker.io/library/nginx:1.30.2@sha256:{'b' * 64}",
    "nodeSelector": {"node.example.com/gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "runtimeClass": "nvidia",
    "imagePullSecret": "registry",
}
INSIDE = {"serviceType": "ClusterIP", "endpointHost": "", "httpsPort": 443}
VARIANTS: dict[str, dict[str, Any]] = {
    "rehearsal": {},
    "gpus": {**GPUS, **INSIDE, "maxSurge": 1},
    "weights-image": {**GPUS, **INSIDE, "weightsClaim": "", "weightsImage": PINNED},
    "weights-job": {**GPUS, **INSIDE, "weightsClaim": "", "weightsStorageClass": "shared", "modelRevision": "a" * 40},
    "openshift": {**GPUS, **INSIDE, "podSecurity": "openshift", "createNamespace": True},
    "load-balancer": {
        **GPUS,
        "serviceType": "LoadBalancer",
        "endpointHost": "llm.example.com",
        "httpsPort": 443,
        "httpsSourceRanges": ["198.51.100.0/24"],
        "clientCertificates": ["kibana"],
    },
    "metrics": {"metricsNamespace": "monitoring"},
    "parked": {"parked": True, "gatewayReplicas": 1},
}
VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
PLURALS = {"NetworkPolicy": "networkpolicies"}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, program_of: Callable[..., Program]) -> Program:
    return program_of("k8s", **VARIANTS[request.param])


def plain(value: Any) -> Any:
    """Return a value as the API server gets it."""
    if isinstance(value, Secret):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def registered(program: Program) -> list[Registered]:
    return [resource for resource in program.resources.values() if resource.type.startswith("kubernetes:")]


def objects(program: Program, kind: str = "") -> list[dict[str, Any]]:
    """Return the manifests, or those of a kind."""
    found = [plain(resource.inputs) for resource in registered(program)]
    return [each for each in found if kind in {"", each["kind"]}]


def named(program: Program, kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects(program, kind) if each["metadata"]["name"] == name]
    return found


def pods(program: Program) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the specification of each kind of pod, the isolation check's probes as well."""
    for kind in ("Deployment", "Job"):
        for each in objects(program, kind):
            yield each["metadata"]["name"], each["spec"]["template"]
    probes = yaml.safe_load(program.resources["isolation-check"].inputs["pods"])
    if check := program.resources.get("weights-check"):
        probes.append(json.loads(check.inputs["pod"]))
    for probe in probes:
        yield probe["metadata"]["name"], probe


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def test_objects_are_as_reviewed(program_of: Callable[..., Program], golden: Callable[[str, str], None]) -> None:
    shown = []
    for each in objects(program_of("k8s", **VARIANTS["gpus"])):
        for key in each.keys() & {"data"}:
            each[key] = sorted(each[key])  # the files have tests of their own
        shown.append(each)
    shown.sort(key=lambda each: (each["kind"], each["metadata"]["name"]))
    golden("kubernetes-objects.yaml", yaml.safe_dump_all(shown, width=140))


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid_for_every_version(version: str, variant: Program) -> None:
    for each in objects(variant):
        if version in {"1.29", "1.30"} and '"image": {' in str(each).replace("'", '"'):
            continue  # image volumes came with 1.31; the cluster's check wants 1.35
        kubernetes_validate.validate(each, version, strict=True)


def test_pods_meet_the_pod_security_standard_restricted(variant: Program) -> None:
    for name, pod in pods(variant):
        spec = pod["spec"]
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "image"}
        assert all(set(volume) - {"name"} <= allowed for volume in spec.get("volumes", [])), name
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_pods_have_no_credentials_of_the_cluster(variant: Program) -> None:
    for name, pod in pods(variant):
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        assert pod["spec"]["enableServiceLinks"] is False, name


def test_every_container_requests_what_it_needs(variant: Program) -> None:
    for name, pod in pods(variant):
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name


def test_openshift_gives_the_users(program_of: Callable[..., Program]) -> None:
    for _, pod in pods(program_of("k8s", **VARIANTS["openshift"])):
        for context in (pod["spec"]["securityContext"], *(each["securityContext"] for each in containers(pod))):
            assert not context.keys() & {"runAsUser", "runAsGroup", "fsGroup"}


def test_the_program_has_the_rights_for_all_that_it_creates(variant: Program) -> None:
    for each in objects(variant):
        group = each["apiVersion"].rpartition("/")[0]
        plural = PLURALS.get(each["kind"], f"{each['kind'].lower()}s")
        if each["kind"] != "Namespace":
            assert {"create", "patch", "delete", "get"} <= set(RIGHTS[group][plural])


def test_nothing_is_created_before_the_cluster_was_looked_at(variant: Program) -> None:
    checks = [each for name, each in variant.resources.items() if name in {"isolation-check", "weights-check"}]
    for resource in [*registered(variant), *checks]:
        assert "cluster-check" in variant.waits_for(resource.name)


def test_no_pod_of_vllm_starts_before_its_walls_are_proven(variant: Program) -> None:
    before = variant.waits_for("vllm-pods")
    assert {"isolation-check", "isolation-deny", "isolation-vllm", "isolation-gateway"} <= before


@pytest.mark.parametrize("name", ["rehearsal", "weights-image"])
def test_no_pod_of_vllm_starts_before_its_weights_were_looked_at(name: str, program_of: Callable[..., Program]) -> None:
    program = program_of("k8s", **VARIANTS[name])
    assert "weights-check" in program.waits_for("vllm-pods")
    assert "isolation-vllm" in program.waits_for("weights-check")
    named_pods = dict(pods(program))
    check, vllm = (named_pods[f"elastic-vllm-k8s-{each}"]["spec"] for each in ("weights-check", "vllm"))
    (volume,) = check["volumes"]
    assert volume in vllm["volumes"]
    assert check.get("nodeSelector") == vllm.get("nodeSelector")
    assert check.get("tolerations") == vllm.get("tolerations")
    for each in ("containers", "securityContext"):
        users = [spec[each][0]["securityContext"] if each == "containers" else spec[each] for spec in (check, vllm)]
        assert users[0]["runAsUser"] == users[1]["runAsUser"]


def test_no_pod_looks_at_weights_that_nobody_reads(program_of: Callable[..., Program]) -> None:
    assert "weights-check" not in program_of("k8s", **VARIANTS["parked"]).resources


def test_a_download_begins_once_its_volume_can_be_filled(program_of: Callable[..., Program]) -> None:
    program = program_of("k8s", **VARIANTS["weights-job"])
    assert "weights-claim" in program.waits_for("weights-check")
    assert "weights-check" in program.waits_for("weights-download")
    check = dict(pods(program))["elastic-vllm-k8s-weights-check"]["spec"]
    (job,) = objects(program, "Job")
    filling = job["spec"]["template"]["spec"]
    assert check["volumes"] == [each for each in filling["volumes"] if each["name"] == "weights"]
    assert check["securityContext"] == filling["securityContext"]


def test_services_and_budgets_select_no_probe(variant: Program) -> None:
    probes = [pod["metadata"]["labels"] for name, pod in pods(variant) if "-probe-" in name or "-check" in name]
    assert len(probes) in {3, 4}
    selectors = [each["spec"]["selector"] for each in objects(variant, "Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in objects(variant, "PodDisruptionBudget")]
    for selector in selectors:
        assert not any(selector.items() <= labels.items() for labels in probes)


def test_policies_select_vllms_probe_as_they_select_vllm(program_of: Callable[..., Program]) -> None:
    program = program_of("k8s")
    labels = dict(pods(program))
    for role, name in (("vllm", "elastic-vllm-k8s-vllm"), ("gateway", "elastic-vllm-k8s-gateway")):
        selecting = [
            [
                policy["metadata"]["name"]
                for policy in objects(program, "NetworkPolicy")
                if policy["spec"]["podSelector"]["matchLabels"].items() <= labels[pod]["metadata"]["labels"].items()
            ]
            for pod in (name, f"elastic-vllm-k8s-probe-{role}")
        ]
        assert selecting[0] == selecting[1] == ["elastic-vllm-k8s-deny", f"elastic-vllm-k8s-{role}"]
        control = labels["elastic-vllm-k8s-probe-control"]["metadata"]["labels"]
        assert all(
            not policy["spec"]["podSelector"]["matchLabels"].items() <= control.items()
            for policy in objects(program, "NetworkPolicy")
        )


def test_vllm_may_begin_nothing_and_only_gateways_reach_it(variant: Program) -> None:
    spec = named(variant, "NetworkPolicy", "elastic-vllm-k8s-vllm")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in spec
    rule, *agents = spec["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"]["elastic-vllm/network"] == "gateway"
    assert rule["ports"] == [{"protocol": "TCP", "port": 8443}]
    assert agents == agents_of(variant)


def agents_of(variant: Program) -> list[dict[str, Any]]:
    """Return the rule for metrics, if there is one; it is the gateway's as well."""
    agents: list[dict[str, Any]] = named(variant, "NetworkPolicy", "elastic-vllm-k8s-gateway")["spec"]["ingress"][1:]
    for rule in agents:
        (peer,) = rule["from"]
        assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        assert rule["ports"] == [{"protocol": "TCP", "port": 9090}]
    return agents


def test_metrics_are_shown_to_one_namespace_if_at_all(program_of: Callable[..., Program]) -> None:
    assert agents_of(program_of("k8s")) == []
    assert len(agents_of(program_of("k8s", metricsNamespace="monitoring"))) == 1
    for secret in objects(program_of("k8s"), "Secret"):
        assert plain(secret["data"])["metrics.conf"] == ""


def test_secrets_are_secret_and_nowhere_else(variant: Program) -> None:
    keys = {f"{resource.outputs}" for resource in variant.of_type("random:index/randomBytes:RandomBytes")}
    assert keys
    for resource in registered(variant):
        for key, value in resource.inputs.items():
            secret = resource.type.endswith(":Secret") and key == "data"
            assert isinstance(value, Secret) == secret, f"{resource.name}: {key}"


def test_the_hubs_token_reaches_the_download_alone(program_of: Callable[..., Program]) -> None:
    program = program_of("k8s", **VARIANTS["weights-job"], hfToken="hf_TokenOfTheTests")
    token = base64.b64encode(b"hf_TokenOfTheTests").decode()
    assert "hf_TokenOfTheTests" not in str(objects(program))
    holding = [each["metadata"]["name"] for each in objects(program) if token in str(each)]
    assert holding == ["elastic-vllm-k8s-weights"]
    mounting = [
        name
        for name, pod in pods(program)
        for volume in pod["spec"].get("volumes", [])
        if volume.get("secret", {}).get("secretName") == "elastic-vllm-k8s-weights"
    ]
    [job] = [each["metadata"]["name"] for each in objects(program) if each["kind"] == "Job"]
    assert mounting == [job]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "google/gemma-4-31B-it", "modelRevision": "b" * 40},
        {"modelRevision": "b" * 40},
        {"replicas": 1},
        {"weightsStorageClass": "another"},
    ],
)
def test_other_weights_get_a_claim_of_their_own(changed: dict[str, Any], program_of: Callable[..., Program]) -> None:
    # The API server refuses to make a claim smaller, and most classes refuse to make one larger.
    before = {**VARIANTS["weights-job"], "replicas": 2}
    names = []
    for settings in (before, before | changed):
        [claim] = [each for each in objects(program_of("k8s", **settings)) if each["kind"] == "PersistentVolumeClaim"]
        names.append(claim["metadata"]["name"])
    assert names[0] != names[1]


def test_a_key_changes_a_secret_in_place_and_no_pod(program_of: Callable[..., Program]) -> None:
    changed = changes(program_of("k8s"), program_of("k8s", keys={"default": [2, 1]}))
    assert changed == {
        "created": ["key-v2"],
        "replaced": [],
        "updated": ["gateway-files", "gateway-loaded"],
        "deleted": [],
    }


def test_a_model_change_rolls_vllms_pods_alone(program_of: Callable[..., Program]) -> None:
    changed = changes(program_of("k8s"), program_of("k8s", model="rehearsal/tiny-2"))
    assert changed == {"created": [], "replaced": [], "updated": ["vllm-pods", "weights-check"], "deleted": []}


def test_parking_ends_vllms_pods_and_nothing_else(program_of: Callable[..., Program]) -> None:
    parked = program_of("k8s", parked=True)
    changed = changes(program_of("k8s"), parked)
    assert changed["updated"] == ["cluster-check", "vllm-pods"]
    assert changed["deleted"] == ["weights-check"]  # there may be no node for its pod
    assert named(parked, "Deployment", "elastic-vllm-k8s-vllm")["spec"]["replicas"] == 0


def test_requests_end_before_their_pod_does(program_of: Callable[..., Program]) -> None:
    template = named(program_of("k8s"), "Deployment", "elastic-vllm-k8s-vllm")["spec"]["template"]["spec"]
    (vllm,) = template["containers"]
    assert vllm["args"][-2:] == ["--shutdown-timeout", "600"]
    assert "sleep 610; kill -KILL" in vllm["command"][-2]
    assert vllm["lifecycle"]["preStop"]["exec"]["command"][-1] == "sleep 15"
    assert template["terminationGracePeriodSeconds"] >= 15 + 610 + 20
    (door,) = template["initContainers"]
    assert door["restartPolicy"] == "Always"


def test_the_door_and_vllm_share_the_socket_and_nothing_else(program_of: Callable[..., Program]) -> None:
    template = named(program_of("k8s"), "Deployment", "elastic-vllm-k8s-vllm")["spec"]["template"]["spec"]
    (door,), (vllm,) = template["initContainers"], template["containers"]
    mounts = [{mount["name"]: mount for mount in container["volumeMounts"]} for container in (door, vllm)]
    assert mounts[0].keys() & mounts[1].keys() == {"socket"}
    assert mounts[0]["socket"]["mountPath"] == mounts[1]["socket"]["mountPath"] == "/run/vllm"
    assert mounts[0]["socket"]["readOnly"] is True


def test_readiness_never_asks_the_model(program_of: Callable[..., Program]) -> None:
    template = named(program_of("k8s"), "Deployment", "elastic-vllm-k8s-vllm")["spec"]["template"]["spec"]
    (vllm,) = template["containers"]
    assert "vllm_healthy.py" in str(vllm["readinessProbe"])
    assert "ask_vllm.py" in str(vllm["startupProbe"])
    assert "vllm_watch.py" in str(vllm["livenessProbe"])


def test_every_file_for_pods_gets_there(program_of: Callable[..., Program]) -> None:
    program = program_of("k8s", metricsNamespace="monitoring")
    secrets = [value for each in objects(program, "Secret") for value in each["data"].values()]
    sent = str([base64.b64decode(value).decode() for value in secrets]) + str(objects(program, "ConfigMap"))
    sent += str(program.resources["isolation-check"].inputs["pods"])
    sent += str(program_of("k8s", **VARIANTS["weights-job"]).resources["weights-check"].inputs["pod"])
    for path in sorted((FILES / "kubernetes").iterdir()):
        words = path.read_text().splitlines()[0].strip("#\"' ")
        assert words.split("'")[0] in sent, path.name

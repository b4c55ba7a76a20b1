"""An engine's additions to a container's options are no difference, the program's changes are."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from components.containers import declared
from components.serving import nginx_gateway, vllm_server
from tests.support.program import Program, changes, run
from tests.support.registered import Registered

Values = Callable[..., dict[str, str]]
ON_PODMAN = {"containerRuntime": "podman", "sshUser": "root"}
IMAGE = f"a/b:1@sha256:{'c' * 64}"


def snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def label(resource: Registered, name: str) -> Any:
    (value,) = [each["value"] for each in resource.inputs["labels"] if each["label"] == name]
    return value


def of_docker(program: Program) -> Iterator[Registered]:
    yield from program.containers
    yield from program.of_type("docker:index/network:Network")


@pytest.mark.parametrize(
    "overrides", [{"dcgmImage": IMAGE}, ON_PODMAN, {"ipv6": True}], ids=["docker", "podman", "ipv6"]
)
def test_each_option_that_the_provider_ignores_is_repeated_in_a_label(
    overrides: dict[str, str], program_of: Callable[..., Program]
) -> None:
    for resource in of_docker(program_of("gpu", **overrides)):
        assert "labels" not in resource.ignore_changes
        ignored = {key: resource.inputs[key] for key in resource.ignore_changes if key in resource.inputs}
        assert ignored
        in_label = json.loads(label(resource, declared.LABEL))
        assert in_label == {snake_case(key): value for key, value in ignored.items()}, resource.name


@pytest.mark.parametrize("key", ["logOpts", "ulimits", "memorySwap", "memory", "mounts", "securityOpts"])
def test_what_docker_adds_to_a_container_is_ignored(key: str, program_of: Callable[..., Program]) -> None:
    for container in program_of("gpu", dcgmImage=IMAGE).containers:
        assert key in container.ignore_changes, container.name


@pytest.mark.parametrize("key", ["options", "ipv6", "ipamOptions"])
def test_what_an_engine_adds_to_a_network_is_ignored(key: str, program_of: Callable[..., Program]) -> None:
    assert key in program_of("gpu").resources["nginx-network"].ignore_changes


@pytest.mark.parametrize("key", vllm_server.CONFINEMENT)
def test_a_change_of_an_ignored_option_of_vllms_container_replaces_it(
    key: str, program_of: Callable[..., Program], values_of: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = program_of("gpu")  # kept for other tests: it must not see the change
    monkeypatch.setitem(vllm_server.CONFINEMENT, key, another(vllm_server.CONFINEMENT[key]))
    found = changes(before, run(values_of("gpu"), stack="gpu"))
    assert found["replaced"][0] == "vllm-container"


@pytest.mark.parametrize("runtime", ["docker", "podman"])
@pytest.mark.parametrize("key", ["capabilities", "security_opts", "tmpfs", "ulimits", "log_driver", "log_opts"])
def test_a_change_of_an_ignored_option_of_nginxs_container_replaces_it(
    key: str, runtime: str, program_of: Callable[..., Program], values_of: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ON_PODMAN if runtime == "podman" else {}
    before, options = program_of("gpu", **overrides), nginx_gateway._confinement
    monkeypatch.setattr(nginx_gateway, "_confinement", lambda host: {**options(host), key: another(options(host)[key])})
    found = changes(before, run(values_of("gpu", **overrides), stack="gpu"))
    assert "nginx-container" in found["replaced"]
    assert "vllm-container" not in found["replaced"]


@pytest.mark.parametrize("ipv6", [False, True])
def test_another_port_replaces_nginxs_container(
    ipv6: bool, program_of: Callable[..., Program], values_of: Values
) -> None:
    before = program_of("gpu", ipv6=ipv6)
    found = changes(before, run(values_of("gpu", ipv6=ipv6, httpsPort=8443), stack="gpu"))
    assert "nginx-container" in found["replaced"]


def test_ipv6_replaces_nginxs_container(program_of: Callable[..., Program], values_of: Values) -> None:
    found = changes(program_of("gpu"), run(values_of("gpu", ipv6=True), stack="gpu"))
    assert "nginx-container" in found["replaced"]


def test_another_bridge_replaces_the_network_and_then_nginx(
    program_of: Callable[..., Program], values_of: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = program_of("gpu")
    monkeypatch.setattr(nginx_gateway, "interface_name", lambda _prefix: "another")
    found = changes(before, run(values_of("gpu"), stack="gpu"))
    assert {"nginx-network", "nginx-container"} <= set(found["replaced"])


def another(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, dict):
        first, *_ = value
        return {**value, first: another(value[first])}
    if isinstance(value, list):
        return [another(value[0]), *value[1:]]
    return value + 1 if isinstance(value, int) else f"{value}x"

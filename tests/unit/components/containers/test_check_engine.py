"""Kinds of container engines that the first check accepts or refuses, by what `docker info` and Podman's client answer.

A stand-in for the client gives recorded answers. Those of Debian's Docker are also tried with the engine itself
(tests/integration/servers/test_docker.py); the others stand as "not run" in docs/servers.md.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import render
from tests.support.shell import Result, as_root, bash, failed

pytestmark = as_root

# As engines answered `docker info --format '{{json .}}'`, the fields that the check looks at.
DEBIAN = {
    "ServerVersion": "20.10.24+dfsg1",
    "OSType": "linux",
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "DefaultRuntime": "runc",
    "DockerRootDir": "/var/lib/docker",
    "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
    "SecurityOptions": ["name=seccomp,profile=default"],
}
REMAPPED = {
    "DockerRootDir": "/var/lib/docker/100000.100000",
    "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
}
ROOTLESS = {
    "DockerRootDir": "/srv/ubuntu/.local/share/docker",
    "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
}
SNAP = {"DockerRootDir": "/var/snap/docker/common/var-lib-docker", "OperatingSystem": "Ubuntu Core 22"}
DESKTOP = {"OperatingSystem": "Docker Desktop", "ServerVersion": "27.3.1"}
RED_HAT = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=selinux", "name=cgroupns"]}
CONTAINERD = {
    "ServerVersion": "29.1.3",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "Containerd": {"Address": "/run/containerd/containerd.sock"},
}
OWN_CONTAINERD = CONTAINERD | {"Containerd": {"Address": "/var/run/docker/containerd/containerd.sock"}}

CLIENT = r"""#!/usr/bin/env python3
import json, os, re, sys

def shown(value):
    if isinstance(value, list):
        return "[" + " ".join(map(shown, value)) + "]"
    return str(value)

def field(match):
    value = answer
    for name in match[1].split(".")[1:]:
        if name not in value:
            sys.exit(f"can't evaluate field {name}")
        value = value[name]
    return shown(value)

answer, words = json.loads(os.environ["ANSWER"]), sys.argv[1:]
if words[0] == "info":
    within = re.compile(r"\{\{with \.Containerd\}\}\{\{\.Address\}\}\{\{end\}\}")
    template = within.sub("{{.Containerd.Address}}", words[2])
    print(re.sub(r"\{\{(\.[A-Za-z.]+)\}\}", field, template))
elif words[0] == "context":
    print(os.environ.get("ENDPOINT", "unix:///var/run/docker.sock"))
elif words[0] == "--version":
    print(os.environ.get("VERSION", "Docker version 20.10.24+dfsg1, build 297e128"))
elif words[0] == "version":
    sys.exit(int(os.environ.get("DEAD", "0")))
"""
Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the check with an engine that answers so."""

    def run(
        answer: dict[str, Any],
        *,
        engine: str = "docker",
        path: str = "",
        then: str = "check_engine\nimages_place",
        **environment: str,
    ) -> Result:
        for name in ("docker", "podman"):
            client = tmp_path / name
            client.write_text(CLIENT)
            client.chmod(0o755)
        script = render.script("containers/check-engine.sh", engine=engine, login="root")
        return bash(
            f"{script}{then}\n",
            PATH=path or f"{tmp_path}:{os.environ['PATH']}",
            ANSWER=json.dumps(answer),
            **environment,
        )

    return run


@pytest.mark.parametrize(
    ("answer", "directory"),
    [
        (DEBIAN, "/var/lib/docker"),
        (DEBIAN | {"DockerRootDir": "/srv/docker"}, "/srv/docker"),
        (DEBIAN | REMAPPED, "/var/lib/docker/100000.100000"),
        (DEBIAN | CONTAINERD, "/var/lib/containerd"),
        (DEBIAN | OWN_CONTAINERD, "/var/lib/docker/containerd/daemon"),
        (DEBIAN | {"DefaultRuntime": "nvidia"}, "/var/lib/docker"),
        (DEBIAN | {"DefaultRuntime": "io.containerd.runc.v2"}, "/var/lib/docker"),
        (DEBIAN | {"ServerVersion": "29.4.1"}, "/var/lib/docker"),
    ],
    ids=["debian", "data-root", "userns-remap", "containerd", "own containerd", "nvidia", "runc.v2", "newest"],
)
def test_engines_that_can_run_the_stack_pass(answer: dict[str, Any], directory: str, check: Check) -> None:
    result = check(answer)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-2] == directory


def test_containerds_own_root_is_where_images_are_looked_for(check: Check, tmp_path: Path) -> None:
    containerd = tmp_path / "containerd"
    containerd.write_text(
        "#!/bin/sh\nprintf '%s\\n' 'version = 3' \"root = '/data/containerd'\" 'state = \"/run/x\"'\n"
    )
    containerd.chmod(0o755)
    assert check(DEBIAN | CONTAINERD).stdout.splitlines() == ["/data/containerd", "root (/etc/containerd/config.toml)"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (DEBIAN | ROOTLESS, ["Docker runs rootless", "use Docker's system service"]),
        (DEBIAN | SNAP, ["Docker is a snap", "snap remove docker"]),
        (DEBIAN | DESKTOP, ["Docker Desktop", "install Docker from the distribution"]),
        (DEBIAN | RED_HAT, ["SELinux", "selinux-enabled", "containerRuntime to podman"]),
        (DEBIAN | {"OSType": "windows"}, ["containers for windows"]),
        (DEBIAN | {"ServerVersion": "19.03.15"}, ["Docker 19.03.15 is too old", "20.10"]),
        (DEBIAN | {"DefaultRuntime": "runsc"}, ["runsc by default", "default-runtime"]),
        (DEBIAN | {"DefaultRuntime": "io.containerd.kata.v2"}, ["kata", "default-runtime"]),
    ],
    ids=["rootless", "snap", "Docker Desktop", "SELinux", "Windows", "too old", "gVisor", "Kata"],
)
def test_engines_that_cannot_are_refused(answer: dict[str, Any], words: list[str], check: Check) -> None:
    assert failed(check(answer), *words)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"VERSION": "podman version 4.3.1"}, ["is Podman (podman-docker)", "set containerRuntime to podman"]),
        ({"VERSION": "Emulate Docker CLI using podman. podman version 5"}, ["is Podman (podman-docker)"]),
        ({"ENDPOINT": "tcp://build.example:2376"}, ["talks to tcp://build.example:2376", "docker context use default"]),
        ({"ENDPOINT": "ssh://ops@build.example"}, ["talks to ssh://ops@build.example", "unset DOCKER_HOST"]),
        ({"ENDPOINT": "unix:///run/user/1000/docker.sock"}, ["Docker runs rootless"]),
        ({"DEAD": "1"}, ["Docker is installed but does not answer", "systemctl start docker"]),
    ],
    ids=["podman-docker", "podman-docker 5", "DOCKER_HOST", "context", "rootless context", "dead"],
)
def test_clients_that_talk_to_something_else_are_refused(
    environment: dict[str, str], words: list[str], check: Check
) -> None:
    assert failed(check(DEBIAN, **environment), *words)


def test_podman_on_another_machine_is_refused(check: Check) -> None:
    answer = {"Host": {"ServiceIsRemote": "true"}, "Store": {"GraphRoot": "/x"}}
    assert failed(check(answer, engine="podman"), "talks to another machine", "CONTAINER_HOST")
    here = check(answer | {"Host": {"ServiceIsRemote": "false"}}, engine="podman")
    assert here.stdout.splitlines() == ["/x", "graphroot (storage.conf)"]


def test_every_answer_has_the_fields_that_the_check_asks_for() -> None:
    text = (render.FILES / "containers" / "check-engine.sh").read_text()
    asked = {name for name in re.findall(r"\{\{\.([A-Za-z]+)\}\}", text) if name != "Address"}
    assert asked == {*DEBIAN, "HTTPSProxy"}


IMAGE, PROXY_IN_DOCKER = "vllm/vllm-openai:v0.32.0@sha256:0", {"HTTPSProxy": "http://xxxxx:xxxxx@proxy.example:3128"}
NO_MIRROR: dict[str, Any] = {"HTTPSProxy": "", "RegistryConfig": {"Mirrors": []}}
MIRROR: dict[str, Any] = {"HTTPSProxy": "", "RegistryConfig": {"Mirrors": ["https://mirror.corp.example/"]}}


@pytest.mark.parametrize(
    ("answer", "image", "refused"),
    [
        (NO_MIRROR, IMAGE, True),
        (NO_MIRROR | PROXY_IN_DOCKER, IMAGE, False),
        (MIRROR, IMAGE, False),
        (MIRROR, "nginx:1.29@sha256:0", False),
        (MIRROR, "nvcr.io/nvidia/k8s/dcgm-exporter:4@sha256:0", True),
    ],
    ids=["no proxy", "a proxy", "a mirror", "a mirror, short name", "a mirror, another registry"],
)
def test_docker_without_a_proxy_is_refused_where_it_must_pull_through_one(
    answer: dict[str, Any], image: str, refused: bool, check: Check
) -> None:
    result = check(DEBIAN | answer, then=f"need_engine_proxy '{image}'")
    if refused:
        assert failed(result, f"docker must pull {image}", "docker.service.d/proxy.conf", "downloadNoProxy")
    else:
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("engine", "file", "text"),
    [
        (
            "docker",
            "etc/systemd/system/docker.service.d/proxy.conf",
            '[Service]\nEnvironment="HTTPS_PROXY=http://p:1"\n',
        ),
        ("docker", "etc/docker/daemon.json", '{\n  "proxies": {"https-proxy": "http://p:1"}\n}\n'),
        ("docker", "etc/default/docker", 'export https_proxy="http://p:1"\n'),
        ("podman", "etc/containers/containers.conf", '[engine]\nenv = ["https_proxy=http://p:1"]\n'),
        ("podman", "etc/systemd/system/podman.service.d/proxy.conf", "[Service]\nEnvironment=HTTPS_PROXY=http://p:1\n"),
    ],
)
def test_an_engine_that_is_not_installed_yet_needs_files_with_its_proxy(
    engine: str, file: str, text: str, tmp_path: Path
) -> None:
    script = render.script("containers/check-engine.sh", engine=engine, login="root").replace(
        " /etc/", f" {tmp_path}/etc/"
    )
    script = script.replace("(/etc/", f"({tmp_path}/etc/").replace(
        "/{etc,run,usr/lib}", f"{tmp_path}/{{etc,run,usr/lib}}"
    )
    script += "engine_has_proxy || fail 'no proxy' 'x'\n"
    path = f"{tmp_path}/bin"
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "grep"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}")
    assert failed(bash(script, PATH=path), "no proxy")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("# HTTPS_PROXY=http://old:1\n")
    assert failed(bash(script, PATH=path), "no proxy")
    (tmp_path / file).write_text(text)
    assert bash(script, PATH=path).returncode == 0

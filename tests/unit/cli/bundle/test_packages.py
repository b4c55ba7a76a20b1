"""Only packages that a server lacks are fetched; unavailable ones are reported before any download."""

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from components.errors import UserError
from components.machine.gpu_driver import TOOLKIT
from scripts.cli.bundle import packages
from scripts.cli.bundle.packages import TOOLKIT_PACKAGES, names
from scripts.cli.bundle.probe import Probe

NOTHING = dict.fromkeys(
    ("docker", "podman", "runc", "nvidia-ctk", "curl", "nft", "logrotate", "rsync", "python3", "sudo")
)
ENGINES = {"docker": "28.2", "podman": "5.4", "runc": "1.1"}
ALL = {**NOTHING, **ENGINES, "curl": "8", "nft": "1", "logrotate": "3", "nvidia-ctk": "1.18.0"}
BARE = Probe(
    distribution="debian 12",
    codename="bookworm",
    architecture="amd64",
    kernel="6.1.0-1-amd64",
    nvidia_driver=None,
    gpus=0,
    switches=0,
    programs=NOTHING,
    dpkg_status=b"",
    digest="0" * 64,
)
UBUNTU = replace(BARE, distribution="ubuntu 24.04", codename="noble", kernel="6.8.0-50-generic", gpus=2)


def test_a_bare_server_lacks_all() -> None:
    assert names(BARE, runtime="docker", gpus=False) == [
        "docker.io",
        "ca-certificates",
        "curl",
        "nftables",
        "logrotate",
    ]


def test_a_server_that_has_all_lacks_nothing() -> None:
    server = replace(BARE, programs=ALL, nvidia_driver="580.1")
    for runtime in ("docker", "podman"):
        assert names(server, runtime=runtime, gpus=True) == []
        assert packages.part(server, runtime=runtime, gpus=True) is None


@pytest.mark.parametrize(
    ("distribution", "runtime", "asked"),
    [
        ("debian 12", "podman", ["podman", "iptables", "containernetworking-plugins", "podman-docker"]),
        ("ubuntu 22.04", "podman", ["podman", "iptables", "containernetworking-plugins", "podman-docker"]),
        ("ubuntu 24.04", "docker", ["docker.io"]),
        ("debian 13", "docker", ["docker.io", "docker-cli"]),
        ("debian", "docker", ["docker.io", "docker-cli"]),
    ],
)
def test_each_release_has_its_own_names_for_a_runtime(distribution: str, runtime: str, asked: list[str]) -> None:
    server = replace(BARE, distribution=distribution, programs={**ALL, "docker": None, "podman": None})
    assert names(server, runtime=runtime, gpus=False) == asked


def test_podman_gives_gpus_to_containers_by_runc() -> None:
    server = replace(UBUNTU, programs={**ALL, "runc": None}, nvidia_driver="580.1")
    assert names(server, runtime="podman", gpus=True) == ["runc"]
    assert names(server, runtime="podman", gpus=False) == names(server, runtime="docker", gpus=True) == []


def test_the_driver_is_for_exactly_the_kernel_that_was_probed() -> None:
    asked = names(replace(UBUNTU, programs=ALL, switches=6), runtime="docker", gpus=True)
    assert asked == [
        "linux-modules-nvidia-580-server-open-6.8.0-50-generic",
        "nvidia-headless-no-dkms-580-server-open",
        "nvidia-utils-580-server",
        "nvidia-fabricmanager-580",
    ]
    assert "nvidia" not in " ".join(names(UBUNTU, runtime="docker", gpus=False))


@pytest.mark.parametrize("there", [None, "1.17.7", "1.9.9"])
def test_the_toolkit_is_the_pinned_one(there: str | None) -> None:
    server = replace(UBUNTU, programs={**ALL, "nvidia-ctk": there}, nvidia_driver="590.44.01")
    wanted = [f"{name}={TOOLKIT['toolkit_version']}" for name in TOOLKIT_PACKAGES]
    assert names(server, runtime="docker", gpus=True) == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": "rhel 9.4", "dpkg_status": None}, r"\(rhel 9.4\) lacks docker.io, .* supported; fix: "),
        ({"gpus": 2}, r"\(debian 12\) has no NVIDIA driver, and only Ubuntu's can be bundled; fix: "),
        ({"nvidia_driver": "535.1.2"}, r"driver 535.1.2, which is too old: 580 is needed; fix: "),
    ],
    ids=["rhel", "debian with GPUs", "old driver"],
)
def test_what_cannot_be_had(changes: Mapping[str, object], message: str) -> None:
    server = replace(BARE, **changes)  # type: ignore[arg-type] # fields of it
    with pytest.raises(UserError, match=message):
        names(server, runtime="docker", gpus="distribution" not in changes)


def test_a_machine_that_pushes_images_needs_skopeo_alone() -> None:
    """Also by a probe of before skopeo was looked for."""
    assert names(BARE, runtime=None, gpus=False) == ["skopeo"]
    assert names(replace(BARE, programs={**BARE.programs, "skopeo": "1.9.3"}), runtime=None, gpus=False) == []


@pytest.mark.parametrize(
    "here",
    [
        {"distribution": "debian 13"},
        {"codename": "trixie"},
        {"architecture": "arm64"},
    ],
    ids=str,
)
def test_a_machine_of_another_kind_can_fetch_none(here: Mapping[str, str]) -> None:
    with pytest.raises(UserError, match="so its packages can't be had here; fix: build on a machine"):
        packages.part(BARE, runtime="docker", gpus=False, here=replace(BARE, **here))  # type: ignore[arg-type] # fields


def test_the_same_probe_is_the_same_part_and_another_is_not() -> None:
    def source(server: Probe) -> str:
        part = packages.part(server, runtime="docker", gpus=False, here=BARE)
        assert part
        assert part.about["names"] == "docker.io ca-certificates curl nftables logrotate"
        return part.source

    assert source(BARE) == source(replace(BARE))
    assert source(BARE) != source(replace(BARE, digest="1" * 64))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Name -> file with public keys: one, another, and both."""
    home = tmp_path_factory.mktemp("gpg")
    gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home)]
    for name in ("one", "other"):
        subprocess.run(
            [*gpg, "--passphrase", "", "--quick-gen-key", f"{name}@localhost", "ed25519"],
            check=True,
            capture_output=True,
        )
    found = {}
    for name, of in {"one": ["one@localhost"], "other": ["other@localhost"], "both": []}.items():
        found[name] = home / f"{name}.asc"
        exported = subprocess.run([*gpg, "--armor", "--export", *of], check=True, capture_output=True).stdout
        found[name].write_bytes(exported)
    subprocess.run(
        ["gpgconf", "--homedir", home, "--kill", "all"], check=True
    )  # otherwise its agent would keep running
    return found


def fingerprint(key: Path) -> str:
    command = ["gpg", "--batch", "--with-colons", "--show-keys", str(key)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr"))


def test_only_the_known_key_is_trusted(keys: Mapping[str, Path], tmp_path: Path) -> None:
    known = fingerprint(keys["one"])
    packages.check_key(keys["one"], known, tmp_path / "keyring")
    assert (tmp_path / "keyring").read_bytes()
    for name in ("other", "both"):
        with pytest.raises(UserError, match="is not the known one"):
            packages.check_key(keys[name], known, tmp_path / name)
        assert not (tmp_path / name).exists()

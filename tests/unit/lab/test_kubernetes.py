"""The laboratory's Kubernetes: its addresses, configurations, images, and what decides about a build."""

import io
import ipaddress
import json
import re
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from components.errors import UserError
from scripts.lab.kubernetes import configuration, images, programs
from scripts.lab.kubernetes.layout import (
    CONTROL,
    DNS_ADDRESS,
    HERE,
    LAN,
    LAN_BITS,
    LINK,
    MACHINES,
    METADATA_ADDRESS,
    NODES,
    PODS,
    SERVICES,
    VERSION,
)

NETWORKS = [ipaddress.IPv4Network(each) for each in (f"{LAN}/{LAN_BITS}", SERVICES, PODS)]
FOR_TESTS = ipaddress.IPv4Network("198.18.0.0/15")


def test_the_clusters_networks_are_apart_and_are_of_the_range_for_tests() -> None:
    for number, network in enumerate(NETWORKS):
        assert network.subnet_of(FOR_TESTS)
        assert not any(network.overlaps(other) for other in NETWORKS[number + 1 :])


def test_every_machine_has_an_address_of_its_own_in_the_network() -> None:
    addresses = [HERE, *(machine.address for machine in MACHINES)]
    assert len(set(addresses)) == len(addresses)
    assert all(ipaddress.ip_address(address) in NETWORKS[0] for address in addresses)


def test_the_dns_address_is_the_tenth_of_the_services_as_kubeadm_takes_it() -> None:
    assert ipaddress.ip_address(DNS_ADDRESS) == ipaddress.ip_network(SERVICES)[10]


def test_the_link_has_a_name_that_the_kernel_takes() -> None:
    assert len(LINK) <= 15


def test_nodes_have_control_groups_of_their_own() -> None:
    groups = [yaml.safe_load(configuration.kubelet(node))["cgroupRoot"] for node in NODES]
    assert len(set(groups)) == len(NODES)
    assert all(group.startswith(f"{configuration.CGROUP}/") for group in groups)


def test_kubelet_answers_nobody_without_a_name_and_removes_no_image() -> None:
    settings = yaml.safe_load(configuration.kubelet(NODES[0]))
    assert settings["authentication"]["anonymous"] == {"enabled": False}
    assert settings["authorization"] == {"mode": "Webhook"}
    assert settings["imageGCHighThresholdPercent"] == 100


def test_pods_are_not_hidden_behind_their_nodes_address() -> None:
    network = json.loads(configuration.pod_network("198.19.0.0/24"))
    [link] = [plugin for plugin in network["plugins"] if plugin["type"] == "ptp"]
    assert link["ipMasq"] is False
    assert link["ipam"]["ranges"] == [[{"subnet": "198.19.0.0/24"}]]


def test_kubeadm_is_told_the_clusters_networks_and_version() -> None:
    init, cluster = yaml.safe_load_all(configuration.kubeadm("v1.2.3"))
    assert init["localAPIEndpoint"]["advertiseAddress"] == CONTROL.address
    assert cluster["kubernetesVersion"] == f"v{VERSION}"
    assert cluster["networking"]["serviceSubnet"] == SERVICES
    assert cluster["networking"]["podSubnet"] == PODS
    assert cluster["dns"]["imageTag"] == "v1.2.3"


def test_the_resolver_knows_the_metadata_servers_name() -> None:
    assert f"{METADATA_ADDRESS} metadata.google.internal" in configuration.resolver()


def test_the_control_planes_commands_are_those_of_kubeadms_manifests(tmp_path: Path) -> None:
    for name in ("etcd", "kube-scheduler"):
        pod = {"spec": {"containers": [{"command": [name, "--one=1", "--two"]}]}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(pod))
    assert configuration.control_plane(tmp_path) == {
        name: [name, "--one=1", "--two"] for name in ("etcd", "kube-scheduler")
    }


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file
    return file.read()


def test_an_images_archive_has_the_program_and_the_digest_of_its_layer(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"\x7fELF")
    with tarfile.open(fileobj=io.BytesIO(images.archive("localhost/pause:1", program))) as archive:
        [manifest] = json.loads(content(archive, "manifest.json"))
        config = json.loads(content(archive, manifest["Config"]))
        layer = content(archive, manifest["Layers"][0])
    assert manifest["RepoTags"] == ["localhost/pause:1"]
    assert config["config"]["Entrypoint"] == ["/pause"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as files:
        assert files.getmember("pause").mode == 0o755
        assert content(files, "pause") == b"\x7fELF"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    copy = tmp_path / "programs"
    shutil.copytree(programs.SOURCES, copy)
    return copy


@pytest.mark.parametrize("name", ["go.sum", "go.mod", "main.go", "pause/main.go", "coredns/main.go"])
def test_programs_are_built_again_when_a_sum_or_a_source_changes(name: str, sources: Path) -> None:
    before = programs.digest(sources)
    with (sources / name).open("a") as file:
        file.write("\n")
    assert programs.digest(sources) != before


def test_programs_are_not_built_again_for_a_copy_of_the_sources(sources: Path) -> None:
    assert programs.digest(sources) == programs.digest(programs.SOURCES)


def test_go_mod_pins_every_part_of_kubernetes_to_the_version_that_the_programs_report() -> None:
    text = (programs.SOURCES / "go.mod").read_text()
    assert programs.module_version("k8s.io/kubernetes") == f"v{VERSION}"
    parts = re.findall(r"^\s*(?:replace )?(k8s\.io/\S+) => (\S+) (v\S+)$", text, re.MULTILINE)
    assert parts
    assert {version for _, _, version in parts} == {f"v0.{VERSION.partition('.')[2]}"}


def test_a_module_that_go_mod_lacks_has_no_version() -> None:
    with pytest.raises(KeyError):
        programs.module_version("example.com/none")


def test_a_disk_without_room_for_the_build_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setattr(programs, "NEED_GIB", 2**20)
    with pytest.raises(UserError, match="needs 1048576 GiB"):
        programs.build(lambda _: None)


def test_a_failed_build_shows_its_last_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\n[ \"$1\" = env ] && echo go1.99.1 && exit\necho 'main.go:1: syntax error' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(programs, "CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match=r"main\.go:1: syntax error"):
        programs.build(lambda _: None)
    assert not programs.directory().exists()

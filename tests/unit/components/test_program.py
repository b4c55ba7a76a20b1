"""Promises of the whole program, on every stack file and on a server with GPUs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pulumi
import pytest

import components
from components.machine.host import RUN_CLEANUP, RUN_SCRIPT, Host
from components.machine.ssh import SshKey
from tests.support.program import HOST_KEY, ROOT, Program, run
from tests.support.registered import Registered

Programs = Callable[..., Program]


def container(program: Program, role: str) -> Registered:
    return program.resources[f"{role}-container"]


# Containers


def test_vllm_has_no_network(program: Program) -> None:
    inputs = container(program, "vllm").inputs
    assert inputs["networkMode"] == "none"
    assert not {"ports", "networksAdvanced", "hosts", "dns", "links", "publishAllPorts"} & set(inputs)


def test_only_nginx_publishes_a_port_and_only_the_https_port(program_of: Programs) -> None:
    program = program_of("gpu", httpsPort=9443)
    published = {
        c.name: [(p["external"], p["internal"]) for p in c.inputs.get("ports", [])] for c in program.containers
    }
    assert published == {"vllm-container": [], "nginx-container": [(9443, 8443)]}


def test_nginx_is_on_no_network_but_the_stacks_own(program: Program) -> None:
    (network,) = program.of_type("docker:index/network:Network")
    inputs = container(program, "nginx").inputs
    assert inputs["networkMode"] == network.inputs["name"]
    assert "networksAdvanced" not in inputs


def test_nobody_resolves_names_for_nginx(program: Program) -> None:
    assert container(program, "nginx").inputs["dns"] == ["127.0.0.1"]


def test_the_egress_guard_filters_the_network_that_nginx_is_on(program: Program) -> None:
    (network,) = program.of_type("docker:index/network:Network")
    bridge = network.inputs["options"]["com.docker.network.bridge.name"]
    guard, kept = program.resources["nginx-egress-guard"].script, program.resources["nginx-packet-filter"].inputs["set"]
    for script in (guard, kept):
        assert f"INTERFACE={bridge}\n" in script
        assert f"PORT={container(program, 'nginx').inputs['ports'][0]['internal']:.0f}\n" in script
        assert f"CONTAINER={container(program, 'nginx').inputs['name']}\n" in script
    assert len(bridge) <= 15  # Linux takes no longer name


def test_the_packet_filter_is_set_again_in_a_new_container(program: Program) -> None:
    assert "nginx-container" in program.resources["nginx-packet-filter"].depends_on
    assert program.machine in program.resources["nginx-packet-filter"].inputs["on"]


def test_nothing_is_done_on_a_vm_before_its_metadata_is_guarded(on_google: Program) -> None:
    host = [command.name for command in on_google.commands if command.name != "vm-booted"]
    assert not [name for name in host if "vm-metadata-guard" not in on_google.waits_for(name)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("readOnly", True),
        ("capabilities", {"drops": ["ALL"]}),
        ("securityOpts", ["no-new-privileges:true"]),
        ("privileged", None),
        ("ipcMode", None),
        ("pidMode", None),
        ("devices", None),
        ("groupAdds", None),
        ("logDriver", "json-file"),
        ("restart", "always"),
    ],
)
def test_every_container_has(key: str, value: Any, program: Program) -> None:
    assert {c.name: c.inputs.get(key) for c in program.containers} == {
        "vllm-container": value,
        "nginx-container": value,
    }


def test_every_container_has_a_dedicated_user(program: Program) -> None:
    users = [c.inputs["user"].split(":")[0] for c in program.containers]
    assert all(int(user) >= 10000 for user in users)
    assert len(set(users)) == len(users)


def test_nginx_shares_the_sockets_group_with_vllm(program: Program) -> None:
    assert len({c.inputs["user"].split(":")[1] for c in program.containers}) == 1


def test_every_log_is_rotated(program: Program) -> None:
    assert all({"max-size", "max-file"} <= set(c.inputs["logOpts"]) for c in program.containers)


def test_every_container_is_labelled_with_its_stack(program: Program) -> None:
    (stack,) = {c.inputs["name"].removeprefix("elastic-vllm-").rpartition("-")[0] for c in program.containers}
    labels = [{each["label"]: each["value"] for each in c.inputs["labels"]} for c in program.containers]
    assert [each["elastic-vllm.stack"] for each in labels] == [stack] * 2


def test_containers_run_images_by_their_id(program: Program) -> None:
    for role in ("vllm", "nginx"):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", container(program, role).inputs["image"])
        assert f"runtime-{role}-image" in container(program, role).depends_on


def test_images_stay_when_the_stack_goes(program: Program) -> None:
    assert all(image.inputs["keepLocally"] for image in program.of_type("docker:index/remoteImage:RemoteImage"))


def test_containers_mount_these_directories_and_write_only_where_they_must(program_of: Programs) -> None:
    program = program_of("local")
    mounted = {
        c.name: {v["containerPath"]: (v["hostPath"], v.get("readOnly", False)) for v in c.inputs["volumes"]}
        for c in program.containers
    }
    own = "/var/lib/elastic-vllm/local"
    assert mounted == {
        "vllm-container": {
            "/model": ("/var/lib/elastic-vllm/models/rehearsal--tiny", True),
            "/run/vllm": (f"{own}/socket", False),
            "/cache": (f"{own}/cache", False),
        },
        "nginx-container": {
            "/etc/elastic-vllm": (f"{own}/nginx", True),
            "/run/vllm": (f"{own}/socket", True),
            "/var/log/elastic-vllm": ("/var/log/elastic-vllm/local", False),
            "/run/elastic-vllm-metrics": (f"{own}/metrics", False),
        },
    }


def test_nothing_in_a_tmpfs_gains_rights(program: Program) -> None:
    options = [options for c in program.containers for options in c.inputs["tmpfs"].values()]
    assert len(options) == 2
    assert all({"nosuid", "nodev"} <= set(option.split(",")) for option in options)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"])
def test_vllm_is_configured_to_stay_offline(variable: str, program: Program) -> None:
    assert variable in container(program, "vllm").inputs["envs"]


def test_a_models_environment_reaches_vllm(program_of: Programs) -> None:
    assert "VLLM_CPU_KVCACHE_SPACE=1" in container(program_of("local"), "vllm").inputs["envs"]


def test_vllm_has_the_gpus_where_there_are_some(program_of: Programs) -> None:
    assert container(program_of("gpu"), "vllm").inputs["gpus"] == "all"
    assert "gpus" not in container(program_of("local"), "vllm").inputs
    assert not [p for p in ("local", "gpu") if "gpus" in container(program_of(p), "nginx").inputs]


def test_vllm_runs_the_command_line_of_its_settings(program_of: Programs) -> None:
    inputs = container(program_of("gpu", gpuCount=4), "vllm").inputs
    assert inputs["entrypoints"][0] == "/bin/sh"
    assert inputs["command"][:2] == ["--model", "/model"]
    assert inputs["command"][inputs["command"].index("--tensor-parallel-size") + 1] == "4"


# Order


def test_nothing_touches_the_host_before_it_was_checked(program: Program) -> None:
    first = "vm-booted" if program.on_google else "host-check"
    touches = {r.name for r in program.resources.values() if r.is_command or r.is_docker or "docker" in r.type}
    assert {name for name in touches if first not in program.waits_for(name)} == {first}


def test_docker_is_used_only_once_it_works(program: Program) -> None:
    docker = [r.name for r in program.resources.values() if r.is_docker or r.type == "pulumi:providers:docker"]
    assert not [name for name in docker if "runtime-docker" not in program.waits_for(name)]


@pytest.mark.parametrize(
    ("resource", "before"),
    [
        ("nginx-container", {"nginx-egress-guard", "nginx-config", "nginx-network", "vllm-directories"}),
        ("vllm-container", {"vllm-directories", "runtime-vllm-image"}),
        ("nginx-config", {"vllm-directories"}),
    ],
)
def test_it_waits_for(resource: str, before: set[str], program: Program) -> None:
    assert before <= program.waits_for(resource)


def test_vllm_waits_for_its_weights(program: Program) -> None:
    assert {"weights-check", "weights-download"} & program.waits_for("vllm-container")


def test_nginx_does_not_wait_for_the_model_to_load(program: Program) -> None:
    assert not {"vllm-container", "vllm-ready"} & program.waits_for("nginx-ready")


@pytest.mark.parametrize("output", ["connectorUrl", "connectorApiKey"])
def test_outputs_are_available_once_the_endpoint_works(output: str, program: Program) -> None:
    assert {"vllm-ready", "nginx-ready"} <= program.outputs_wait_for[output]


# Hosts


def test_no_other_host_key_is_trusted(program: Program) -> None:
    assert {command.inputs["connection"].value["hostKey"] for command in program.commands} == {program.host_key}


def test_docker_trusts_no_other_host_key(program: Program) -> None:
    (provider,) = program.of_type("pulumi:providers:docker")
    options = json.loads(provider.inputs["sshOpts"])
    assert "StrictHostKeyChecking=yes" in options
    assert "UserKnownHostsFile=/dev/null" in options
    assert "GlobalKnownHostsFile=/dev/null" in options
    (known,) = [option for option in options if option.startswith("KnownHostsCommand=")]
    assert re.fullmatch(rf'KnownHostsCommand=/bin/sh -c "echo \S+ {re.escape(program.host_key)}"', known)


def test_an_ipv6_address_stands_in_brackets_in_addresses_only(program_of: Programs) -> None:
    program = program_of("gpu", host="2001:db8::5", endpointHost="2001:db8::6")
    (provider,) = program.of_type("pulumi:providers:docker")
    assert provider.inputs["host"] == "ssh://[2001:db8::5]:22"
    assert {command.inputs["connection"].value["host"] for command in program.commands} == {"2001:db8::5"}
    known = f"KnownHostsCommand=/bin/sh -c \"echo '2001:db8::5' {HOST_KEY}\""
    assert known in json.loads(provider.inputs["sshOpts"])
    assert program.outputs["connectorUrl"] == "https://[2001:db8::6]/v1/chat/completions"
    assert program.resources["certificate-request"].inputs["ipAddresses"] == ["2001:db8::6"]


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [({}, [None]), ({"ipv6": True}, [None, "::"]), ({"endpointHost": "2001:db8::6"}, [None, "::"])],
)
def test_the_port_is_published_on_ipv6_where_that_is_asked_for(
    settings: dict[str, Any], addresses: list[str | None], program_of: Programs
) -> None:
    ports = program_of("gpu", **settings).resources["nginx-container"].inputs["ports"]
    assert [port.get("ip") for port in ports] == addresses
    assert {(port["internal"], port["external"]) for port in ports} == {(8443, 443)}


@pytest.mark.parametrize(("port", "known_as"), [(22, "llm.example"), (2222, "[llm.example]:2222")])
def test_docker_knows_the_host_by_the_name_that_ssh_looks_up(port: int, known_as: str, program_of: Programs) -> None:
    (provider,) = program_of("gpu", sshPort=port).of_type("pulumi:providers:docker")
    options = json.loads(provider.inputs["sshOpts"])
    assert f"KnownHostsCommand=/bin/sh -c \"echo '{known_as}' {HOST_KEY}\"" in options
    assert provider.inputs["host"] == f"ssh://llm.example:{port}"
    assert options[:4] == ["-F", "none", "-l", "ops"]


def test_another_machine_behind_the_address_is_set_up_again(program: Program) -> None:
    assert not [c.name for c in program.commands if not c.cleanup and program.machine not in c.inputs["triggers"]]
    assert not [r.name for r in program.leaves if r.is_docker and r.replacement_trigger != program.machine]


def test_a_resource_with_a_name_on_the_host_is_deleted_before_its_successor_is_created(program: Program) -> None:
    named = [r for r in program.leaves if r.is_docker and "Image" not in r.type]
    assert len(named) == 3
    assert not [r.name for r in named if not r.delete_before_replace]


def test_what_cleans_up_is_never_replaced(on_server: Program) -> None:
    """A replacement's cleanup would contact a machine that may be gone, or remove the work of its successor."""
    cleaning = [command for command in on_server.commands if command.cleanup]
    assert cleaning
    assert not [command.name for command in cleaning if command.inputs.get("triggers")]


def test_what_is_made_on_the_host_is_removed_with_the_stack(on_server: Program) -> None:
    cleaning = {command.name for command in on_server.commands if command.cleanup}
    bundled = "bundle-check" in on_server.resources
    assert cleaning - {"host-downloads"} == {"vllm-directories", "nginx-egress-guard", "nginx-config"}
    assert ("host-downloads" in cleaning) != bundled


def test_nothing_is_cleaned_up_on_a_machine_that_goes_away(private_key: Path) -> None:
    host = Host(
        address="10.0.0.5",
        port=22,
        user="root",
        ssh_key=SshKey(path=private_key),
        host_key=HOST_KEY,
        identity="instance-1",
        prefix="elastic-vllm-vm",
        directory="/var/lib/elastic-vllm/vm",
        cleans_up=True,
    )

    def main() -> None:
        parent = pulumi.ComponentResource("elastic-vllm:index:Test", "test")
        host.command("test-stays", "true", cleanup="false", parent=parent)
        replace(host, cleans_up=False).command("test-goes", "true", cleanup="false", parent=parent)

    program = run({}, main=main)
    assert program.resources["test-stays"].cleanup == "false"
    assert program.resources["test-goes"].cleanup == ""


@pytest.mark.parametrize(("user", "by_sudo"), [("root", False), ("ops", True)])
def test_scripts_run_as_root(user: str, by_sudo: bool, program_of: Programs) -> None:
    commands = program_of("gpu", sshUser=user).commands
    assert {bool(c.becoming_root) for c in commands} == {by_sudo}


def test_every_command_fails_unless_its_script_runs_to_its_end(program: Program) -> None:
    assert {c.inputs["create"] for c in program.commands} == {RUN_SCRIPT}
    assert {c.inputs["delete"] for c in program.commands if c.cleanup} <= {RUN_CLEANUP}


def test_two_stacks_on_one_host_share_nothing(program_of: Programs) -> None:
    def owned(program: Program) -> set[str]:
        names = {
            r.inputs["name"] for r in program.leaves if r.is_docker and "name" in r.inputs and "Image" not in r.type
        }
        bridges = {
            n.inputs["options"]["com.docker.network.bridge.name"]
            for n in program.of_type("docker:index/network:Network")
        }
        paths = {
            v["hostPath"] for c in program.containers for v in c.inputs["volumes"] if "/models/" not in v["hostPath"]
        }
        tables = {line for c in program.commands for line in c.script.splitlines() if line.startswith("PREFIX=")}
        return names | bridges | paths | tables

    assert not owned(program_of("local")) & owned(program_of("test"))


# Names


def test_children_are_named_after_their_component(program: Program) -> None:
    components = {r.name for r in program.resources.values() if r.type.startswith("elastic-vllm:")}
    for resource in program.resources.values():
        if resource.name not in components:
            assert resource.parent in components, resource.name
            assert resource.name.startswith(f"{resource.parent}-")


def test_components_are_typed_by_their_class_and_found_in_the_package(program: Program) -> None:
    tokens = {r.type for r in program.resources.values() if r.type.startswith("elastic-vllm:")}
    assert tokens <= {f"elastic-vllm:index:{name}" for name in components.MODULES}
    assert {"elastic-vllm:index:Certificate", "elastic-vllm:index:NginxGateway"} <= tokens


def test_there_is_one_component_per_file() -> None:
    found = {
        path: re.findall(r"^class (\w+)\(pulumi\.ComponentResource\)", path.read_text(), re.M)
        for path in (ROOT / "components").rglob("*.py")
    }
    assert {name: path for path, names in found.items() for name in names} == {
        name: ROOT / "components" / f"{module.replace('.', '/')}.py" for name, module in components.MODULES.items()
    }
    assert not [path for path, names in found.items() if len(names) > 1]


def test_docker_is_never_that_of_this_machine(program: Program) -> None:
    assert not [r.name for r in program.leaves if r.is_docker and r.provider != "runtime-provider"]


RUN = """
import json, sys
from tests.support.program import run
run(json.load(sys.stdin), stack=sys.argv[1])
print("pulumi_gcp.compute.instance" in sys.modules)
"""


@pytest.mark.parametrize(("base", "loaded"), [("local", False), ("prod", True)])
def test_googles_api_is_loaded_only_where_it_is_used(
    base: str, loaded: bool, values_of: Callable[..., dict[str, str]]
) -> None:
    """Loading its classes takes a second and 50 MB."""
    command = [sys.executable, "-c", RUN, base]
    done = subprocess.run(command, input=json.dumps(values_of(base)), capture_output=True, text=True, check=True)
    assert done.stdout == f"{loaded}\n"


# base, settings, component, the outputs that it registers
OUTPUTS: list[tuple[str, dict[str, Any], str, set[str]]] = [
    ("local", {}, "host", {"address"}),
    ("local", {}, "runtime", {"imageIds"}),
    ("local", {}, "weights", {"path"}),
    ("local", {}, "vllm", {"socketDirectory"}),
    ("local", {}, "nginx", {"container"}),
    ("local", {}, "key", {"key", "named", "accepted"}),
    ("local", {}, "certificate", {"certificatePem", "caCertificatePem"}),
    ("local", {"clientCertificates": ["kibana"]}, "clients", {"caPem", "certificates"}),
    ("local", {}, "connector", {"endpointUrl", "url", "key", "connectorId", "inferenceId"}),
    ("airgap", {}, "bundle", {"packages", "imageDirectories"}),
    ("prod", {}, "network", {"address", "subnetwork"}),
    ("prod", {}, "vm", {"address"}),
]


@pytest.mark.parametrize(("base", "overrides", "name", "outputs"), OUTPUTS, ids=[row[2] for row in OUTPUTS])
def test_a_component_registers_its_outputs(
    base: str, overrides: dict[str, Any], name: str, outputs: set[str], program_of: Callable[..., Program]
) -> None:
    registered = program_of(base, **overrides).resources[name].outputs
    assert set(registered) == outputs
    assert not [key for key, value in registered.items() if value is None]

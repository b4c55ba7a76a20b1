"""Resources in Google Cloud for every such stack file: the rules of google_rules, and the differences."""

import copy
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from components.settings.gcp import IAP_SOURCES
from tests.support.google_rules import EXAMPLES, FIREWALL, RULES, Rule, content, ports
from tests.support.program import FILLED_IN, HOST_KEY, Program, run, written
from tests.support.registered import INSTANCE, Registered
from tests.unit.conftest import ON_GOOGLE

Programs = Callable[..., Program]
Values = Callable[..., dict[str, str]]
BASTION = {"sshVia": "bastion", "bastion": "ops@bastion.example:2022", "bastionHostKey": HOST_KEY}
EXISTING_NETWORK = {"network": "shared", "subnetwork": "llm"}
KEPT_WHILE_PARKED = {
    *("network-address", "network-https", "network-ssh", "network-subnetwork", "network-vpc", "vm-weights"),
    *("vm-host-key", "key-v1", "certificate-ca", "certificate-ca-key", "certificate-key", "certificate-request"),
    "certificate-server",
}


@pytest.fixture
def prod(program_of: Programs) -> Program:
    return program_of("prod")


@pytest.fixture
def private(program_of: Programs) -> Program:
    return program_of("prod-private")


def instance_of(program: Program) -> Registered:
    (instance,) = program.of_type(INSTANCE)
    return instance


# Rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule, on_google: Program) -> None:
    assert not [*rule(on_google)]


@pytest.mark.parametrize(("rule", "base", "name", "path", "value"), EXAMPLES)
def test_a_rule_finds_what_breaks_it(
    rule: Rule, base: str, name: str, path: str, value: Any, program_of: Programs
) -> None:
    program = copy.deepcopy(program_of(base))
    assert not [*rule(program)]
    resource = program.resources[name]
    *way, last = path.removeprefix(".").split(".")
    if path.startswith("."):
        setattr(resource, last, value)
    else:
        at = resource.inputs
        for part in way:
            at = content(at[part])
        at[last] = value
    assert [*rule(program)]


def test_every_rule_has_an_example() -> None:
    assert {rule for rule, *_ in EXAMPLES} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_hold_of_a_parked_stack(rule: Rule, program_of: Programs) -> None:
    assert not [*rule(program_of("prod", parked=True))]


# Stack files


@pytest.mark.parametrize("stack", ON_GOOGLE)
def test_a_stack_file_leaves_at_most_three_values_to_fill_in(stack: str) -> None:
    empty = {key for key, value in written(stack).items() if value in ("", [])}
    assert empty <= set(FILLED_IN)
    assert len(empty) <= 3


@pytest.mark.parametrize("name", ["p" * 40, "a-" * 19 + "b"])
def test_names_fit_for_the_longest_stack_name(name: str, values_of: Values) -> None:
    program = run(values_of("prod-private"), stack=name)
    assert not [offender for rule in RULES for offender in rule(program)]


# Access


def test_the_endpoint_is_open_to_everyone_only_in_these_words(program_of: Programs) -> None:
    program = program_of("prod", httpsSourceRanges=["0.0.0.0/0"])
    opened = [f.name for f in program.of_type(FIREWALL) if "0.0.0.0/0" in f.inputs["sourceRanges"]]
    assert opened == ["network-https"]


def test_the_given_ranges_may_connect_and_no_others(prod: Program) -> None:
    let_in = {(*ports(f), *f.inputs["sourceRanges"]) for f in prod.of_type(FIREWALL)}
    assert let_in == {("443", *FILLED_IN["httpsSourceRanges"]), ("22", *FILLED_IN["sshSourceRanges"])}


def test_another_port_is_let_in_instead(program_of: Programs) -> None:
    assert {*map(frozenset, map(ports, program_of("prod", httpsPort=8443).of_type(FIREWALL)))} == {
        frozenset({"8443"}),
        frozenset({"22"}),
    }


def test_through_googles_proxy_commands_and_docker_use_the_tunnel(private: Program) -> None:
    connections = {(c["host"], c["port"]) for c in (content(c.inputs["connection"]) for c in private.commands)}
    assert connections == {("127.0.0.1", 22022)}
    assert private.resources["runtime-provider"].inputs["host"] == "ssh://127.0.0.1:22022"
    assert private.resources["network-ssh"].inputs["sourceRanges"] == [*IAP_SOURCES]


def test_through_a_bastion_its_host_key_is_verified_too(program_of: Programs) -> None:
    program = program_of("prod", **BASTION)
    for command in program.commands:
        proxy = content(command.inputs["connection"])["proxy"]
        assert (proxy["user"], proxy["host"], proxy["port"]) == ("ops", "bastion.example", 2022)
        assert proxy["hostKey"] == HOST_KEY
    options = program.resources["runtime-provider"].inputs["sshOpts"]
    (jump,) = [option for option in yaml.safe_load(options) if option.startswith("ProxyCommand=")]
    words = shlex.split(jump.removeprefix("ProxyCommand="))
    assert words[:5] == ["ssh", "-F", "none", "-l", "ops"]
    assert words[-6:] == ["-p", "2022", "-W", "%h:%p", "--", "bastion.example"]
    assert f"KnownHostsCommand=/bin/sh -c \"echo '[bastion.example]:2022' {HOST_KEY}\"" in words
    assert "StrictHostKeyChecking=yes" in words


def test_without_a_bastion_there_is_no_proxy(prod: Program) -> None:
    assert not [c.name for c in prod.commands if content(c.inputs["connection"]).get("proxy")]
    assert "ProxyCommand=ssh" not in str(prod.resources["runtime-provider"].inputs["sshOpts"])


# Network


def test_the_vm_has_the_static_external_address(prod: Program) -> None:
    (interface,) = instance_of(prod).inputs["networkInterfaces"]
    address = prod.resources["network-address"]
    assert address.inputs["addressType"] == "EXTERNAL"
    assert "subnetwork" not in address.inputs
    assert "networkIp" not in interface
    assert [config["natIp"] for config in interface["accessConfigs"]] == [url_host(prod)]


def test_in_private_mode_the_static_address_is_internal(private: Program) -> None:
    (interface,) = instance_of(private).inputs["networkInterfaces"]
    address = private.resources["network-address"]
    assert address.inputs["addressType"] == "INTERNAL"
    assert address.inputs["subnetwork"] == interface["subnetwork"]
    assert not interface.get("accessConfigs")
    assert interface["networkIp"] == url_host(private)


def url_host(program: Program) -> str:
    url: str = program.outputs["connectorUrl"]
    return url.removeprefix("https://").partition("/")[0]


def test_cloud_nat_only_if_asked(program_of: Programs, private: Program) -> None:
    kinds = {"gcp:compute/router:Router", "gcp:compute/routerNat:RouterNat"}
    assert not kinds & {r.type for r in program_of("prod").leaves}
    assert kinds <= {r.type for r in private.leaves}
    (nat,) = private.of_type("gcp:compute/routerNat:RouterNat")
    (interface,) = instance_of(private).inputs["networkInterfaces"]
    assert [s["name"] for s in nat.inputs["subnetworks"]] == [interface["subnetwork"]]


def test_an_existing_network_is_used_and_none_is_made(program_of: Programs) -> None:
    program = program_of("prod", **EXISTING_NETWORK)
    assert not program.of_type("gcp:compute/network:Network") + program.of_type("gcp:compute/subnetwork:Subnetwork")
    assert {f.inputs["network"] for f in program.of_type(FIREWALL)} == {"shared"}
    assert [i["subnetwork"] for i in instance_of(program).inputs["networkInterfaces"]] == ["llm"]


def test_the_own_network_has_no_subnetworks_but_ours(prod: Program) -> None:
    assert prod.resources["network-vpc"].inputs["autoCreateSubnetworks"] is False


# Parked


def test_parked_there_is_no_vm_and_nothing_on_it(program_of: Programs) -> None:
    program = program_of("prod", parked=True)
    assert {r.name for r in program.leaves} == KEPT_WHILE_PARKED
    assert program.outputs["_internal"]["parked"] is True


@pytest.mark.parametrize("stack", ON_GOOGLE)
def test_parked_url_key_and_certificate_stay(stack: str, program_of: Programs) -> None:
    up, parked = program_of(stack).outputs, program_of(stack, parked=True).outputs
    # There is no machine to reach.
    internal = {**up["_internal"], "parked": True, "ssh": None}
    assert parked == {**up, "_internal": internal, "elasticAgentPolicy": None}


# Order


def test_what_can_overlap_does(prod: Program) -> None:
    long = {"runtime-vllm-image", "weights-download", "gpus-install"}
    assert {name: prod.waits_for(name) & long for name in long} == {name: set() for name in long}
    assert long <= prod.waits_for("vllm-container")


def test_the_vm_is_up_and_open_before_anything_is_done_on_it(on_google: Program) -> None:
    assert {"vm-instance", "network-ssh"} <= on_google.waits_for("vm-booted")
    assert {"vm-booted", "network-https"} <= on_google.waits_for("nginx-ready")


def test_with_cloud_nat_the_vm_can_connect_out_from_the_start(private: Program) -> None:
    assert "network-nat" in private.waits_for("vm-instance")


def test_no_image_is_pulled_before_the_kernel_is_the_last_one(on_google: Program) -> None:
    """A reboot would end a pull."""
    after = {
        c.name for c in on_google.leaves if (c.is_command or c.is_docker) and "vm-kernel" in on_google.waits_for(c.name)
    }
    assert {c.name for c in on_google.leaves if c.is_command or c.is_docker} - after == {"vm-booted", "vm-kernel"}

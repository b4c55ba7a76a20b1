"""`diagnose` on a stack in which something is really broken: the cause, the fix and the exit status each time."""

import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from components.elastic import payloads
from scripts.cli.diagnose import command
from scripts.lib.errors import ExitCode
from scripts.lib.verification import generation
from tests.integration.conftest import ROOT, deployment, outputs_of, rehearse_up
from tests.support import elastic_stand_in, faults, local_sshd, verify_server, vllm_stand_in
from tests.support.commands import invoke
from tests.support.elastic_stand_in import ADMIN, Elastic
from tests.support.faults import LOGS, NGINX, OWN, STACK, VLLM
from tests.support.made_stacks import stack_file
from tests.support.verify_server import issue, new_authority

Diagnose = Callable[..., Result]

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(machine: None) -> Iterator[Mapping[str, Any]]:
    """Outputs of a stack like local, with the stand-in for vLLM and a separate port."""
    config = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())["config"]
    settings = {key.removeprefix("elastic-vllm:"): value for key, value in config.items()}
    with vllm_stand_in.image() as image:
        own = {"httpsPort": local_sshd.free_port(), "vllmImage": image}
        with stack_file(STACK, settings | own):
            rehearse_up(stack=STACK)
            yield outputs_of(STACK)


@pytest.fixture
def diagnosed(outputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Diagnose:
    """Function that diagnoses that stack; `changes` replace outputs, `key` goes by a file. No output has the key."""
    monkeypatch.setattr(generation, "STREAM_PAUSES", (0,))

    def run(*arguments: str, key: str = "", **changes: Any) -> Result:
        changed = {**outputs, **changes}
        monkeypatch.setattr(command, "stack_outputs", lambda _stack, **_: changed)
        if key:
            (tmp_path / "key").write_text(key)
            arguments += ("--key-file", str(tmp_path / "key"))
        result = invoke("diagnose", "--stack", STACK, *arguments)
        assert isinstance(result.exception, SystemExit | None)
        assert outputs["connectorApiKey"] not in result.output
        return result

    return run


def expect(result: Result, kind: ExitCode | None, *words: str) -> None:
    """Check the exit status, and that the cause or fix has these words."""
    assert result.exit_code == (kind or 0), result.output
    diagnosis = result.output.partition("\ncause: ")[2].partition("\nalso: ")[0] if kind else result.output
    assert not [word for word in words if word not in diagnosis], result.output
    assert kind is None or "\n  fix: " in diagnosis


def test_all_is_well(diagnosed: Diagnose) -> None:
    expect(diagnosed(), None, "all is well", "vLLM answers", "chain and name 127.0.0.1 verified")


# Mistakes of a client


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            lambda o: {"key": o["connectorApiKey"][:-1] + "x"},
            ExitCode.KEY,
            ("refuses the key (401)", "connectorApiKey"),
        ),
        (lambda o: {"key": o["connectorApiKey"].upper()}, ExitCode.KEY, ("refuses the key (401)", "small letters")),
        (lambda o: {"key": "short"}, ExitCode.KEY, ("the key can't be right",)),
        (lambda o: {"model": "gpt-4"}, ExitCode.REQUEST, ("'gpt-4' is not listed", "elastic-llm")),
        (
            lambda o: {"connectorUrl": o["connectorUrl"].replace("chat/completions", "completions")},
            ExitCode.REQUEST,
            ("/v1/chat/completions",),
        ),
        (lambda o: {"connectorUrl": o["connectorUrl"].replace("https:", "http:")}, ExitCode.REQUEST, ("https://",)),
        (
            lambda o: {"connectorUrl": "https://no-such-name.invalid/v1/chat/completions"},
            ExitCode.NETWORK,
            ("the host name has no address", "DNS"),
        ),
        (
            lambda o: {"connectorUrl": f"https://127.0.0.1:{local_sshd.free_port()}/v1/chat/completions"},
            ExitCode.NETWORK,
            ("connection refused", "is Nginx running"),
        ),
        (
            lambda o: {"caCertificate": new_authority().pem},
            ExitCode.TLS,
            ("not signed by the given CA", "caCertificate"),
        ),
        (lambda o: {"caCertificate": None}, ExitCode.TLS, ("not signed by a CA that this system trusts",)),
        (lambda o: {"caCertificate": "no PEM"}, ExitCode.TLS, ("the ca_certificate can't be right",)),
        (
            lambda o: {"connectorUrl": o["connectorUrl"].replace("127.0.0.1", "localhost")},
            ExitCode.TLS,
            ("certificate not valid for localhost, only for 127.0.0.1",),
        ),
    ],
    ids=[
        "key",
        "key in capitals",
        "short key",
        "model",
        "path",
        "http",
        "dns",
        "port",
        "ca",
        "no ca",
        "no pem",
        "name",
    ],
)
def test_a_clients_mistake_is_named(
    diagnosed: Diagnose,
    outputs: Mapping[str, Any],
    change: Callable[[Mapping[str, Any]], dict[str, Any]],
    kind: ExitCode,
    words: tuple[str, ...],
) -> None:
    expect(diagnosed(**change(outputs)), kind, *words)


# Faults between client and server, by a small server instead of the endpoint


@contextmanager
def in_place(tmp_path: Path, fault: str, days: float = 365) -> Iterator[dict[str, Any]]:
    """Yield outputs that lead to a server with this fault."""
    ca = new_authority()
    with verify_server.serving(issue(ca, tmp_path / "server.pem", days=days)) as gateway:
        gateway.fault = fault
        yield {
            "connectorUrl": gateway.url,
            "key": verify_server.KEY,
            "model": verify_server.MODEL,
            "caCertificate": ca.pem,
        }


@pytest.mark.parametrize(
    ("fault", "days", "kind", "words"),
    [
        ("", -1, ExitCode.TLS, ("certificate expired on", "renew it")),
        ("buffered", 365, ExitCode.REQUEST, ("buffer",)),
        ("stream-cut", 365, ExitCode.REQUEST, ("broke off",)),
    ],
)
def test_a_fault_between_client_and_server_is_named(
    diagnosed: Diagnose, tmp_path: Path, fault: str, days: float, kind: ExitCode, words: tuple[str, ...]
) -> None:
    with in_place(tmp_path, fault, days) as changes:
        expect(diagnosed(**changes), kind, *words)


def test_a_port_without_tls_is_named(diagnosed: Diagnose) -> None:
    with elastic_stand_in.serving(Elastic()) as plain:
        url = plain.address.replace("http:", "https:") + "/v1/chat/completions"
        expect(diagnosed(connectorUrl=url), ExitCode.TLS, "does not speak TLS", "port")


def test_a_port_that_a_firewall_drops_is_named(
    diagnosed: Diagnose, outputs: Mapping[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr("scripts.lib.verification.gateway.CONNECT_SECONDS", 1)
    port = local_sshd.free_port()
    rule = f"type filter hook input priority 0; tcp dport {port} drop"
    rules = f"table inet elastic_vllm_{STACK}_drop {{\nchain c {{\n{rule}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        url = f"https://127.0.0.1:{port}/v1/chat/completions"
        expect(diagnosed(connectorUrl=url), ExitCode.NETWORK, "no answer", "firewall")
    finally:
        subprocess.run(["nft", "delete", "table", "inet", f"elastic_vllm_{STACK}_drop"], check=True)


# The server


LOADS = ("sh", "-c", "echo 'Loading safetensors checkpoint shards:  40% Completed | 2/5'; sleep 600")
EATS = ("python3", "-c", "x = bytearray(10**9)")
FAULTS: Mapping[str, tuple[Callable[[], AbstractContextManager[None]], ExitCode, tuple[str, ...]]] = {
    "Nginx stopped": (
        lambda: faults.stopped(NGINX),
        ExitCode.CONTAINERS,
        (f"{NGINX} does not run (exited", "docker start"),
    ),
    "vLLM stopped": (
        lambda: faults.stopped(VLLM),
        ExitCode.CONTAINERS,
        (f"{VLLM} does not run (exited", "docker start"),
    ),
    "vLLM killed": (lambda: faults.killed(VLLM), ExitCode.CONTAINERS, ("exit code 137", "docker start")),
    "vLLM paused": (lambda: faults.paused(VLLM), ExitCode.CONTAINERS, (f"{VLLM} is paused", "docker unpause")),
    "Nginx removed": (
        lambda: faults.removed(NGINX),
        ExitCode.CONTAINERS,
        (f"there is no container {NGINX}", "up --refresh"),
    ),
    "vLLM loads": (lambda: faults.in_its_place(VLLM, *LOADS), ExitCode.LOADING, ("still loading (40 %)", "wait")),
    "out of memory": (
        lambda: faults.in_its_place(VLLM, *EATS, memory="32m"),
        ExitCode.CONTAINERS,
        (f"{VLLM} ran out of memory", "smaller model"),
    ),
    "socket gone": (
        lambda: faults.without(OWN / "socket" / "vllm.sock"),
        ExitCode.CONTAINERS,
        ("its socket is gone", f"docker restart {VLLM}"),
    ),
    "Nginx's configuration gone": (faults.broken_configuration, ExitCode.CONTAINERS, (NGINX, "see docker logs")),
    "disk full": (faults.full_disk, ExitCode.SERVER, (f"the disk is full at {LOGS}", "free some space")),
    "packet filter gone": (faults.no_packet_filter, ExitCode.SERVER, ("the packet filter is gone", "nft -f")),
}


QUICKLY = {"Nginx stopped", "vLLM stopped", "Nginx removed"}


@pytest.mark.parametrize("name", [pytest.param(each, marks=() if each in QUICKLY else SLOW) for each in FAULTS])
def test_a_fault_on_the_server_is_named(diagnosed: Diagnose, name: str) -> None:
    fault, kind, words = FAULTS[name]
    with fault():
        result = diagnosed()
    expect(result, kind, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"port": 9}, ("SSH does not get there", "sshd")),
        pytest.param(
            {"options": ["-o", "KnownHostsCommand=/bin/true"]}, ("it shows another host key", "sshHostKey"), marks=SLOW
        ),
        pytest.param({"options": ["-i", "/dev/null"]}, ("refuses the private key", "sshPrivateKeyPath"), marks=SLOW),
    ],
    ids=["refused", "host key", "private key"],
)
def test_a_server_that_ssh_does_not_reach_is_named(
    diagnosed: Diagnose, outputs: Mapping[str, Any], change: dict[str, Any], words: tuple[str, ...]
) -> None:
    ssh = dict(outputs["_internal"]["ssh"])
    if "options" in change:
        ssh["options"] = _with(ssh["options"], change["options"])
    ssh |= {key: value for key, value in change.items() if key != "options"}
    expect(diagnosed(_internal={**outputs["_internal"], "ssh": ssh}), ExitCode.SERVER, *words)


def _with(options: list[str], change: list[str]) -> list[str]:
    flag, value = change
    if flag == "-i":
        return [value if before == "-i" else each for before, each in zip(["", *options], options, strict=False)]
    name = value.partition("=")[0]
    return [value if each.startswith(f"{name}=") else each for each in options]


# Kibana


@pytest.fixture
def kibana(tmp_path: Path) -> Iterator[tuple[Elastic, tuple[str, ...]]]:
    (tmp_path / "kibana-key").write_text(ADMIN)
    with elastic_stand_in.serving(Elastic(calls_endpoint=False)) as elastic:
        yield elastic, ("--kibana-url", elastic.address, "--kibana-key-file", str(tmp_path / "kibana-key"))


@SLOW
def test_kibanas_connector_is_as_it_should_be(
    diagnosed: Diagnose, outputs: Mapping[str, Any], kibana: tuple[Elastic, tuple[str, ...]]
) -> None:
    elastic, options = kibana
    id_ = payloads.connector_id(f"elastic-vllm-{STACK}")
    expect(diagnosed(*options), ExitCode.KIBANA, f"Kibana has no connector {id_}", "kibanaUrl")
    elastic.connectors["default", id_] = outputs["kibanaConnectorRequest"]
    expect(diagnosed(*options), None, "has the connector as it should be", "responseTimeout")
    config = {**outputs["kibanaConnectorRequest"]["config"], "apiUrl": "https://elsewhere/v1/chat/completions"}
    elastic.connectors["default", id_] = {**outputs["kibanaConnectorRequest"], "config": config}
    expect(diagnosed(*options), ExitCode.KIBANA, "the connector leads elsewhere: apiUrl is", "up --refresh")


@SLOW
def test_a_kibana_that_does_not_answer_or_refuses_the_key_is_named(diagnosed: Diagnose, tmp_path: Path) -> None:
    (tmp_path / "kibana-key").write_text("d3Jvbmc=")
    file = ("--kibana-key-file", str(tmp_path / "kibana-key"))
    expect(diagnosed("--kibana-url", "http://127.0.0.1:9", *file), ExitCode.KIBANA, "Connection refused", "is it up")
    with elastic_stand_in.serving(Elastic()) as elastic:
        expect(
            diagnosed("--kibana-url", elastic.address, *file), ExitCode.KIBANA, "refuses the API key", "kibanaApiKey"
        )


# The archive


def test_the_support_archive_holds_no_secret(diagnosed: Diagnose, outputs: Mapping[str, Any], tmp_path: Path) -> None:
    canary = "canary-" + "c" * 40
    subprocess.run(
        ["docker", "exec", NGINX, "sh", "-c", f"echo 'Authorization: Bearer {canary}' >/proc/1/fd/2"], check=True
    )
    with deployment(STACK).http(outputs["connectorApiKey"]) as client:
        client.get(f"/v1/models/{outputs['connectorApiKey']}")  # so that it is in Nginx's log
    path = tmp_path / "support.tar.gz"
    assert diagnosed("--bundle", str(path)).exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        text = "".join(file.read().decode() for file in files.values() if file)
    assert {"findings.json", "outputs.json", "log-nginx.txt"} <= {Path(name).name for name in files}
    assert not [secret for secret in (outputs["connectorApiKey"], canary, "PRIVATE KEY") if secret in text]
    assert "<redacted>" in text


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "connectorUrl is not known\n  fix: give --stack, or --url"),
        (["--stack", "nope", "--rehearsal"], "stack nope isn't up"),
        (["--url", "https://x/v1/chat/completions", "--rehearsal"], "--rehearsal is given without --stack"),
        (["--url", "https://x/v1/chat/completions", "--key-file", "/no/file"], "/no/file"),
        (["--stack", STACK, "--rehearsal", "--kibana-url", "https://k"], "--kibana-url is given without"),
    ],
)
def test_bad_input_is_one_clear_error(outputs: Mapping[str, Any], arguments: list[str], message: str) -> None:
    result = invoke("diagnose", *arguments)
    assert result.exit_code == 2
    assert message in result.output

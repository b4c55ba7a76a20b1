"""The hand-off for the Elastic admin: as reviewed, without the key, and every command in it runs as written."""

import base64
import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from scripts.cli.handoff import command as handoff
from scripts.lib.verification import generation
from tests.support import elastic_schemas as schemas
from tests.support.commands import invoke
from tests.support.program import ROOT, key_of
from tests.support.pulumi_stub import PulumiStub
from tests.support.verify_server import KEY, MODEL, issue, new_authority, serving

Outputs = Callable[..., dict[str, Any]]
CA = new_authority()
NEEDS_ELASTIC = "# needs Elastic"
GOOD: dict[str, Any] = {
    "connectorUrl": "https://llm.example.com/v1/chat/completions",
    "connectorApiKey": KEY,
    "model": "acme/Model",
    "servedModelName": MODEL,
    "nativeFunctionCalling": True,
    "maxModelLen": 131072,
    "_internal": {"limits": {"maxConcurrentRequests": 128, "maxRequestsPerMinute": 1200, "maxBodyMib": 32}},
    "caCertificate": CA.pem,
}


@pytest.fixture
def hand_off(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    """Function that runs the command on a stack `prod` with these outputs; the key shows only on request."""
    pulumi = PulumiStub(tmp_path_factory.mktemp("stub") / "bin")

    def run(*arguments: str, outputs: dict[str, Any] | None = None, stack: str = "prod") -> Result:
        pulumi.answers(GOOD if outputs is None else outputs)
        result = invoke("handoff", "--stack", stack, *arguments, env={"PATH": pulumi.path})
        assert not result.exception or isinstance(result.exception, SystemExit)
        assert "--show-key" in arguments or KEY not in result.output
        return result

    return run


@pytest.fixture
def written(hand_off: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """Function that returns the document for a stack with some outputs replaced."""

    def text(**outputs: Any) -> str:
        assert hand_off("--output", str(tmp_path), outputs=GOOD | outputs).exit_code == 0
        return (tmp_path / "handoff.md").read_text()

    return text


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", document)


@pytest.mark.parametrize("base", ["local", "prod"])
def test_the_document_is_as_reviewed(
    base: str, outputs_of: Outputs, golden: Callable[[str, str], None], tmp_path: Path, hand_off: Callable[..., Result]
) -> None:
    outputs = outputs_of(base)
    assert hand_off("--output", str(tmp_path), outputs=outputs, stack=base).exit_code == 0
    text = (tmp_path / "handoff.md").read_text()
    assert key_of("key-v1") not in text
    golden(f"elastic/{base}-handoff.md", text.replace(str(tmp_path), f"handoff/{base}"))


def test_the_key_is_in_its_own_file_alone(hand_off: Callable[..., Result], tmp_path: Path) -> None:
    directory = tmp_path / "new" / "directory"
    result = hand_off("--output", str(directory))
    assert result.exit_code == 0
    assert {path.name: KEY in path.read_text() for path in directory.iterdir()} == {
        "handoff.md": False,
        "ca.pem": False,
        "connector-api-key": True,
    }
    assert (directory / "connector-api-key").read_text() == f"{KEY}\n"
    assert (directory / "connector-api-key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "ca.pem").read_text() == CA.pem
    assert f"wrote {directory}/handoff.md" in result.stdout


def test_a_file_that_others_may_read_is_not_written_over_but_replaced(
    hand_off: Callable[..., Result], tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    other.write_text("mine")
    key_file = tmp_path / "connector-api-key"
    key_file.write_text("old")
    key_file.chmod(0o644)
    before = key_file.open()
    assert hand_off("--output", str(tmp_path)).exit_code == 0
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert before.read() == "old"  # a reader that has the old file open sees no key
    key_file.unlink()
    key_file.symlink_to(other)
    assert hand_off("--output", str(tmp_path)).exit_code == 0
    assert not key_file.is_symlink()
    assert other.read_text() == "mine"


def test_a_second_time_changes_nothing(hand_off: Callable[..., Result], tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        shown = hand_off("--output", str(tmp_path)).output
        runs.append((shown, {path.name: path.read_text() for path in tmp_path.iterdir()}))
    assert runs[0] == runs[1]


def test_the_key_is_printed_when_it_is_asked_for(hand_off: Callable[..., Result], tmp_path: Path) -> None:
    assert f"key: {KEY}\n" in hand_off("--output", str(tmp_path), "--show-key").stdout


def test_by_default_it_goes_where_git_does_not_look(
    hand_off: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "PROJECT", tmp_path)
    assert hand_off(stack="acme/elastic-vllm/prod").exit_code == 0
    text = (tmp_path / "handoff" / "prod" / "handoff.md").read_text()
    assert "--key-file handoff/prod/connector-api-key" in text
    ignored = subprocess.run(["git", "check-ignore", "-q", "handoff/prod/connector-api-key"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (
            {**GOOD, "_internal": {"parked": True}},
            "it is parked, so nothing answers\n  fix: pulumi config set parked false",
        ),
        ({}, "it has no outputs\n  fix: bring it up: pulumi up --stack prod"),
        ({"model": "x"}, "it has no output connectorUrl\n  fix: bring it up with this version"),
        ({name: value for name, value in GOOD.items() if name != "maxModelLen"}, "it has no output maxModelLen"),
        ({**GOOD, "connectorApiKey": ""}, "it has no output connectorApiKey"),
        ({**GOOD, "connectorApiKey": "short"}, "its key must be at least 16"),
        ({**GOOD, "connectorUrl": "https://llm.example.com"}, "its url must be https://HOST"),
        ({**GOOD, "caCertificate": "none"}, "its ca_certificate must be a certificate in PEM"),
    ],
)
def test_a_stack_that_can_not_be_handed_over_is_refused_with_its_fix(
    outputs: dict[str, Any], words: str, hand_off: Callable[..., Result], tmp_path: Path
) -> None:
    result = hand_off("--output", str(tmp_path / "new"), outputs=outputs)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)
    assert words in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_directory_that_can_not_be_written_is_refused_with_its_fix(
    hand_off: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = hand_off("--output", str(tmp_path / "file"))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)
    assert "give a directory that can be written" in result.stderr


# Its contents


def test_serverless_can_not_trust_a_private_ca(written: Callable[..., str]) -> None:
    document = written()
    assert "| Serverless | **none**: it trusts no private CA." in document
    assert "| Elastic Cloud Hosted, 9.4 or newer | **B**, after 3a | nothing |" in document
    assert "| self-managed, ECE or ECK, 9.4 or newer | **A**, after 3b; or **B**, after 3a; or **C**" in document


def test_a_certificate_that_everyone_trusts_opens_every_way(written: Callable[..., str], tmp_path: Path) -> None:
    document = written(caCertificate="")
    assert "| Serverless | **A** or **B** | nothing |" in document
    assert not [word for word in ("--cacert", "--ca ", "ca.pem", "3b", "keytool", "customHost:") if word in document]
    assert not (tmp_path / "ca.pem").exists()


@pytest.mark.parametrize(
    ("host", "private"), [("10.0.0.5", True), ("127.0.0.1", True), ("8.8.8.8", False), ("llm.example.com", False)]
)
def test_elastic_cloud_does_not_reach_a_private_address(host: str, private: bool, written: Callable[..., str]) -> None:
    document = written(connectorUrl=f"https://{host}:8443/v1/chat/completions")
    assert (f"**`{host}` is no public address.**" in document) is private
    assert f"Allow TCP port 8443 to `{host}`" in document


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (0, "- Context: not known."),
        (63_999, "- **Context: 63,999 tokens, question and answer together. That is too small"),
        (64_000, "- Context: 64,000 tokens, question and answer together. Elastic's"),
    ],
)
def test_it_shows_whether_the_context_is_enough(tokens: int, words: str, written: Callable[..., str]) -> None:
    assert words in written(maxModelLen=tokens)


def test_a_model_without_tools_is_not_asked_for_them(written: Callable[..., str]) -> None:
    document = written(nativeFunctionCalling=False)
    assert "--no-tools" in document
    assert '"enableNativeFunctionCalling": false' in document
    assert "system prompt" not in document


def test_what_a_model_of_the_users_own_catalogue_refuses_is_in_the_document(written: Callable[..., str]) -> None:
    refuses = {"stream-tool-result": "it forgets its first tool call"}
    assert "it forgets its first tool call." in written(_internal={**GOOD["_internal"], "refuses": refuses})
    assert "it forgets" not in written()


VERSIONS = ["8.19.0", "9.1.3", "9.2.0", "9.4.1", "9.6.0", "serverless"]


@pytest.mark.parametrize("version", VERSIONS)
def test_for_a_known_elastic_the_document_has_its_ways_bodies_and_limits_alone(
    version: str, written: Callable[..., str], golden: Callable[[str, str], None]
) -> None:
    deployment = "serverless" if version == "serverless" else "self-managed"
    about = {**GOOD["_internal"], "elasticVersion": version, "elasticDeployment": deployment}
    document = written(_internal=about, caCertificate="")
    (created,) = (block for block in blocks(document, "bash") if "-X POST" in block and "connector_type_id" in block)
    body = json.loads(created.partition("<<EOF\n")[2].removesuffix("EOF\n").replace("${ELASTIC_VLLM_KEY}", KEY))
    assert schemas.problems(schemas.connector(version), body) == []
    tables = "\n".join(line for line in document.splitlines() if line.startswith("|"))
    golden(f"elastic/handoff-tables-{'-'.join(version.split('.')[:2])}.md", f"{tables}\n")
    assert ("_inference" in document) is (version in {"9.4.1", "9.6.0", "serverless"})
    assert ("### C." in document) is (deployment == "self-managed")
    assert ("inferenceChatModelDisabled" in document) is (version in {"8.19.0", "9.1.3"})


def test_elastic_cloud_hosted_gets_no_setting_that_it_would_not_save(written: Callable[..., str]) -> None:
    document = written(_internal={**GOOD["_internal"], "elasticDeployment": "hosted"})
    (settings,) = blocks(document, "yaml")
    allowed = {"responseTimeout", "maxResponseContentLength", "customHostSettings"}
    assert {key.removeprefix("xpack.actions.") for key in yaml.safe_load(settings)} == allowed
    assert "self-managed, ECE or ECK" not in document


def test_an_inference_endpoint_is_not_offered_to_a_model_without_tools(written: Callable[..., str]) -> None:
    document = written(nativeFunctionCalling=False, caCertificate="")
    assert "_inference/chat_completion" not in document
    assert "always sends native tool calls, which this model does not accept" in document
    assert "| Serverless | **B** | nothing |" in document


def test_kibana_accepts_the_blocks_for_its_settings(written: Callable[..., str]) -> None:
    settings, security, preconfigured = blocks(written(), "yaml")
    assert schemas.kibana_yml_problems(settings) == []
    assert schemas.kibana_yml_problems(settings + security + preconfigured) == []
    # Kibana replaces these with variables of its environment.
    assert "apiKey: ${ELASTIC_VLLM_KEY}\n" in preconfigured


# Its commands


@contextmanager
def elastic() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a stand-in for Kibana and Elasticsearch, and yield its address and the requests that arrived."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(text) if text else None
            requests.append({"to": f"{self.command} {self.path}", "headers": self.headers, "body": body})
            self.send_response(200)
            self.end_headers()

        do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the library's names

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def run_bash(commands: list[str], directory: Path, tmp_path: Path, **environment: str) -> tuple[list[str], str]:
    """Run the blocks in one shell, and return the output of each and the command lines of curl."""
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/arguments\nexec {_which("curl")} "$@"\n')
    curl.chmod(0o755)
    script = "\necho ---\n".join(commands)
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("---\n"), (tmp_path / "arguments").read_text()


def _which(program: str) -> str:
    return subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()


def test_every_command_is_run_by_a_test_or_marked(written: Callable[..., str]) -> None:
    document = written()
    commands = blocks(document, "bash")
    plain = [command.split()[0].partition("=")[0] for command in commands if not command.startswith(NEEDS_ELASTIC)]
    assert plain == ["ELASTIC_VLLM_KEY", "curl", "curl", "curl", "scripts/elastic-vllm"]
    assert len(commands) == len(plain) + 10
    assert len(re.findall(r"(?m)^```\w+$", document)) == len(commands) + 3  # and three blocks of YAML


def test_the_commands_for_the_endpoint_run_as_written(
    hand_off: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "STREAM_PAUSES", (0,))
    directory = tmp_path / "handoff"
    with serving(issue(CA, tmp_path / "server.pem")) as gateway:
        assert hand_off("--output", str(directory), outputs=GOOD | {"connectorUrl": gateway.url}).exit_code == 0
        document = (directory / "handoff.md").read_text()
        *commands, verified = [c for c in blocks(document, "bash") if not c.startswith(NEEDS_ELASTIC)]
        (_, health, models, chat), arguments = run_bash(commands, directory, tmp_path)
        program, command, *options = shlex.split(verified.replace("\\\n", ""))
        checks = invoke(command, *options)
    assert json.loads(health) == {"status": "ok"}
    assert [model["id"] for model in json.loads(models)["data"]] == [MODEL]
    assert json.loads(chat)["choices"][0]["message"]["content"] == "Hello."
    assert KEY not in arguments
    assert program == "scripts/elastic-vllm"
    assert checks.exit_code == 0, checks.output


CLIENTS = {"kibana": {"certificate": "certificate of kibana\n", "privateKey": "private key of kibana\n"}}


def test_with_client_certificates_a_connector_is_the_only_way(hand_off: Callable[..., Result], tmp_path: Path) -> None:
    directory = tmp_path / "handoff"
    assert hand_off("--output", str(directory), outputs=GOOD | {"clientCertificates": CLIENTS}).exit_code == 0
    document = (directory / "handoff.md").read_text()
    files = {name: directory / f"client-{name}.pem" for name in ("certificate", "key")}
    assert [file.read_text() for file in files.values()] == list(CLIENTS["kibana"].values())
    assert {file.stat().st_mode & 0o777 for file in files.values()} == {0o600}
    assert not [pem for pem in CLIENTS["kibana"].values() if pem in document]
    assert "_inference/chat_completion" not in document
    commands = blocks(document, "bash")
    sending = [c for c in commands if "api/actions" in c]
    encoding = [c for c in commands if "base64" in c.split("\n")[0]]
    with elastic() as (address, requests):
        urls = {"KIBANA_URL": address, "KIBANA_API_KEY": "a2liYW5h"}
        run_bash([commands[0], *encoding, *sending], directory, tmp_path, **urls)
    created, updated = (request["body"] for request in requests if request["body"] and "secrets" in request["body"])
    assert schemas.problems(schemas.CONNECTOR, created) == []
    assert schemas.problems(schemas.CONNECTOR_UPDATE, updated) == []
    sent = [
        base64.b64decode(created["secrets"][f"{name}Data"]).decode() for name in ("certificate", "privateKey", "ca")
    ]
    assert sent == [*CLIENTS["kibana"].values(), CA.pem]
    _settings, _security, preconfigured = blocks(document, "yaml")
    assert "certificateData: ${ELASTIC_VLLM_CERTIFICATE_BASE64}" in preconfigured
    assert "caData: ${ELASTIC_VLLM_CA_BASE64}" in preconfigured


def test_what_up_has_created_need_not_be_created_again(written: Callable[..., str]) -> None:
    assert "has already created" not in written()
    document = written(kibanaConnectorId="my-id", inferenceEndpointId="elastic-vllm-prod")
    assert "has already created the connector (B): `my-id`.**" in document
    assert "has already created the inference endpoint (A): `elastic-vllm-prod`.**" in document


def test_without_an_alias_the_model_itself_is_asked_for(written: Callable[..., str]) -> None:
    document = written(servedModelName="")
    assert "| Model to ask for | `acme/Model` |" in document
    assert "delete A and create it\n  again" in document


def test_the_commands_for_elastic_send_what_elastic_accepts(hand_off: Callable[..., Result], tmp_path: Path) -> None:
    directory = tmp_path / "handoff"
    assert hand_off("--output", str(directory)).exit_code == 0
    commands = blocks((directory / "handoff.md").read_text(), "bash")
    # keytool belongs to Elasticsearch; Elastic's addresses and keys come from the test.
    sending = [c for c in commands if c.startswith(NEEDS_ELASTIC) and "curl" in c and "keytool" not in c]
    secrets = {"KIBANA_API_KEY": "a2liYW5h", "ELASTICSEARCH_API_KEY": "ZWxhc3RpYw=="}
    with elastic() as (address, requests):
        urls = {"KIBANA_URL": f"{address}/s/ai", "ELASTICSEARCH_URL": address}
        _, arguments = run_bash([commands[0], *sending], directory, tmp_path, **urls, **secrets)
    connector = "/s/ai/api/actions/connector/52d88edd-46ca-5386-96f1-86ea429a9bad"
    inference = "/_inference/chat_completion/elastic-vllm-prod"
    assert [request["to"] for request in requests] == [
        f"PUT {inference}?timeout=120s",
        f"POST {inference}/_stream",
        f"POST {connector}",
        f"POST {connector}/_execute",
        f"PUT {inference}/_update",
        f"PUT {connector}",
        f"DELETE {inference}",
        f"DELETE {connector}",
    ]
    created, chat, connected, tested, new_key, updated = (request["body"] for request in requests[:6])
    assert schemas.problems(schemas.INFERENCE_ENDPOINT, created) == []
    assert schemas.problems(schemas.INFERENCE_CHAT, chat) == []
    assert schemas.problems(schemas.CONNECTOR, connected) == []
    assert schemas.connector_test_problems(tested) == []
    assert schemas.problems(schemas.INFERENCE_UPDATE, new_key) == []
    assert schemas.problems(schemas.CONNECTOR_UPDATE, updated) == []
    keys = [created["service_settings"], new_key["service_settings"], connected["secrets"], updated["secrets"]]
    assert [key for each in keys for key in each.values() if key == KEY] == [KEY] * 4
    for request in requests:
        headers, of_kibana = request["headers"], "/api/actions" in request["to"]
        key = secrets["KIBANA_API_KEY" if of_kibana else "ELASTICSEARCH_API_KEY"]
        assert (headers["Authorization"], headers["kbn-xsrf"]) == (f"ApiKey {key}", "true" if of_kibana else None)
        assert request["body"] is None or headers["Content-Type"] == "application/json"
    assert not [secret for secret in (KEY, *secrets.values()) if secret in arguments]

"""An endpoint that keeps its promises passes; one broken promise fails its own checks and no other."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import Result

import scripts.cli.verify as cli
from components.catalogue.models import Catalogue, Model
from components.elastic.corpus import all_forms
from scripts.cli.verify import Endpoint, InvalidEndpointError, Report, format_result, verify
from scripts.lib.verification import corpus, generation, probe
from scripts.lib.verification.given import KEY_VARIABLE
from scripts.lib.verification.probe import Cost
from tests.support.commands import invoke
from tests.support.pulumi_stub import PulumiStub
from tests.support.verify_server import KEY, MODEL, Authority, Gateway, issue, new_authority, serving

TOOLS = {f"tool-{choice}{kind}" for choice in ("auto", "required", "named") for kind in ("", "-stream")}
STREAMED_TOOLS = {name for name in TOOLS if name.endswith("-stream")}
FORMS = {form.name for form in all_forms()}
REFUSED = {form.name for form in all_forms() if form.refused}
STREAMED_FORMS = {form.name for form in all_forms() if form.body["stream"]} - REFUSED
WITH_TOOLS = {form.name for form in all_forms() if form.has_tools} | TOOLS
CALLING = {form.name for form in all_forms() if form.body.get("tools")} | TOOLS
DEMANDED = {form.name for form in all_forms() if str(form.body.get("tool_choice", "auto")) not in {"auto", "none"}}
WITH_CALLS = {form.name for form in all_forms() if any("tool_calls" in m for m in form.body["messages"])}
SHORT_IDS = WITH_CALLS - {"iterator-tool-result"}
GENERATING = {"chat", "chat-stream"} | TOOLS | FORMS
GATEWAY = {"certificate", "healthz", "no-key", "wrong-key", "error-shape", "closed-paths", "methods"}
ALL = GATEWAY | GENERATING | {"models"}

# Fault of the server, the checks that fail, and the message of the first.
FAULTS: list[tuple[str, set[str], str]] = [
    ("", set(), ""),
    ("reasoning-only", set(), ""),
    ("buffered-at-first", set(), ""),
    ("no-auth", {"no-key", "wrong-key", "error-shape"}, "GET /v1/models answered 200, POST "),
    ("key-in-any-case", {"wrong-key"}, "with the key in upper case, not 401"),
    ("key-is-a-prefix", {"wrong-key", "error-shape"}, "with the key with the last digit changed, not 401"),
    ("key-refused", {"models"} | GENERATING, "the key was refused (HTTP 401: [31mwrong key Bearer <key>): pass"),
    ("healthz-guarded", {"healthz"}, "GET /healthz answered 401 (no key): it must answer 200"),
    ("html-errors", {"error-shape"}, "GET /v1/models answered 401 with text/html, not application/json"),
    ("errors-without-param", {"error-shape"}, "a body other than"),
    ("errors-of-other-types", {"error-shape"}, "a wrong message in its error"),
    ("model-not-listed", {"models"}, f"model '{MODEL}' is not listed, only other-model: pass one"),
    ("empty-answer", {"chat", "chat-stream"}, "the answer is empty"),
    ("buffered", {"chat-stream"}, "40 events came in 1 piece, first event after 0."),
    ("buffered-4k", {"chat-stream"}, "40 events came in 3 pieces, first event after 0."),
    ("one-event", {"chat-stream"}, "the whole answer came as one event"),
    ("no-finish-reason", {"chat-stream"} | STREAMED_TOOLS | STREAMED_FORMS, "the stream ended without a finish reason"),
    ("stream-cut", {"chat-stream"} | STREAMED_TOOLS | STREAMED_FORMS, "the connection broke off"),
    ("no-tool-calls", TOOLS | DEMANDED, "no tool call but ''"),
    ("other-tool", CALLING, "a call of 'get_time', not of 'get_weather': check vLLM's --tool-call-parser"),
    ("call-without-id", CALLING, "a tool call without an id"),
    ("arguments-not-json", CALLING, """are not JSON but '{"city": "Paris"'"""),
    ("arguments-outside-schema", TOOLS, "'kelvin' is not one of ['celsius', 'fahrenheit']"),
    ("short-call-ids", SHORT_IDS, "after its first tool call: HTTP 400: Tool call id was 5c21f0 but must be"),
    ("vllm-down", GENERATING, "vLLM does not answer (HTTP 503: the model is loading <key>): is it still"),
    ("chat-is-html", GENERATING, "the answer is not in OpenAI's shape"),
    ("connection-cut", GENERATING, "the connection broke off"),
    ("metrics-open", {"closed-paths"}, "GET /metrics answered 200 with the key, not 404: Nginx must"),
    ("get-chat", {"methods"}, "GET /v1/chat/completions answered 200 with the key, not 405"),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "STREAM_PAUSES", (0,))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture(scope="module")
def shared_gateway(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving(issue(authority, tmp_path_factory.mktemp("server") / "server.pem")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Gateway:
    shared_gateway.fault = ""
    return shared_gateway


def run(*arguments: str, given: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> Result:
    """Run the command with `given` on stdin; the key must show nowhere."""
    stdin = None if given is None else json.dumps(given)
    result = invoke("verify", *arguments, input=stdin, env=environment)
    assert KEY[:-1].lower() not in result.output.lower()
    assert not result.exception or isinstance(result.exception, SystemExit)
    return result


def outputs(url: str, authority: Authority | None) -> dict[str, Any]:
    ca = authority.pem if authority else None
    return {"connectorUrl": url, "connectorApiKey": KEY, "model": MODEL, "caCertificate": ca}


def failures(url: str, authority: Authority | None, *options: str) -> dict[str, str]:
    """Run the command and return the details of the checks that failed."""
    result = run("--outputs", "-", "--json", *options, given=outputs(url, authority))
    document = json.loads(result.stdout)
    failed = {check["name"]: check["detail"] for check in document["checks"] if not check["ok"]}
    assert {check["name"] for check in document["checks"]} == (ALL - WITH_TOOLS if options else ALL)
    assert document["ok"] is not bool(failed)
    assert result.exit_code == (1 if failed else 0)
    return failed


@pytest.mark.parametrize(("fault", "checks", "words"), FAULTS, ids=[fault or "none" for fault, _, _ in FAULTS])
def test_a_fault_fails_its_own_checks_and_no_other(
    fault: str, checks: set[str], words: str, gateway: Gateway, authority: Authority
) -> None:
    gateway.fault = fault
    # A fault of Nginx alone can't affect tool calls, which take most of the time.
    options = ["--no-tools"] if checks and checks <= GATEWAY else []
    failed = failures(gateway.url, authority, *options)
    assert set(failed) == checks
    assert words in next(iter(failed.values()), "")


def test_a_model_that_is_not_served_fails_with_those_that_are(gateway: Gateway, authority: Authority) -> None:
    endpoint = Endpoint(url=gateway.url, key=KEY, model="other", ca_certificate=authority.pem)
    failed = {result.name: result.detail for result in verify(endpoint).results if not result.ok}
    assert set(failed) == ({"models"} | GENERATING) - {"run-no-model"}
    assert f"only {MODEL}:" in failed["chat"]


def test_a_silent_model_is_waited_for_once(
    gateway: Gateway, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "GENERATION_SECONDS", 0.1)
    gateway.fault = "vllm-stuck"
    failed = failures(gateway.url, authority)
    assert set(failed) == GENERATING
    assert failed["chat"].startswith("no answer within the time limit: ")
    assert {failed[name] for name in GENERATING - {"chat"}} == {"not tried: no answer within the time limit"}


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ({"days": -3}, "certificate expired on 20"),
        ({"names": [x509.DNSName("llm.example")]}, "certificate not valid for 127.0.0.1, only for llm.example"),
    ],
)
def test_a_bad_certificate_fails_everything_at_once(
    certificate: dict[str, Any], words: str, authority: Authority, tmp_path: Path
) -> None:
    with serving(issue(authority, tmp_path / "server.pem", **certificate)) as gateway:
        assert_nothing_tried(failures(gateway.url, authority), words)


@pytest.mark.parametrize("other", [None, new_authority("Other CA"), new_authority()])
def test_another_ca_is_not_trusted(other: Authority | None, gateway: Gateway) -> None:
    words = "not signed by the given CA: pass the stack's caCertificate" if other else "that this system trusts"
    assert_nothing_tried(failures(gateway.url, other), words)


def test_a_refused_connection_fails_everything_at_once(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = f"cannot connect to 127.0.0.1:{port}: connection refused: is Nginx running"
    assert_nothing_tried(failures(f"https://127.0.0.1:{port}/v1/chat/completions", authority), words)


def assert_nothing_tried(failed: dict[str, str], words: str) -> None:
    assert set(failed) == ALL
    assert words in failed["certificate"]
    assert all(failed[name].startswith("not tried: c") for name in ALL - {"certificate"})


def test_a_certificate_near_its_end_passes_with_a_warning(authority: Authority, tmp_path: Path) -> None:
    with serving(issue(authority, tmp_path / "server.pem", days=12.5)) as gateway:
        endpoint = Endpoint(url=gateway.url, key=KEY, model=MODEL, ca_certificate=authority.pem)
        results = verify(replace(endpoint, supports_tools=False)).results
    assert results[0].ok
    assert "expires in 12 days: renew it" in results[0].detail


def test_results_are_reported_as_they_come() -> None:
    progress: list[str] = []
    report = verify(
        Endpoint(url="https://127.0.0.1:1/v1/chat/completions", key=KEY, model=MODEL),
        on_start=progress.append,
        on_result=lambda result: progress.append(format_result(result)),
    )
    assert progress[::2] == [result.name for result in report.results]
    assert progress[1::2] == [format_result(result) for result in report.results]


def test_lines_have_verdict_name_detail_and_seconds(gateway: Gateway, authority: Authority) -> None:
    gateway.fault = "metrics-open"
    result = run("--outputs", "-", given=outputs(gateway.url, authority))
    lines = result.stdout.splitlines()
    assert len(lines) == len(ALL) + 2
    assert any(re.match(r"ok    chat +answered 61 tokens \(0\.", line) for line in lines)
    assert any(re.match(r"limit stream-empty-tools +an Agent Builder agent that has no tool", line) for line in lines)
    assert any(re.match(r"FAIL  closed-paths +GET /metrics answered 200", line) for line in lines)
    assert lines[-1] == f"1 of {len(ALL)} checks failed"
    assert result.exit_code == 1


def test_tools_are_left_out_for_a_model_without_them(gateway: Gateway, authority: Authority) -> None:
    gateway.fault = "no-tool-calls"
    result = run("--outputs", "-", "--no-tools", given=outputs(gateway.url, authority))
    assert result.exit_code == 0
    assert result.stdout.endswith(f"all {len(ALL - WITH_TOOLS)} checks passed\n")


def test_a_refusal_that_only_the_users_own_catalogue_lists_is_a_limit(gateway: Gateway, authority: Authority) -> None:
    gateway.fault = "short-call-ids"
    given = outputs(gateway.url, authority)
    assert run("--outputs", "-", given=given).exit_code == 1
    refuses = dict.fromkeys(SHORT_IDS, "native function calling is off for it")
    result = run("--outputs", "-", given=given | {"_internal": {"refuses": refuses}})
    assert result.exit_code == 0
    assert f"{len(SHORT_IDS | REFUSED)} of them with a known limit" in result.stdout


def test_a_refusal_that_the_catalogue_lists_is_a_limit_with_what_follows(
    gateway: Gateway, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Model(name=MODEL, weights_gb=1, refuses=dict.fromkeys(SHORT_IDS, "native function calling is off for it"))
    catalogue = Catalogue(models={MODEL: served}, parser_families={})
    monkeypatch.setattr(corpus, "load_catalogue", lambda: catalogue)
    gateway.fault = "short-call-ids"
    result = run("--outputs", "-", given=outputs(gateway.url, authority))
    assert result.exit_code == 0
    assert re.search(r"^limit stream-tool-result .*: native function calling is off for it \(", result.stdout, re.M)
    assert f"{len(SHORT_IDS | REFUSED)} of them with a known limit" in result.stdout
    gateway.fault = ""
    assert "although it is listed as refused" in run("--outputs", "-", given=outputs(gateway.url, authority)).stdout


def test_the_quick_form_sends_what_features_need_and_tells_its_cost(gateway: Gateway, authority: Authority) -> None:
    result = run("--outputs", "-", "--quick", "--json", given=outputs(gateway.url, authority))
    document = json.loads(result.stdout)
    needed = {form.name for form in all_forms() if form.needed}
    assert {check["name"] for check in document["checks"]} == GATEWAY | {"models", "chat"} | needed
    counted = [form for form in all_forms() if form.needed and (not form.body["stream"] or form.way != "connector")]
    cost = document["cost"]
    assert cost["requests"] == len(needed) + 1
    assert cost["measured_tokens"] == 70 * (len(counted) + 1)
    # Its streams report nothing: their size stands for them, and the limit that they were sent with.
    streams = [form.request(MODEL, 8) for form in all_forms() if form.needed and form not in counted]
    assert cost["bounded_tokens"] == sum(len(json.dumps(request)) + 8 for request in streams)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Endpoint]:
    """Endpoints that the command would have checked."""
    endpoints: list[Endpoint] = []

    def record(endpoint: Endpoint, **_options: object) -> Report:
        endpoints.append(endpoint)
        return Report([], Cost())

    monkeypatch.setattr(cli, "verify", record)
    return endpoints


@pytest.mark.parametrize(("encoding", "newline"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")], ids=["Unix", "Windows"])
def test_a_url_needs_only_model_and_key(
    encoding: str, newline: str, asked: list[Endpoint], authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n", encoding=encoding, newline=newline)
    (tmp_path / "ca.pem").write_text(authority.pem, encoding=encoding, newline=newline)
    options = ("--url", GOOD["connectorUrl"], "--model", MODEL)
    assert run(*options, "--ca", str(tmp_path / "ca.pem"), "--key-file", str(tmp_path / "key")).exit_code == 0
    assert run(*options, environment={KEY_VARIABLE: KEY}).exit_code == 0
    plain = Endpoint(url=GOOD["connectorUrl"], key=KEY, model=MODEL)
    assert asked == [replace(plain, ca_certificate=authority.pem), plain]


def test_options_override_outputs_and_the_environment_does_not(asked: list[Endpoint]) -> None:
    result = run("--outputs", "-", "--model", "alias", given=GOOD, environment={KEY_VARIABLE: "e" * 64})
    assert result.exit_code == 0
    assert (asked[0].model, asked[0].key, asked[0].url) == ("alias", KEY, GOOD["connectorUrl"])


@pytest.mark.parametrize(("given", "tools"), [({}, True), ({"nativeFunctionCalling": False}, False)])
def test_outputs_show_whether_the_model_has_tools(given: dict[str, bool], tools: bool, asked: list[Endpoint]) -> None:
    assert run("--outputs", "-", given=GOOD | given).exit_code == 0
    assert asked[0].supports_tools is tools


def test_a_stack_is_asked_of_pulumi(asked: list[Endpoint], tmp_path: Path) -> None:
    pulumi = PulumiStub(tmp_path / "pulumi")
    pulumi.answers(GOOD)
    assert run("--stack", "prod", environment={"PATH": pulumi.path}).exit_code == 0
    assert pulumi.asked == ["stack output --json --show-secrets --stack prod --non-interactive"]
    assert [endpoint.model for endpoint in asked] == [MODEL]


GOOD: dict[str, Any] = outputs("https://llm.example/v1/chat/completions", None)


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        ([], None, "not given by one of --url, --outputs and --stack"),
        (["--url", GOOD["connectorUrl"], "--stack", "dev"], None, "not given by one of --url, --outputs and --stack"),
        (["--outputs", "-", "--rehearsal"], GOOD, "--rehearsal is given without --stack"),
        (["--url", GOOD["connectorUrl"]], None, "no key is given\n  fix: pass --key-file FILE or set ELASTIC_VLLM_KEY"),
        (["--outputs", "-", "--key-file", "/absent"], GOOD, "--key-file /absent: No such file"),
        (["--outputs", "-", "--ca", "/dev/null"], GOOD, "--ca (caCertificate of the outputs) must be a cert"),
        (["--outputs", "-", "--ca", __file__], GOOD, "--ca (caCertificate of the outputs) must be a cert"),
        (["--outputs", "/absent"], None, "--outputs /absent: No such file"),
        (["--outputs", "-"], [], "--outputs -: the outputs are not a JSON object"),
        (["--outputs", "-"], {"connectorApiKey": KEY}, "--url (connectorUrl of the outputs) is missing"),
        (["--outputs", "-"], GOOD | {"model": ""}, "--model (model of the outputs) is missing"),
        (["--outputs", "-"], GOOD | {"model": 3}, "--model (model of the outputs) is not a string"),
        (["--outputs", "-"], GOOD | {"connectorApiKey": "[secret]"}, "is hidden\n  fix: add --show-secrets"),
        (["--outputs", "-"], GOOD | {"connectorApiKey": "short"}, "must be at least 16 visible ASCII"),
        (["--outputs", "-"], GOOD | {"connectorUrl": "http://a/v1/chat/completions"}, "must be https://HOST"),
        (["--outputs", "-"], GOOD | {"connectorUrl": "https://a/v1"}, "--url (connectorUrl of the outputs) must"),
        (["--outputs", "-"], GOOD | {"connectorUrl": "https://a:99999/v1"}, "is not a URL: Port out of range"),
    ],
)
def test_bad_input_names_the_option_and_exits_2(arguments: list[str], given: Any, words: str) -> None:
    result = run(*arguments, given=given, environment={KEY_VARIABLE: ""})
    assert words in result.stderr
    cause, fix = result.stderr.splitlines()
    assert cause.startswith("error: ")
    assert fix.startswith("  fix: ")
    assert result.stdout == ""
    assert result.exit_code == 2


def test_an_endpoint_does_not_show_its_key() -> None:
    endpoint = Endpoint(url=GOOD["connectorUrl"], key=KEY, model=MODEL)
    assert KEY not in repr(endpoint)
    assert endpoint.redact(f"a\x1b[0m {KEY.upper()}\n{KEY[:-1]}0") == "a[0m <key> <key>"


def test_a_url_may_have_a_prefix_or_an_ipv6_address_and_no_password() -> None:
    endpoint = Endpoint(url="https://[::1]:8443/llm/v1/chat/completions", key=KEY, model=MODEL)
    assert (endpoint.host, endpoint.port, endpoint.root) == ("::1", 8443, "https://[::1]:8443/llm")
    with pytest.raises(InvalidEndpointError):
        Endpoint(url=f"https://user:{KEY}@llm.example/v1/chat/completions", key=KEY, model=MODEL)

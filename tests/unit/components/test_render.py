"""Texts that reach the server: as reviewed (tests/golden), and well-formed for all values."""

import base64
import json
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components import render
from components.catalogue.models import Model, extended, load_catalogue
from components.render import FILES
from components.serving.gateway_errors import errors
from components.serving.nginx_config import CONTAINER_PORT, keys_conf, nginx_conf
from components.serving.vllm_process import SOCKET, entrypoint, needs_longer_ids, serve_arguments
from components.serving.vllm_server import VllmServerArgs
from tests.conftest import LIMITS
from tests.support.nginx_syntax import Directive, parse
from tests.support.program import ROOT, Program

Golden = Callable[[str, str], None]
ANY: Any = None
PROXIED = {
    "/v1/chat/completions": "http://vllm/v1/chat/completions",
    "/v1/models": "http://vllm/v1/models",
    "/healthz": "http://vllm/health",
}
# Text that a shell or a variable can hold: anything except NUL and halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def conf() -> Directive:
    return parse(nginx_conf([f"unix:{SOCKET}"], limits=LIMITS))


def locations(conf: Directive) -> dict[str, Directive]:
    return {" ".join(location.arguments): location for location in conf.all("location")}


def command_line(model: Model, gpu_count: int, **values: Any) -> list[str]:
    """Return vLLM's command line as the container runs it."""
    arguments: dict[str, Any] = {
        "alias": "elastic-llm",
        "gpu_count": gpu_count,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 0,
        "extra_args": (),
        "forms": (),
    }
    resources = dict.fromkeys(("host", "provider", "image", "weights", "weights_path", "gpus"), ANY)
    args = VllmServerArgs(model=model, **resources, **arguments | values)
    return [*entrypoint(args.extra_args, longer_ids=needs_longer_ids(args)), *serve_arguments(args)]


def test_nginx_conf_is_as_reviewed(golden: Golden) -> None:
    golden("nginx.conf", nginx_conf([f"unix:{SOCKET}"], limits=LIMITS))


def test_keys_conf_is_as_reviewed(golden: Golden) -> None:
    golden("keys.conf", keys_conf({"v2": "2" * 64, "v1": "1" * 64}))


def test_vllm_command_lines_are_as_reviewed(golden: Golden) -> None:
    lines = []
    catalogue = extended(load_catalogue(), ROOT / "scripts/lab/models.yaml")
    for model in catalogue.models.values():
        gpus = 0 if model.accelerator == "none" else 2
        lines.append(f"# {model.name} on {f'{gpus} GPUs' if gpus else 'CPU'}\n")
        words = [shlex.quote(word) for word in command_line(model, gpus)]
        lines.append(" ".join(words).replace(" --", "\n  --").replace("\n  --uds", " --uds") + "\n\n")
    golden("vllm-command-lines.txt", "".join(lines))


def test_the_variables_of_the_host_check_are_as_reviewed(golden: Golden, program_of: Callable[..., Program]) -> None:
    variables, common, _ = program_of("gpu").resources["host-check"].script.partition(render.script())
    assert common
    golden("host-check-variables.sh", variables)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_model_len": 65536}, ["--max-model-len", "65536"]),
        ({"gpu_memory_utilization": 0.85}, ["--gpu-memory-utilization", "0.85"]),
        ({"gpu_count": 4}, ["--tensor-parallel-size", "4"]),
        ({"alias": "assistant"}, ["assistant"]),
        ({"extra_args": ("--max-num-seqs=8",)}, ["--max-num-seqs=8"]),
    ],
)
def test_a_setting_adds_its_argument_and_nothing_else(values: dict[str, Any], expected: list[str]) -> None:
    model = load_catalogue().models["openai/gpt-oss-120b"]
    before, after = command_line(model, 2), command_line(model, **{"gpu_count": 2} | values)
    assert [word for word in after if word not in before or word in expected] == expected


@pytest.mark.parametrize("given_parser", [("--tool-call-parser", "hermes"), ("--tool-call-parser=hermes",)])
def test_a_users_own_parser_appears_once(given_parser: tuple[str, ...]) -> None:
    model = Model(name="acme/Own", weights_gb=1, tool_call_parser="hermes")
    line = command_line(model, 2, extra_args=given_parser)
    assert sum(word.startswith("--tool-call-parser") for word in line) == 1
    assert "--enable-auto-tool-choice" in line


def test_a_model_without_a_parser_is_served_without_tools() -> None:
    assert "--enable-auto-tool-choice" not in command_line(Model(name="acme/Own", weights_gb=1), 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=8))
@example(["'", '"', "$(id)", "`id`", "\\", "!!", "a\nb\n", "", "~", "-n"])
def test_a_script_gets_its_variables_unchanged(values: list[str]) -> None:
    names = [f"value_{index}" for index in range(len(values))]
    script = render.script(**dict(zip(names, values, strict=True)))
    script += "".join(f"printf '%s\\0' \"${name.upper()}\"\n" for name in names)
    output = subprocess.run(["bash", "-s"], input=script.encode(), check=True, stdout=subprocess.PIPE).stdout
    assert output.decode().split("\0")[:-1] == values


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z.-]+", fullmatch=True), TEXT))
def test_files_arrive_as_they_were(files: dict[str, str]) -> None:
    lines = render.files_as_lines(files).splitlines()
    assert {name: base64.b64decode(data).decode() for name, data in (line.split(" ") for line in lines)} == files


def test_a_template_without_a_value_is_an_error() -> None:
    with pytest.raises(Exception, match="'keys' is undefined"):
        render.template("nginx/nginx-keys.conf.j2")


@pytest.mark.parametrize("name", ["map", "rewrite", "alias", "try_files", "resolver", "stub_status", "autoindex"])
def test_nginx_does_without(name: str, conf: Directive) -> None:
    assert not conf.all(name)


def test_nginx_listens_on_nothing_but_the_tls_port(conf: Directive) -> None:
    assert [listen.arguments for listen in conf.all("listen")] == [[str(CONTAINER_PORT), "ssl", "default_server"]]


def test_no_location_is_a_pattern(conf: Directive) -> None:
    names = {name.partition(" ")[0] for name in locations(conf)}
    assert names == {"=", "/"}  # an exact path, or everything else


def test_only_the_allow_list_is_proxied_and_never_to_a_path_of_the_clients(conf: Directive) -> None:
    proxied = {name: location.own("proxy_pass") for name, location in locations(conf).items()}
    assert {name: urls for name, urls in proxied.items() if urls} == {
        f"= {path}": [[url]] for path, url in PROXIED.items()
    }
    assert len(conf.all("proxy_pass")) == len(PROXIED)


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/healthz", "GET")]
)
def test_another_method_is_405(path: str, method: str, conf: Directive) -> None:
    checks = {" ".join(check.arguments): check.own("return") for check in locations(conf)[f"= {path}"].all("if")}
    assert checks[f"($request_method != {method})"] == [["405"]]


@pytest.mark.parametrize("path", ["= /v1/chat/completions", "= /v1/models", "/"])
def test_the_key_is_asked_for_first(path: str, conf: Directive) -> None:
    first = locations(conf)[path].children[0]
    assert (first.name, " ".join(first.arguments)) == ("if", "($key_label = - )")
    assert first.own("return") == [["401"]]


def test_all_else_is_404(conf: Directive) -> None:
    assert locations(conf)["/"].own("return") == [["404"]]


@pytest.mark.parametrize("status", errors(LIMITS))
def test_a_refusal_is_json_in_openais_shape(status: int, conf: Directive) -> None:
    location = locations(conf)[f"= /_error/{status}"]
    error = errors(LIMITS)[status]
    ((returned, body),) = location.own("return")
    assert location.own("internal") == [[]]
    assert returned == str(status)
    assert json.loads(body) == {
        "error": {"message": error.message, "type": error.type, "param": None, "code": error.code}
    }
    assert "$" not in body  # Nginx would treat it as a variable


def test_every_status_that_nginx_gives_is_answered_as_json(conf: Directive) -> None:
    pages = {status: page[-1] for page in (p.arguments for p in conf.all("error_page")) for status in page[:-1]}
    given = {returned.arguments[0] for returned in conf.all("return")}
    by_itself = {"400", "413", "414", "494", "495", "496", "497", "500", "501", "502", "503", "504", "505"}
    assert (given | by_itself) <= set(pages)
    assert {page for page in pages.values() if f"= {page}" not in locations(conf)} == set()


def test_the_key_goes_no_further_than_nginx(conf: Directive) -> None:
    (server,) = conf.all("server_name")  # one server
    assert server
    headers = [header.arguments for header in conf.all("proxy_set_header")]
    assert ["Authorization", ""] in headers
    assert all("$http_" not in value and "Authorization" not in value for _, value in headers)
    # proxy_set_header in a location would replace them all.
    assert not [name for name, location in locations(conf).items() if location.all("proxy_set_header")]


def test_the_log_holds_no_prompt_no_query_and_no_key(conf: Directive) -> None:
    (log,) = conf.all("log_format")
    line = "".join(log.arguments[1:])
    for variable in ("$request ", "$request_uri", "$args", "$query_string", "$request_body", "$http_", "$arg_"):
        assert variable not in line + " "
    assert [log.arguments for log in conf.all("access_log")] == [["/dev/stdout", "audit"]]
    assert conf.own("error_log") == [["stderr", "warn"]]
    # A log line about vLLM would contain the query.
    proxied = [location for location in conf.all("location") if location.own("proxy_pass")]
    assert [location.own("error_log") for location in proxied] == [[["stderr", "emerg"]]] * len(PROXIED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proxy_buffering", "off"),
        ("proxy_request_buffering", "off"),
        ("proxy_send_timeout", "600s"),
        ("proxy_next_upstream", "off"),
        ("client_max_body_size", "32m"),
        ("server_tokens", "off"),
        ("proxy_http_version", "1.1"),
    ],
)
def test_nginx_is_set_to(name: str, value: str, conf: Directive) -> None:
    assert [directive.arguments for directive in conf.all(name)] == [[value]]


def test_silence_is_survived_but_does_not_count_as_health(conf: Directive) -> None:
    assert [directive.arguments for directive in conf.all("proxy_read_timeout")] == [["600s"], ["10s"]]


def test_every_answer_has_the_security_headers(conf: Directive) -> None:
    server = conf.children[-1].children[-1]
    assert server.name == "server"
    everywhere = server.own("add_header")
    assert {header[0] for header in everywhere} == {
        "Strict-Transport-Security",
        "X-Content-Type-Options",
        "X-Request-Id",
    }
    # add_header in a location replaces the server's.
    lost = [
        name
        for name, location in locations(conf).items()
        if location.own("add_header") and [h for h in everywhere if h not in location.own("add_header")]
    ]
    assert not lost


def test_nginx_writes_only_to_its_tmpfs(conf: Directive) -> None:
    written = [d for d in conf.walk() if d.name.endswith("_temp_path") or d.name == "pid"]
    assert len(written) == 6
    assert all(directive.arguments[0].startswith("/tmp/") for directive in written)


def test_metrics_are_on_a_socket_alone_and_nothing_else_is() -> None:
    (server,) = parse((FILES / "nginx/nginx-metrics.conf").read_text()).children
    assert server.own("listen") == [["unix:/run/elastic-vllm-metrics/nginx.sock"]]
    answered = {
        " ".join(place.arguments): {d.name for d in place.children} for place in server.children if place.children
    }
    assert answered.pop("= /stub_status") == {"stub_status"}
    assert "proxy_pass" in answered.pop("= /metrics")
    assert answered == {"/": {"return"}}
    assert server.all("proxy_pass")[0].arguments == ["http://vllm/metrics"]


def test_upstreams_may_be_many() -> None:
    (upstream,) = parse(nginx_conf(["unix:/run/a.sock", "10.0.0.5:8000"], limits=LIMITS)).all("upstream")
    assert upstream.own("server") == [["unix:/run/a.sock"], ["10.0.0.5:8000"]]


def test_a_key_sets_its_own_label() -> None:
    rules = parse(keys_conf({"v2": "b" * 64, "v1": "a" * 64})).children
    assert [(" ".join(rule.arguments), rule.own("set")) for rule in rules] == [
        (f"($bearer_token = {key * 64} )", [["$key_label", label]]) for label, key in (("v2", "b"), ("v1", "a"))
    ]

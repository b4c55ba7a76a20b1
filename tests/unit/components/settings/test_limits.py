"""Limits: each setting reaches the directive that enforces it, and each refusal names the limit."""

from dataclasses import replace

import pytest

from components.serving.gateway_errors import errors, too_many_at_once
from components.serving.nginx_config import nginx_conf
from components.settings.limits import Limits
from tests.conftest import LIMITS
from tests.support.nginx_syntax import Directive, parse

KEYED = ("= /v1/chat/completions", "= /v1/models")


def conf(limits: Limits = LIMITS) -> Directive:
    return parse(nginx_conf(["unix:/x"], limits=limits))


def location(conf: Directive, name: str) -> Directive:
    (found,) = [each for each in conf.all("location") if " ".join(each.arguments) == name]
    return found


@pytest.mark.parametrize(
    ("setting", "directive", "arguments"),
    [
        ("body_mib", "client_max_body_size", ["7m"]),
        ("header_kib", "large_client_header_buffers", ["4", "7k"]),
        ("header_seconds", "client_header_timeout", ["7s"]),
        ("body_seconds", "client_body_timeout", ["7s"]),
        ("reader_seconds", "send_timeout", ["7s"]),
    ],
)
def test_a_limit_is_what_nginx_enforces(setting: str, directive: str, arguments: list[str]) -> None:
    assert [each.arguments for each in conf(replace(LIMITS, **{setting: 7})).all(directive)] == [arguments]


@pytest.mark.parametrize("path", KEYED)
def test_requests_with_a_key_are_limited_in_number_and_rate(path: str) -> None:
    limited = location(conf(replace(LIMITS, concurrent_requests=7, requests_per_minute=90)), path)
    assert limited.own("limit_conn") == [["concurrent_requests", "7"]]
    # Beyond the burst there is no queue that a request could hang in.
    assert limited.own("limit_req") == [["zone=requests", "burst=15", "nodelay"]]


def test_a_rate_too_small_for_a_burst_has_none() -> None:
    limited = location(conf(replace(LIMITS, requests_per_minute=5)), KEYED[0])
    assert limited.own("limit_req") == [["zone=requests"]]


def test_limits_are_counted_by_the_keys_label_and_never_by_the_key() -> None:
    here = conf(replace(LIMITS, requests_per_minute=90))
    assert [each.arguments for each in here.all("limit_conn_zone")] == [["$key_label", "zone=concurrent_requests:1m"]]
    by_key = [each.arguments for each in here.all("limit_req_zone") if "zone=requests:1m" in each.arguments]
    assert by_key == [["$key_label", "zone=requests:1m", "rate=90r/m"]]


def test_the_health_check_is_limited_for_each_address() -> None:
    here = conf()
    (limit,) = location(here, "= /healthz").own("limit_req")
    assert limit[0] == "zone=health_checks"
    assert limit[-1] == "nodelay"
    (zone,) = [each.arguments for each in here.all("limit_req_zone") if "zone=health_checks:1m" in each.arguments]
    assert zone[0] == "$binary_remote_addr"


def test_a_limits_refusal_is_no_error_of_the_server() -> None:
    here = conf()
    assert [each.arguments for name in ("limit_conn_status", "limit_req_status") for each in here.all(name)] == [
        ["429"],
        ["429"],
    ]


def test_a_limits_refusal_is_not_in_the_error_log() -> None:
    # A line of that log has the request with its query. Nginx writes `warn` and worse there.
    here = conf()
    for name in ("limit_conn_log_level", "limit_req_log_level"):
        assert [each.arguments for each in here.all(name)] == [["info"]]


@pytest.mark.parametrize(
    ("status", "setting", "named"),
    [
        (413, "body_mib", "77 MB"),
        (414, "header_kib", "77 kB"),
        (431, "header_kib", "77 kB"),
        (429, "requests_per_minute", "77 requests a minute"),
    ],
)
def test_a_refusal_names_the_limit(status: int, setting: str, named: str) -> None:
    assert named in errors(replace(LIMITS, **{setting: 77}))[status].message


def test_too_many_at_once_and_too_many_a_minute_have_different_messages() -> None:
    error = too_many_at_once(replace(LIMITS, concurrent_requests=77))
    assert "77 requests at a time" in error.message
    assert error.code != errors(LIMITS)[429].code
    (check,) = location(conf(replace(LIMITS, concurrent_requests=77)), "= /_error/429").all("if")
    assert " ".join(check.arguments) == "($limit_conn_status = REJECTED)"
    assert "77 requests at a time" in check.own("return")[0][1]


def test_a_slow_client_gets_no_reset() -> None:
    assert not conf().all("reset_timedout_connection")


def test_the_default_rate_is_above_what_an_inference_endpoint_sends() -> None:
    # Elasticsearch sends 500 requests a minute to an OpenAI service at most; Kibana uses the same key beside it.
    assert LIMITS.requests_per_minute >= 2 * 500

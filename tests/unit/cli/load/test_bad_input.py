"""Bad input of `load` is one clear error, before any load."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import invoke
from tests.support.paced_endpoint import KEY, MODEL, paced
from tests.support.verify_server import issue, new_authority


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("load")
    authority = new_authority()
    issue(authority, directory / "server.pem")
    (directory / "ca.pem").write_text(authority.pem)
    (directory / "other-ca.pem").write_text(new_authority().pem)
    (directory / "key").write_text(KEY)
    (directory / "wrong-key").write_text("w" * 32)
    return directory


@pytest.fixture(scope="module")
def endpoint(files: Path) -> Iterator[str]:
    with paced(files / "server.pem") as url:
        yield url


def refused(files: Path, url: str, *changed: str, **given: Any) -> str:
    """The error for a load with some options changed."""
    own = {"--url": url, "--model": MODEL, "--ca": str(files / "ca.pem"), "--key-file": str(files / "key")} | given
    arguments = [part for option, value in own.items() if value for part in (option, value)]
    result = invoke("load", "--permitted", *arguments, *changed)
    assert result.exit_code == 2, result.output
    assert KEY not in result.output
    assert "Traceback" not in result.output
    return result.output


def test_another_endpoint_than_a_stacks_own_asks_for_an_explicit_word() -> None:
    result = invoke("load", "--url", "https://llm.example.com/v1/chat/completions", "--model", MODEL)
    assert result.exit_code == 2
    assert "--url is given without --permitted: this is a load generator" in result.output


@pytest.mark.parametrize(
    ("given", "changed", "expected"),
    [
        ({"--url": ""}, [], "the endpoint is not given by one of --url, --outputs and --stack"),
        ({"--model": "other"}, [], "model 'other' is not served\n  fix: pass --model: paced"),
        ({"--key-file": "wrong-key"}, [], "the key was refused (HTTP 401: Wrong key.)"),
        ({"--ca": "other-ca.pem"}, [], "certificate not signed by the given CA"),
        ({}, ["--profile", "lunch"], "--profile lunch: there is none of that name\n  fix: use mix, assistant"),
        ({}, ["--page", "/nowhere/page.html"], "--page /nowhere/page.html: its directory does not exist"),
        ({}, ["--scale", "100"], "profile assistant needs a context of 650,256 tokens, and the model serves 100,000"),
    ],
)
def test_bad_input_is_named(
    files: Path, endpoint: str, given: dict[str, str], changed: list[str], expected: str
) -> None:
    paths = {key: str(files / value) if key in {"--ca", "--key-file"} else value for key, value in given.items()}
    assert expected in refused(files, endpoint, *changed, **paths)


def test_an_endpoint_that_nobody_listens_at_is_named(files: Path) -> None:
    assert "cannot connect to 127.0.0.1:9" in refused(files, "https://127.0.0.1:9/v1/chat/completions")


def test_a_context_that_is_too_small_comes_with_the_scale_that_fits(files: Path) -> None:
    with paced(files / "server.pem", context=8192) as url:
        assert "multiply --scale by 0.16 or less" in refused(files, url, "--profile", "attack-discovery")


def test_a_profile_with_tools_is_refused_for_a_model_without(files: Path) -> None:
    with paced(files / "server.pem", has_tools=False) as url:
        message = refused(files, url, "--profile", "agent")
    assert "profile agent needs tool calls, and the model has none" in message
    assert "use --profile attack-discovery" in message


def outputs(files: Path, url: str, **changed: Any) -> str:
    """The outputs of a stack whose own key is another one's."""
    own = {"connectorUrl": url, "connectorApiKey": "w" * 32, "model": MODEL, "apiKeys": {"load": KEY, "siem": "s" * 32}}
    document = own | {"caCertificate": (files / "ca.pem").read_text()} | changed
    return json.dumps(document)


def test_a_stacks_key_named_load_is_taken(files: Path, endpoint: str) -> None:
    result = invoke("load", "--outputs", "-", "--scale", "100", input=outputs(files, endpoint))
    assert result.exit_code == 2
    assert "needs a context of" in result.output  # so the endpoint accepted the key


def test_no_rate_is_tried_that_the_gateway_refuses(files: Path, endpoint: str) -> None:
    limited = outputs(files, endpoint, _internal={"limits": {"maxRequestsPerMinute": 30}})
    arguments = ["--profile", "assistant", "--scale", "0.005", "--from", "36000"]
    result = invoke("load", "--outputs", "-", *arguments, input=limited)
    assert result.exit_code == 1
    assert "it ended there: the gateway allows 30 requests a minute with one key" in result.output
    assert "the requests stand in the access log under the key load" in result.output

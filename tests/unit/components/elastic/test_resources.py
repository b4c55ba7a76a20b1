"""Resources of `up` in Kibana and Elasticsearch, by the real providers, over HTTP, with a strict stand-in."""

import base64
import json
import pickle
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pulumi.dynamic import ResourceProvider
from pulumi.dynamic.dynamic import serialize_provider

from components.elastic import api, payloads, resources
from components.elastic.payloads import ElasticEndpoint
from tests.support import elastic_stand_in
from tests.support.elastic_stand_in import ADMIN, READER, Elastic
from tests.support.verify_server import issue, new_authority, without_key_usage
from tests.unit.components.elastic.conftest import KEY, failure

NAME = "elastic-vllm-prod"
ID = payloads.connector_id(NAME)
CONNECTOR, INFERENCE = resources.KibanaConnectorProvider(), resources.InferenceEndpointProvider()
BOTH = pytest.mark.parametrize("provider", [CONNECTOR, INFERENCE], ids=["connector", "inference"])


def endpoint(key: str = KEY, model: str = "elastic-llm", host: str = "llm.example.com") -> ElasticEndpoint:
    url = f"https://{host}/v1/chat/completions"
    return ElasticEndpoint(
        name=NAME,
        url=url,
        key=key,
        model=model,
        max_model_len=65536,
        native_function_calling=True,
        ca_certificate="",
    )


def props(elastic: Elastic, provider: ResourceProvider, **changes: Any) -> dict[str, Any]:
    """Return a resource's inputs; `model`, `host` and `llm_key` change its body."""
    about: dict[str, Any] = {
        "key": changes.pop("llm_key", KEY),
        **{k: changes.pop(k) for k in ("model", "host") if k in changes},
    }
    make = payloads.inference_endpoint if provider is INFERENCE else payloads.kibana_connector
    place = {"id": NAME} if provider is INFERENCE else {"id": ID, "space": ""}
    return {
        "url": elastic.address,
        "key": ADMIN,
        "ca": "",
        **place,
        "body": resources.as_text(make(endpoint(**about))),
        **changes,
    }


def held(elastic: Elastic, provider: ResourceProvider) -> dict[str, Any]:
    """Return the object that Elastic holds, secrets included."""
    return elastic.inference[NAME] if provider is INFERENCE else elastic.connectors["default", ID]


# Operations


@BOTH
def test_it_is_created_as_its_body_says_and_found_unchanged(elastic: Elastic, provider: ResourceProvider) -> None:
    wanted = props(elastic, provider)
    made = provider.create(wanted)
    assert held(elastic, provider) == json.loads(wanted["body"])
    seen = provider.read(made.id, made.outs or {})
    assert seen.id == made.id
    assert not provider.diff(made.id, seen.outs or {}, wanted).changes


@BOTH
def test_deleted_by_somebody_it_is_seen_to_be_gone(elastic: Elastic, provider: ResourceProvider) -> None:
    made = provider.create(props(elastic, provider))
    elastic.connectors.clear()
    elastic.inference.clear()
    assert provider.read(made.id, made.outs or {}).id == ""


@BOTH
@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"host": "other.example.com"}, {"llm_key": "6" * 64}], ids=["model", "url", "key"]
)
def test_a_change_is_made_in_place(elastic: Elastic, provider: ResourceProvider, change: dict[str, str]) -> None:
    before, after = props(elastic, provider), props(elastic, provider, **change)
    made = provider.create(before)
    difference = provider.diff(made.id, before, after)
    assert difference.changes
    assert not difference.replaces
    provider.update(made.id, before, after)
    assert held(elastic, provider) == json.loads(after["body"])
    assert list(elastic.inference) == ([NAME] if provider is INFERENCE else [])


@BOTH
def test_what_somebody_changed_is_found_and_reverted(elastic: Elastic, provider: ResourceProvider) -> None:
    wanted = props(elastic, provider)
    made = provider.create(wanted)
    there = held(elastic, provider)
    if provider is INFERENCE:
        there["service_settings"] = {**there["service_settings"], "model_id": "stranger"}
    else:
        there["config"] = {**there["config"], "defaultModel": "stranger"}
    seen = provider.read(made.id, made.outs or {})
    assert provider.diff(made.id, seen.outs or {}, wanted).changes
    provider.update(made.id, seen.outs or {}, wanted)
    assert held(elastic, provider) == json.loads(wanted["body"])


def test_what_somebody_added_to_a_connector_is_no_difference(elastic: Elastic) -> None:
    made = CONNECTOR.create(props(elastic, CONNECTOR))
    held(elastic, CONNECTOR)["config"]["temperature"] = 0.2
    seen = CONNECTOR.read(made.id, made.outs or {})
    assert not CONNECTOR.diff(made.id, seen.outs or {}, props(elastic, CONNECTOR)).changes


def test_a_connector_without_its_secrets_is_a_difference(elastic: Elastic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connectors imported from another Kibana have none either."""
    made = CONNECTOR.create(props(elastic, CONNECTOR))
    shown = elastic_stand_in.shown
    monkeypatch.setattr(elastic_stand_in, "shown", lambda *each: {**shown(*each), "is_missing_secrets": True})
    seen = CONNECTOR.read(made.id, made.outs or {})
    assert CONNECTOR.diff(made.id, seen.outs or {}, props(elastic, CONNECTOR)).changes


@BOTH
def test_an_update_of_one_that_is_gone_makes_it_again(elastic: Elastic, provider: ResourceProvider) -> None:
    wanted = props(elastic, provider)
    provider.update(wanted["id"], wanted, wanted)
    assert held(elastic, provider) == json.loads(wanted["body"])


@BOTH
def test_it_is_deleted_and_deleting_it_again_is_fine(elastic: Elastic, provider: ResourceProvider) -> None:
    wanted = props(elastic, provider)
    provider.create(wanted)
    provider.delete(wanted["id"], wanted)
    assert (elastic.connectors, elastic.inference) == ({}, {})
    provider.delete(wanted["id"], wanted)


@BOTH
@pytest.mark.parametrize("name", ["url", "id"])
def test_another_place_is_another_object(elastic: Elastic, provider: ResourceProvider, name: str) -> None:
    difference = provider.diff("x", props(elastic, provider), props(elastic, provider, **{name: "other"}))
    assert difference.replaces == [name]
    assert difference.delete_before_replace


def test_a_connector_is_made_in_its_space(elastic: Elastic) -> None:
    CONNECTOR.create(props(elastic, CONNECTOR, space="ai"))
    assert list(elastic.connectors) == [("ai", ID)]


@BOTH
def test_one_of_another_origin_is_left_alone_and_refused(elastic: Elastic, provider: ResourceProvider) -> None:
    provider.create(props(elastic, provider, model="theirs"))
    there = json.dumps(held(elastic, provider))
    message = failure(lambda: provider.create(props(elastic, provider)))
    assert f"{props(elastic, provider)['id']}, which is not in this stack's state: delete it" in message
    assert json.dumps(held(elastic, provider)) == there


# Refusals


@BOTH
def test_a_wrong_key(elastic: Elastic, provider: ResourceProvider) -> None:
    message = failure(lambda: provider.create(props(elastic, provider, key="d3Jvbmc=")))
    assert "refuses the API key (401: " in message
    assert ("elasticsearchApiKey" if provider is INFERENCE else "kibanaApiKey") in message


@BOTH
def test_a_key_without_the_privilege(elastic: Elastic, provider: ResourceProvider) -> None:
    message = failure(lambda: provider.create(props(elastic, provider, key=READER)))
    privilege = "manage_inference" if provider is INFERENCE else "'Actions and Connectors: all'"
    assert "lacks a privilege" in message
    assert privilege in message


def test_no_connector_is_made_in_a_space_that_is_not_there(elastic: Elastic) -> None:
    message = failure(lambda: CONNECTOR.create(props(elastic, CONNECTOR, space="ghost")))
    assert "has no space 'ghost': correct kibanaSpace" in message
    assert elastic.connectors == {}


def test_a_connector_whose_space_was_deleted_counts_as_gone(elastic: Elastic) -> None:
    wanted = props(elastic, CONNECTOR, space="ghost")
    assert CONNECTOR.read(ID, wanted).id == ""
    CONNECTOR.delete(ID, wanted)


@pytest.mark.parametrize(
    ("state", "provider", "cause", "fix"),
    [
        ({"license": "basic"}, CONNECTOR, "license does not include AI connectors", "need an Enterprise license"),
        ({"license": "basic"}, INFERENCE, "license does not include AI connectors", "need an Enterprise license"),
        ({"enabled_types": (".email",)}, CONNECTOR, "leaves out the OpenAI connector", "add .gen-ai to that list"),
        ({"encryption_key": False}, CONNECTOR, "can store no connector", "encryptedSavedObjects.encryptionKey"),
        ({"answer_seconds": 500.0}, INFERENCE, "could not validate the endpoint", "is the model not busy"),
    ],
)
def test_each_refusal_has_its_own_cause_and_fix(
    elastic: Elastic, state: dict[str, Any], provider: ResourceProvider, cause: str, fix: str, slept: list[float]
) -> None:
    for name, value in state.items():
        setattr(elastic, name, value)
    message = failure(lambda: provider.create(props(elastic, provider)))
    assert cause in message
    assert fix in message
    assert "lacks a privilege" not in message
    assert slept == []


def test_elasticsearch_waits_for_a_slow_first_answer(elastic: Elastic) -> None:
    elastic.answer_seconds = 60
    INFERENCE.create(props(elastic, INFERENCE))
    assert held(elastic, INFERENCE)


def test_an_elasticsearch_without_the_timeout_parameter_is_asked_without_it(elastic: Elastic) -> None:
    elastic.version = "8.18.0"
    INFERENCE.create(props(elastic, INFERENCE))
    assert held(elastic, INFERENCE)


@BOTH
def test_elastics_own_reason_for_a_body_it_refuses(elastic: Elastic, provider: ResourceProvider) -> None:
    body = json.loads(props(elastic, provider)["body"])
    body["colour"] = "red"
    message = failure(lambda: provider.create(props(elastic, provider, body=resources.as_text(body))))
    assert "(400): " in message
    assert "'colour' was unexpected" in message


def test_a_refusal_that_repeats_the_key_is_shown_without_it(elastic: Elastic) -> None:
    body = json.loads(props(elastic, CONNECTOR)["body"])
    body[KEY] = "x"
    message = failure(lambda: CONNECTOR.create(props(elastic, CONNECTOR, body=resources.as_text(body))))
    assert "'<key>' was unexpected" in message


@BOTH
def test_a_refused_connection_is_reported(elastic: Elastic, provider: ResourceProvider, slept: list[float]) -> None:
    wanted = props(elastic, provider, url="http://127.0.0.1:9")
    message = failure(lambda: provider.create(wanted))
    assert "cannot reach" in message
    assert "Connection refused" in message
    assert "Nothing else is wrong" in message
    assert 30 < sum(slept) <= api.PATIENCE_SECONDS


def test_a_certificate_that_is_not_trusted_is_reported_at_once(tmp_path: Path, slept: list[float]) -> None:
    ca = new_authority()
    certificate = str(issue(ca, tmp_path / "server.pem"))
    with elastic_stand_in.serving(Elastic(calls_endpoint=False), certificate=certificate) as elastic:
        assert "set elasticCa" in failure(lambda: CONNECTOR.create(props(elastic, CONNECTOR)))
        assert slept == []
        CONNECTOR.create(props(elastic, CONNECTOR, ca=ca.pem))
        assert elastic.connectors


def as_from_3_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the ssl module make its contexts as that of Python 3.13 and newer does."""
    made = ssl.create_default_context

    def stricter(*arguments: Any, **more: Any) -> ssl.SSLContext:
        context = made(*arguments, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    monkeypatch.setattr(ssl, "create_default_context", stricter)


@pytest.mark.parametrize("newer_python", [False, True])
@pytest.mark.parametrize("kind", ["elasticsearch-certutil's", "version 1", "the server's own certificate"])
def test_a_ca_that_browsers_and_curl_take_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, newer_python: bool
) -> None:
    if newer_python:
        as_from_3_13(monkeypatch)
    ca = without_key_usage(new_authority(), tmp_path, version=1 if kind == "version 1" else 3)
    certificate = issue(ca, tmp_path / "server.pem")
    given = certificate.read_text() if kind == "the server's own certificate" else ca.pem
    with elastic_stand_in.serving(Elastic(calls_endpoint=False), certificate=str(certificate)) as elastic:
        CONNECTOR.create(props(elastic, CONNECTOR, ca=given))
        assert elastic.connectors


@pytest.mark.parametrize("newer_python", [False, True])
def test_no_other_ca_name_or_date_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer_python: bool) -> None:
    if newer_python:
        as_from_3_13(monkeypatch)
    ca, other = (without_key_usage(new_authority(), tmp_path, version=3) for _ in range(2))
    for name, certificate, given, fix in (
        ("other", issue(ca, tmp_path / "right.pem"), other.pem, "elasticCa is not the CA of this certificate"),
        ("name", issue(ca, tmp_path / "name.pem", names=[x509.DNSName("x")]), ca.pem, "to a name in the certificate"),
        ("date", issue(ca, tmp_path / "date.pem", days=-1), ca.pem, "renew the certificate"),
    ):
        with elastic_stand_in.serving(Elastic(calls_endpoint=False), certificate=str(certificate)) as elastic:
            assert fix in failure(lambda: CONNECTOR.create(props(elastic, CONNECTOR, ca=given))), name  # noqa: B023
            assert not elastic.connectors


def test_a_server_that_is_no_kibana(elastic: Elastic) -> None:
    message = failure(lambda: CONNECTOR.create(props(elastic, CONNECTOR, url=f"{elastic.address}/elsewhere")))
    assert "is kibanaUrl right?" in message


# Patience


@BOTH
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_product_is_asked_again(
    elastic: Elastic, provider: ResourceProvider, status: int, slept: list[float]
) -> None:
    elastic.answers = [(status, {})] * 3
    provider.create(props(elastic, provider))
    assert slept == [1, 2, 4]


def test_a_product_is_asked_again_after_its_retry_after(elastic: Elastic, slept: list[float]) -> None:
    elastic.answers = [(429, {"Retry-After": "7"})]
    CONNECTOR.create(props(elastic, CONNECTOR))
    assert slept == [7]


def test_a_product_that_stays_busy_is_given_up(elastic: Elastic, slept: list[float]) -> None:
    elastic.answers = [(503, {})] * 100
    assert "still answers 503 (busy)" in failure(lambda: CONNECTOR.create(props(elastic, CONNECTOR)))
    assert sum(slept) <= api.PATIENCE_SECONDS


def test_a_connector_whose_creation_was_answered_by_an_error_is_no_stranger(elastic: Elastic) -> None:
    CONNECTOR.create(props(elastic, CONNECTOR, model="half-made"))
    elastic.answers = [(502, {})]
    CONNECTOR.create(props(elastic, CONNECTOR))
    assert held(elastic, CONNECTOR)["config"]["defaultModel"] == "elastic-llm"


# An inference endpoint cannot be given another model


def test_what_elasticsearch_would_refuse_costs_nothing_that_works(elastic: Elastic) -> None:
    before = props(elastic, INFERENCE)
    INFERENCE.create(before)
    elastic.calls_endpoint = True
    after = props(elastic, INFERENCE, host="127.0.0.1:9", model="other")
    assert "Unable to validate" in failure(lambda: INFERENCE.update(NAME, before, after))
    assert elastic.inference == {NAME: json.loads(before["body"])}


def test_the_old_one_is_restored_if_its_successor_is_refused_at_the_last_moment(elastic: Elastic) -> None:
    before, after = props(elastic, INFERENCE), props(elastic, INFERENCE, model="other")
    INFERENCE.create(before)
    elastic.answers = [*[None] * 5, (400, {})]  # GET, DELETE, PUT and DELETE of the trial, DELETE, PUT
    assert "refuses PUT" in failure(lambda: INFERENCE.update(NAME, before, after))
    assert elastic.inference == {NAME: json.loads(before["body"])}


def test_a_trial_that_cannot_be_removed_leaves_the_working_one_alone(elastic: Elastic) -> None:
    before, after = props(elastic, INFERENCE), props(elastic, INFERENCE, model="other")
    INFERENCE.create(before)
    elastic.answers = [*[None] * 3, (409, {})]
    message = failure(lambda: INFERENCE.update(NAME, before, after))
    assert f"refuses DELETE /_inference/chat_completion/{NAME}-trial (409)" in message
    assert elastic.inference[NAME] == json.loads(before["body"])
    INFERENCE.update(NAME, before, after)
    assert elastic.inference == {NAME: json.loads(after["body"])}


@BOTH
def test_a_refresh_with_an_old_key_is_refused_with_the_next_step(elastic: Elastic, provider: ResourceProvider) -> None:
    made = props(elastic, provider, key="d3Jvbmc=")
    message = failure(lambda: provider.read(made["id"], made))
    assert "refuses the API key (401: " in message
    assert "run `pulumi up` without --refresh" in message


def test_the_key_alone_is_changed_without_a_gap(elastic: Elastic) -> None:
    before = props(elastic, INFERENCE)
    INFERENCE.create(before)
    elastic.requests.clear()
    INFERENCE.update(NAME, before, props(elastic, INFERENCE, llm_key="6" * 64))
    assert [request.split()[0] for request in elastic.requests] == ["GET", "PUT"]
    assert elastic.requests[1].endswith("/_update")


# How Pulumi keeps them


@pytest.mark.parametrize("provider", [CONNECTOR, INFERENCE])
def test_a_provider_is_kept_by_its_name_so_that_changing_it_is_no_difference(provider: ResourceProvider) -> None:
    kept = base64.b64decode(serialize_provider(provider))
    assert len(kept) < 200
    assert type(provider).__name__.encode() in kept
    assert type(pickle.loads(kept)) is type(provider)  # noqa: S301 - written above


DEFAULT = resources.KibanaDefaultConnectorProvider()


def default_props(elastic: Elastic, **changes: Any) -> dict[str, Any]:
    return {"url": elastic.address, "key": ADMIN, "ca": "", "id": ID, "space": "ai", **changes}


@pytest.mark.parametrize("before", ["another", None])
def test_the_default_connector_is_set_in_its_space_and_put_back_at_destroy(
    elastic: Elastic, before: str | None
) -> None:
    elastic.default_connectors["ai"] = before
    made = DEFAULT.create(default_props(elastic)).outs or {}
    assert elastic.default_connectors == {"ai": ID}
    assert not DEFAULT.diff("default", DEFAULT.read("default", made).outs or {}, default_props(elastic)).changes
    DEFAULT.delete("default", made)
    assert elastic.default_connectors == {"ai": before}


def test_a_default_that_somebody_changed_is_a_difference_and_is_not_touched_by_destroy(elastic: Elastic) -> None:
    made = DEFAULT.create(default_props(elastic)).outs or {}
    elastic.default_connectors["ai"] = "chosen-by-hand"
    assert DEFAULT.diff("default", DEFAULT.read("default", made).outs or {}, default_props(elastic)).changes
    DEFAULT.delete("default", made)
    assert elastic.default_connectors == {"ai": "chosen-by-hand"}


def test_another_default_of_this_stack_still_knows_what_was_there_before(elastic: Elastic) -> None:
    elastic.default_connectors["ai"] = "another"
    made = DEFAULT.create(default_props(elastic)).outs or {}
    changed = DEFAULT.update("default", made, default_props(elastic, id="new")).outs or {}
    DEFAULT.delete("default", changed)
    assert elastic.default_connectors == {"ai": "another"}

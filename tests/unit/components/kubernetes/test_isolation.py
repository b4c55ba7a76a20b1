"""Conclusions of the isolation check from its probes' reports."""

import json
from typing import Any

import pytest

from components.kubernetes import isolation
from components.kubernetes.api import ClusterError
from components.kubernetes.isolation import IsolationCheckProvider, flaws_of

TARGETS = ("API server", "DNS", "metadata server", "gateway")
ENFORCED = {
    "control": dict.fromkeys(TARGETS, True),
    "vllm": dict.fromkeys(TARGETS, False),
    "gateway": {"API server": False, "DNS": True, "metadata server": False, "gateway": False},
}
PROPS = {"kubeconfig": "/k", "context": "c", "namespace": "n", "pods": "[]", "accept": False}


def with_answer(probe: str, target: str, answer: bool) -> dict[str, dict[str, bool]]:
    """Return the reports of an enforcing network, with one answer changed."""
    found: dict[str, dict[str, bool]] = json.loads(json.dumps(ENFORCED))
    found[probe][target] = answer
    return found


def test_an_enforcing_network_has_no_flaw() -> None:
    assert flaws_of(ENFORCED) == []


@pytest.mark.parametrize("target", TARGETS)
def test_anything_that_vllm_reaches_is_a_flaw(target: str) -> None:
    assert flaws_of(with_answer("vllm", target, answer=True)) == [f"a pod with the policy of vllm reaches the {target}"]


def test_a_gateway_that_cannot_resolve_names_is_a_flaw() -> None:
    (flaw,) = flaws_of(with_answer("gateway", "DNS", answer=False))
    assert "can't ask the cluster's DNS" in flaw


def test_what_is_not_there_proves_nothing() -> None:
    found = with_answer("control", "metadata server", answer=False)
    found["vllm"]["metadata server"] = True  # a chance that the control missed
    assert flaws_of(found) == []


def test_a_control_that_reaches_nothing_is_a_flaw() -> None:
    (flaw,) = flaws_of({**ENFORCED, "control": dict.fromkeys(TARGETS, False)})
    assert "there is no telling" in flaw


@pytest.fixture
def unenforced(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = dict.fromkeys(("control", "vllm", "gateway"), dict.fromkeys(TARGETS, True))
    monkeypatch.setattr(isolation, "run_probes", lambda _props: everything)


@pytest.mark.usefixtures("unenforced")
def test_a_network_that_enforces_nothing_stops_the_update() -> None:
    with pytest.raises(ClusterError, match=r"does not enforce.*fix: install.*unenforcedNetworkPolicies: accept"):
        IsolationCheckProvider().create(dict(PROPS))


@pytest.mark.usefixtures("unenforced")
def test_such_a_network_can_be_accepted() -> None:
    accepted: dict[str, Any] = {**PROPS, "accept": True}
    assert IsolationCheckProvider().create(accepted).outs == accepted


@pytest.mark.usefixtures("unenforced")
def test_each_update_looks_again() -> None:
    provider = IsolationCheckProvider()
    checked = provider.check(dict(PROPS), dict(PROPS)).inputs
    assert len(checked["missing"]) == 6
    assert provider.diff("isolation", dict(PROPS), checked).changes
    with pytest.raises(ClusterError):
        provider.update("isolation", dict(PROPS), checked)


def test_an_enforcing_network_shows_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "run_probes", lambda _props: ENFORCED)
    provider = IsolationCheckProvider()
    checked = provider.check(dict(PROPS), dict(PROPS)).inputs
    assert not provider.diff("isolation", dict(PROPS), checked).changes

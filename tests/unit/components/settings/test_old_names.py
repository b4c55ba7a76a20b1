"""Settings and values of earlier versions are refused with their replacements."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from components.settings.gcp import PROVISIONING_MODELS
from components.settings.old_names import OLD_SETTINGS, OLD_VALUES
from components.settings.stack import Settings
from tests.support.program import PROJECT
from tests.unit.conftest import found

Settle = Callable[..., Settings]

# Old name, a value that it had, the cause in the message, the fix
ROWS: list[tuple[str, Any, str, str]] = [
    ("contextTokens", 8192, "is now maxModelLen", "rename it"),
    ("gpuMemoryPercent", 85, "is now gpuMemoryUtilization", 'write gpuMemoryUtilization: "0.85"'),
    ("vllmArguments", ["--max-num-seqs=8"], "is now vllmExtraArgs", "rename it"),
    ("modelAlias", "assistant", "is now servedModelName", "rename it"),
    ("hubToken", "hf_x", "is now hfToken", "remove it, then `pulumi config set --secret hfToken`"),
    ("hubEndpoint", "https://mirror.example", "is now hfEndpoint", "rename it"),
    ("capacity", "spot", "is now provisioningModel", "write provisioningModel: SPOT"),
    ("httpsSources", ["198.51.100.0/24"], "is now httpsSourceRanges", "rename it"),
    ("sshSources", ["203.0.113.7/32"], "is now sshSourceRanges", "rename it"),
    ("maxBodyMb", 64, "is now maxBodyMib", "rename it"),
    ("keyVersion", 3, "is now part of keys", "write keys: {default: [3, 2]}, or [3] if version 2 no longer works"),
    ("acceptPreviousKey", False, "is now part of keys", "write keys: {default: [2, 1]} while version 1 still works"),
    ("artifacts", "bundle", "is gone: if bundle is set, nothing is fetched", "remove it, and set or remove bundle"),
    ("osImage", "plain", "is gone: ", "run scripts/elastic-vllm pin with --os accelerator|plain"),
    ("maxRunHours", 24, "is gone: a VM with FLEX_START lives 168 hours", "remove it"),
    (
        "subnetCidr",
        "10.20.0.0/24",
        "is gone: the stack's own subnetwork has 10.10.0.0/24",
        "set network and subnetwork",
    ),
    ("maxHeaderKb", 16, "is gone: a header line may always have 8 KiB", "remove it"),
    ("slowHeaderSeconds", 30, "is gone: a request's header always has 15 seconds", "remove it"),
    ("slowBodySeconds", 120, "is gone: 60 seconds are always allowed", "remove it"),
    ("slowReaderSeconds", 600, "is gone: a client that reads nothing for 60 seconds", "remove it"),
    ("kibanaTest", True, "is gone: the hand-off document has the call", "remove it"),
    ("kibanaConnectorId", "mine", "is gone: `up` creates its own connector", "delete the old connector in Kibana"),
    ("inferenceEndpointId", "mine", "is gone: `up` creates its own inference endpoint", "delete the old one in"),
]


@pytest.mark.parametrize(("name", "value", "cause", "fix"), ROWS, ids=[row[0] for row in ROWS])
def test_an_old_setting_is_refused_with_what_became_of_it(
    name: str, value: object, cause: str, fix: str, settle: Settle
) -> None:
    (problem,) = found(lambda: settle("gpu", {name: value}))
    reason, _, advice = problem.partition("; ")
    assert reason.startswith((f"{name} = ", f"{name}: "))
    assert f": {name} {cause}" in reason
    assert fix in advice
    assert "hf_x" not in problem


def test_every_old_setting_has_a_row_and_is_no_setting_any_more() -> None:
    assert [row[0] for row in ROWS] == list(OLD_SETTINGS)
    assert not set(OLD_SETTINGS) & set(PROJECT["config"])


@pytest.mark.parametrize("old", OLD_SETTINGS.values(), ids=OLD_SETTINGS)
def test_what_became_of_an_old_setting_exists(old: Any) -> None:
    names = [word.rstrip(",") for word in old.became.split()[-1:]] if old.became.startswith("is now") else []
    assert not [name for name in names if name not in {*PROJECT["config"], "fraction"}]


@pytest.mark.parametrize("name", ["context_tokens", "contexttokens", "hub-token"])
def test_an_old_setting_is_known_however_it_is_written(name: str, settle: Settle) -> None:
    (problem,) = found(lambda: settle("gpu", {name: "1"}))
    assert " is now " in problem


@pytest.mark.parametrize(
    ("name", "value", "new"),
    [
        ("gpuMemoryPercent", "85", {"gpuMemoryUtilization": "0.85"}),
        ("keyVersion", "1", {"keys": {"default": [1]}}),
        ("capacity", "flex-start", {"provisioningModel": "FLEX_START"}),
        ("capacity", "standard", {"provisioningModel": "STANDARD"}),
    ],
)
def test_the_advice_for_an_old_setting_can_be_pasted(
    name: str, value: str, new: dict[str, Any], settle: Settle
) -> None:
    base = "prod" if name == "capacity" else "gpu"
    (problem,) = found(lambda: settle(base, {name: value}))
    assert yaml.safe_load(problem.partition("; write ")[2]) == new
    assert not found(lambda: settle(base, new))


def test_a_reservation_is_no_provisioning_model_of_its_own(settle: Settle) -> None:
    (problem,) = found(lambda: settle("prod", {"capacity": "reservation", "reservation": "first"}))
    assert "write provisioningModel: STANDARD beside reservation, or RESERVATION_BOUND" in problem


@pytest.mark.parametrize(
    ("base", "key", "value", "words"),
    [
        ("gpu", "tls", "self-signed", "self-signed is now private-ca; write tls: private-ca"),
        ("prod", "provisioningModel", "standard", "standard is now STANDARD; write provisioningModel: STANDARD"),
        ("prod", "provisioningModel", "spot", "spot is now SPOT; write provisioningModel: SPOT"),
        (
            "prod",
            "provisioningModel",
            "flex-start",
            "is now FLEX_START; write provisioningModel: FLEX_START",
        ),
        ("prod", "provisioningModel", "reservation", "or RESERVATION_BOUND; write provisioningModel: STANDARD"),
    ],
)
def test_an_old_value_is_refused_with_the_new_one(base: str, key: str, value: str, words: str, settle: Settle) -> None:
    (problem,) = found(lambda: settle(base, {key: value}))
    assert problem.startswith(f"{key} = {value!r}: ")
    assert problem.endswith(words)


def test_every_old_value_is_tested() -> None:
    assert set(OLD_VALUES) == {"tls", "provisioningModel"}
    assert not {value for values in OLD_VALUES.values() for value in values} & {*PROVISIONING_MODELS, "private-ca"}


@pytest.mark.parametrize(
    ("base", "key", "value", "new"),
    [
        ("gpu", "keys", ["siem=2,1", "soc=1"], {"siem": [2, 1], "soc": [1]}),
        ("prod", "labels", ["team=search", "empty="], {"team": "search", "empty": ""}),
        ("prod", "labels", ["tier=1"], {"tier": "1"}),
    ],
)
def test_an_old_list_is_refused_with_the_object_in_its_place(
    base: str, key: str, value: list[str], new: dict[str, Any], settle: Settle
) -> None:
    (problem,) = found(lambda: settle(base, {key: value}))
    assert yaml.safe_load(problem.partition("; write ")[2]) == {key: new}
    assert not found(lambda: settle(base, {key: new}))

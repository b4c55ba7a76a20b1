"""Contradictions between settings: every rule has a message that was reviewed."""

import re

import pytest

from components.settings.rules import GOOGLE_RULES, KUBERNETES_RULES, RULES, Rule, version
from components.settings.targets import TARGETS_OF
from tests.conftest import GOLDEN
from tests.support.program import PROJECT

MESSAGES = (GOLDEN / "setting-messages.txt").read_text().splitlines()
# The rules for another target are the same for each setting.
SINGLE = [
    rule
    for rule in (*RULES, *GOOGLE_RULES, *KUBERNETES_RULES)
    if not rule.cause.startswith("has no effect with target")
]


def pattern(template: str) -> str:
    """Return a pattern of the template with any text for its facts."""
    return ".+".join(map(re.escape, re.split(r"\{f\.[^}]+\}", template)))


@pytest.mark.parametrize("rule", SINGLE, ids=lambda rule: f"{rule.key}: {rule.cause}")
def test_a_rule_has_a_reviewed_message(rule: Rule) -> None:
    expected = re.compile(rf"{rule.key}( = .*)?: {pattern(rule.cause)}; {pattern(rule.fix)}")
    assert [message for message in MESSAGES if expected.fullmatch(message)]


def test_rules_name_settings_that_exist() -> None:
    named = {name for rule in (*RULES, *GOOGLE_RULES, *KUBERNETES_RULES) for name in (rule.key, *rule.unless)}
    assert named <= set(PROJECT["config"])


def test_each_setting_of_one_target_alone_has_a_rule() -> None:
    rules = {rule.key for rule in RULES if rule not in SINGLE}
    assert rules == set(TARGETS_OF)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("v0.32.0", (0, 32, 0)), ("1.2.3", (1, 2, 3)), ("v0.32.0-cu129", (0, 32, 0)), ("v0.32.0rc1", ()), ("latest", ())],
)
def test_a_version_is_that_of_a_release(text: str, numbers: tuple[int, ...]) -> None:
    assert version(text) == numbers

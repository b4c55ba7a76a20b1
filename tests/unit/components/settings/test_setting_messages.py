"""What people read when a setting is wrong: every message, whole, as reviewed (tests/golden/setting-messages.txt)."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from components.settings.stack import PROJECT_DIRECTORY, Settings
from tests.unit.components.settings import (
    test_acme_settings,
    test_bundle_settings,
    test_elastic_settings,
    test_gcp_settings,
    test_settings,
)
from tests.unit.conftest import found

Golden = Callable[[str, str], None]
Settle = Callable[..., Settings]


def wrong_settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Base and what is wrong in it: the rows of the other modules' tables."""
    for base, key, value, *_ in [*test_settings.WRONG, *test_gcp_settings.WRONG]:
        yield base, {key: value}
    for base, overrides, *_ in [*test_gcp_settings.CONTRADICTIONS, *test_bundle_settings.WRONG]:
        yield base, overrides
    for overrides, *_ in [*test_elastic_settings.WRONG, *test_acme_settings.WRONG]:
        yield "local", overrides
    for arguments in (
        ["--host"],
        ["--model", "x"],
        ["--tool-call-parser", "hermes"],
        ["--revision=x"],
        ["--api-key=x"],
    ):
        yield "gpu", {"vllmExtraArgs": arguments}
    for overrides in (
        {"tls": "provided"},
        {"tls": "letsencrypt"},
        {"tlsPrivateKey": "x"},
        {"clientCertificates": ["A"]},
        {"clientCertificates": ["kibana", "kibana"]},
        {"dcgmImage": f"a/b:1@sha256:{'c' * 64}"},
    ):
        yield "local", overrides


def test_every_message_of_a_wrong_setting_is_as_reviewed(settle: Settle, key_files: Path, golden: Golden) -> None:
    lines = []
    for base, overrides in wrong_settings():
        problems = found(partial(settle, base, overrides))
        text = "\n".join(problems).replace(str(key_files), "FILES").replace(str(PROJECT_DIRECTORY), "PROJECT")
        # Of a file's content, a test's own random one, nothing is shown; of its name, what pytest made of it.
        lines.append(re.sub(r"/tmp/\S*", "TEMPORARY", text) + "\n")
    assert all(line.strip() for line in lines)
    golden("setting-messages.txt", "".join(dict.fromkeys(lines)))

"""Every message about a wrong setting, as reviewed (tests/golden/setting-messages.txt)."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from components.settings.stack import PROJECT_DIRECTORY, Settings
from tests.support import empty_bundle
from tests.support.program import PINS
from tests.unit.components.settings import (
    test_acme_settings,
    test_bundle_settings,
    test_download_settings,
    test_elastic_settings,
    test_gcp_settings,
    test_gke_settings,
    test_kubernetes_settings,
    test_settings,
)
from tests.unit.conftest import found

Golden = Callable[[str, str], None]
Settle = Callable[..., Settings]


def wrong_settings(bundle: Path, directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a base and its wrong settings: the rows of other modules' tables, and cases that need files."""
    for base, key, value, *_ in [
        *test_settings.WRONG,
        *test_gcp_settings.WRONG,
        *test_kubernetes_settings.WRONG,
        *test_gke_settings.WRONG,
    ]:
        yield base, {key: value}
    for base, overrides, *_ in [
        *test_settings.CONTRADICTIONS,
        *test_gcp_settings.CONTRADICTIONS,
        *test_kubernetes_settings.CONTRADICTIONS,
        *test_gke_settings.CONTRADICTIONS,
        *test_bundle_settings.WRONG,
        *test_download_settings.WRONG,
    ]:
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
    yield "prod", {"bundle": str(bundle), "bundleKey": "unsigned", "modelRevision": ""}
    parts = {name: part for name, part in empty_bundle.parts().items() if name != "weights"}
    without_weights = empty_bundle.write(directory / "bundle", parts)
    yield "airgap", {"bundle": str(without_weights), "modelRevision": PINS["modelRevision"]}
    catalogue = directory / "models.yaml"
    catalogue.write_text("models: {acme/New: {weights_gb: 1, least_vllm: 0.40.1}}")
    old = f"vllm:v0.40.0@sha256:{'c' * 64}"
    yield "gpu", {"modelCatalogue": str(catalogue), "model": "acme/New", "vllmImage": old}
    yield "gpu", {"modelCatalogue": str(directory / "absent.yaml")}


def test_every_message_of_a_wrong_setting_is_as_reviewed(
    settle: Settle, key_files: Path, bundle: Path, tmp_path: Path, golden: Golden
) -> None:
    lines = []
    for base, overrides in wrong_settings(bundle, tmp_path):
        problems = found(partial(settle, base, overrides))
        text = "\n".join(problems).replace(str(key_files), "FILES").replace(str(PROJECT_DIRECTORY), "PROJECT")
        # Hide the random content of a test's files, and the part of their names that pytest generates.
        lines.append(re.sub(r"/tmp/[^\s']*", "TEMPORARY", text) + "\n")
    assert all(line.strip() for line in lines)
    golden("setting-messages.txt", "".join(dict.fromkeys(lines)))

"""A stack in Google Cloud, a stand-in for Google's APIs where all is well, and a user with a token."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.settings import gcp
from scripts.cli import pin
from scripts.cli.preflight import command
from scripts.lib import stack_settings
from tests.support import google_stand_in
from tests.support.google_stand_in import COMMIT, HUB_TOKEN, MODEL, TOKEN, Cloud
from tests.support.program import HOST_KEY, ROOT
from tests.unit.cli.preflight.survey import loaded

CATALOGUE = {
    "models": {
        MODEL: {
            "weights_gb": 50,
            "max_model_len": 65536,
            "tool_call_parser": "hermes",
            "layers": [{"kind": "full", "count": 40, "kv_heads": 8, "head_size": 128}],
        }
    }
}
DIGEST = f"@sha256:{'d' * 64}"
STACK = {
    "target": "gcp",
    "gcpProject": "acme-llm",
    "sshUser": "elastic-vllm",
    "zone": "us-central1-a",
    "machineType": "a2-ultragpu-2g",
    "provisioningModel": "STANDARD",
    "httpsSourceRanges": ["203.0.113.0/24"],
    "sshSourceRanges": ["203.0.113.9/32"],
    "vmImage": "projects/ubuntu-os-accelerator-images/global/images/ubuntu-v20261101",
    "bootDiskGb": 100,
    "weightsDiskGb": 300,
    "vllmImage": f"docker.io/vllm/vllm-openai:v0.32.0{DIGEST}",
    "nginxImage": f"docker.io/library/nginx:1.30.6{DIGEST}",
    "model": MODEL,
    "modelRevision": COMMIT,
}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the credentials of this machine's user, and keep the tests from asking anything outside."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "CLOUDSDK_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture(scope="module")
def server() -> Iterator[Cloud]:
    with google_stand_in.running() as cloud:
        yield cloud


@pytest.fixture(scope="module")
def project(server: Cloud, private_key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project directory with a stack `cloud`, and a stack `here` that is not in Google Cloud."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "stacks").mkdir()
    shutil.copy(ROOT / "Pulumi.yaml", directory)
    (directory / "models.yaml").write_text(json.dumps(CATALOGUE))
    keys = {"sshPrivateKeyPath": str(private_key), "hfEndpoint": f"{server.base}/hub"}
    keys["modelCatalogue"] = str(directory / "models.yaml")
    config = {f"elastic-vllm:{key}": value for key, value in {**STACK, **keys}.items()}
    secret = {"elastic-vllm:hfToken": {"secure": "v1:AAAA"}}
    (directory / "stacks" / "Pulumi.cloud.yaml").write_text(json.dumps({"config": config | secret}))
    left_out = gcp.KEYS | {"target", "httpsSourceRanges"}
    elsewhere = {key: value for key, value in config.items() if key.rpartition(":")[2] not in left_out}
    here = elsewhere | {"elastic-vllm:host": "llm.example.com", "elastic-vllm:sshHostKey": HOST_KEY}
    (directory / "stacks" / "Pulumi.here.yaml").write_text(json.dumps({"config": here}))
    cluster = {key: value for key, value in STACK.items() if key in gcp.SHARED_KEYS | {"httpsSourceRanges"}}
    images = {key: STACK[key] for key in ("vllmImage", "nginxImage", "model", "modelRevision")}
    gke = {"target": "gke", "cloudNat": True, "weightsStorageClass": "standard-rwo", **cluster, **images}
    gke |= {key: keys[key] for key in ("hfEndpoint", "modelCatalogue")}
    document = {"config": {f"elastic-vllm:{key}": value for key, value in gke.items()} | secret}
    (directory / "stacks" / "Pulumi.cluster.yaml").write_text(json.dumps(document))
    return directory


@pytest.fixture
def cloud(server: Cloud, project: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Project in Google Cloud where all is well, and a user with a token for it."""
    monkeypatch.setattr(stack_settings, "PROJECT_DIRECTORY", project)
    monkeypatch.setattr(command, "GOOGLE_BASE", server.base)
    monkeypatch.setattr(pin, "GOOGLE_BASE", server.base)
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    fresh = Cloud(base=server.base)
    for field in dataclasses.fields(Cloud):
        setattr(server, field.name, getattr(fresh, field.name))
    google_stand_in.fill(server, loaded()[1])
    return server

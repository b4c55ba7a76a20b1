"""Stacks that tests create: their files, weights that look complete, and traces on this machine."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.models.containers import Container

from tests.integration.conftest import ROOT, rehearse

NGINX_IMAGE = "localhost/elastic-vllm/nginx:debian"
MODEL = "acme/own"
SERVER_DIRECTORIES = (Path("/var/lib/elastic-vllm"), Path("/etc/elastic-vllm"))
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@contextmanager
def stack_file(name: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Write a stack's file until the block ends; then take down anything of the stack that is up."""
    path = ROOT / "stacks" / f"Pulumi.{name}.yaml"
    path.write_text(yaml.safe_dump({"config": {f"elastic-vllm:{key}": value for key, value in settings.items()}}))
    try:
        yield path
    finally:
        path.unlink()
        done = rehearse("down", stack=name)
        assert done.returncode == 0, done.stderr


def make_weights(directory: Path, model: str = MODEL) -> Path:
    """Write a model that passes the check of weights into a weightsDirectory and return the model's directory."""
    weights = directory / model.replace("/", "--")
    weights.mkdir(parents=True)
    header = json.dumps({"t": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}).encode()
    for shard in SHARDS:
        (weights / shard).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    index = {"metadata": {"total_size": 128}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    (weights / "config.json").write_text("{}")
    (weights / "tokenizer.json").write_text("{}")
    for path in (weights, *weights.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return weights


def traces(stack: str, *directories: Path) -> dict[str, list[str]]:
    """List by kind what a stack could leave on a server or in `directories`, without items of other stacks.

    The kinds are containers, networks, packet filters, files (with mode, owner and size), packages and groups.
    """
    client = docker.from_env()
    found = {
        "containers": [str(container.name) for container in client.containers.list(all=True) if _is_ours(container)],
        "networks": [str(network.name) for network in client.networks.list()],
        "packet filters": _output("nft", "list", "tables"),
        "files": [line for path in (*SERVER_DIRECTORIES, *directories) for line in _files(path)],
        "packages": _output("dpkg-query", "--show"),
        "groups": Path("/etc/group").read_text().splitlines(),
    }
    return {kind: sorted(item for item in items if not _of_another(stack, item)) for kind, items in found.items()}


def _is_ours(container: Container) -> bool:
    """Return True if this project created the container, by name or label: others may run beside it."""
    return any("elastic-vllm" in text for text in (str(container.name), *container.labels))


def _of_another(stack: str, item: str) -> bool:
    ours = stack in item or stack.replace("-", "_") in item
    return not ours and any(mark in item for mark in ("elastic-vllm", "elastic_vllm"))


def _output(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _files(directory: Path) -> list[str]:
    found = []
    for path in [directory, *directory.rglob("*")]:
        try:
            status = path.lstat()
        except FileNotFoundError:  # missing, or deleted by another stack meanwhile
            continue
        size = status.st_size if path.is_file() else 0
        found.append(f"{path} {status.st_mode:o} {status.st_uid}:{status.st_gid} {size}")
    return found

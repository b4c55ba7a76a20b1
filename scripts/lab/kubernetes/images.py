"""Images on the cluster's nodes: two of static programs, and those that this machine's Docker has."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from components.errors import UserError
from scripts.lab.kubernetes import machines
from scripts.lab.kubernetes.layout import PROGRAMS, Machine

RECORD = "images.json"
"""In a node's directory: image -> Docker's id of what was imported under this name."""


def archive(name: str, program: Path) -> bytes:
    """Return an archive, as of `docker save`, of an image that has one static program and runs it as root."""
    layer = _tar({program.name: (program.read_bytes(), 0o755)})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config), "manifest.json": json.dumps(manifest)}
    return _tar({"layer.tar": (layer, 0o644), **{path: (text.encode(), 0o644) for path, text in files.items()}})


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Return a tar with these files: path -> content and mode."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def import_program(node: Machine, name: str, program: Path) -> bool:
    """Give a node the image of a static program; return False if it has it."""
    content = program.read_bytes()
    if _record(node).get(name) == (identity := sha256(content).hexdigest()):
        return False
    with subprocess.Popen(
        _import(node), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as load:
        output, _ = load.communicate(archive(name, program))
    _check(node, name, load.returncode, output)
    _note(node, name, identity)
    return True


def import_from_docker(nodes: Sequence[Machine], name: str, say: Callable[[str], None]) -> bool:
    """Give every node an image that Docker has on this machine; return False if all have it. Raises UserError.

    The vLLM image (5 GB) takes some minutes on two cores. Docker writes all of an image to the disk before it sends the
    first byte, so it does that once, for the first node, and the others take the image from there.
    """
    inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", name]
    found = subprocess.run(inspect, capture_output=True, text=True, check=False)
    if found.returncode:
        if all(name in _record(node) for node in nodes):
            return False  # Docker may have ended meanwhile
        fix = "scripts/rehearse setup makes the images"
        raise UserError(f"Docker has no image {name} here: {found.stderr.strip()}", fix)
    identity = found.stdout.strip()
    lacking = [node for node in nodes if _record(node).get(name) != identity]
    having = [node for node in nodes if node not in lacking]
    for node in lacking:
        source = [*_ctr(having[0]), "export", "-", name] if having else ["docker", "save", name]
        say(f"importing it on {node.name} from {having[0].name if having else 'Docker'}")
        with subprocess.Popen(source, stdout=subprocess.PIPE) as save:
            load = subprocess.run(
                _import(node), stdin=save.stdout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
        _check(node, name, load.returncode or save.returncode, load.stdout)
        _note(node, name, identity)
        having.append(node)
    return bool(lacking)


def name_on(nodes: Sequence[Machine], image: str, name: str) -> None:
    """Give an image that nodes have another name, such as that in a registry. Raises UserError."""
    for node in nodes:
        done = subprocess.run([*_ctr(node), "tag", "--force", image, name], capture_output=True, check=False)
        _check(node, name, done.returncode, done.stderr)


def _ctr(node: Machine) -> list[str]:
    return [*machines.enter(node), str(PROGRAMS / "ctr"), "--namespace=k8s.io", "images"]


def _import(node: Machine) -> list[str]:
    return [*_ctr(node), "import", "-"]


def _check(node: Machine, name: str, code: int, output: bytes) -> None:
    if code:
        last = output.decode(errors="replace").strip()[-300:]
        raise UserError(f"{node.name} can't import the image {name}: {last}", f"see {node.logs}/containerd.log")


def _record(node: Machine) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(node.file(RECORD).read_text())
    except FileNotFoundError:
        return {}
    return found


def _note(node: Machine, name: str, identity: str) -> None:
    node.file(RECORD).write_text(json.dumps(_record(node) | {name: identity}))

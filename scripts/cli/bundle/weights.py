"""Weights of the model in a bundle: the files of one revision in a dedicated directory."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components import render
from components.bundle import manifest
from components.catalogue.models import Model
from components.catalogue.sizing import GB
from components.errors import UserError
from scripts.cli.bundle.wanted import Say, Wanted
from scripts.lib.errors import BadInputError


def from_hub(model: Model, revision: str, endpoint: str) -> Wanted:
    """Return a model's files of one commit, checked against the hub's checksums; an interrupted download resumes."""

    def make(path: Path, say: Say) -> None:
        path.mkdir(parents=True, exist_ok=True)
        script = (render.FILES / "weights/download_weights.py").read_text(encoding="utf-8")
        # It ends with this process: two at once would write to the same files. -P: import nothing from this directory.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            sys.executable,
            "-P",
            "-c",
            script,
            model.name,
            revision,
            str(path),
        ]
        command += [json.dumps(list(model.unneeded_files)), "elastic-vllm-bundle"]
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": "/nonexistent",
        }
        # The token goes by standard input only.
        token = environment.pop("HF_TOKEN", "")
        pipe, same = subprocess.PIPE, subprocess.STDOUT
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=same, text=True, env=environment) as process:
            assert process.stdin  # noqa: S101 - asked for
            assert process.stdout  # noqa: S101 - asked for
            process.stdin.write(token)
            process.stdin.close()
            last_line = ""
            for line in process.stdout:
                last_line = line.strip() or last_line
                say(last_line)
        if process.returncode:
            cause, _, fix = last_line.partition("; fix: ")
            fix = fix.replace("hfToken to a token", "the environment variable HF_TOKEN to a token")
            raise UserError(cause, fix or "see its last line")

    return Wanted(
        name="weights",
        directory=directory(model, revision),
        source=f"{endpoint}/{model.name}/tree/{revision}",
        bytes=lambda: int(model.weights_gb * GB),
        make=make,
        licence=model.licence,
        about={"model": model.name, "revision": revision},
    )


def from_directory(model: Model, given: Path) -> Wanted:
    """Return a model's files from a local directory; `revision` is derived from their names and content."""
    sums = checksums(given)
    revision = revision_of(sums)
    files = {given / name: checksum for name, checksum in sums.items()}

    def make(path: Path, say: Say) -> None:
        targets = {file: path / file.relative_to(given) for file in files}
        for stranger in {each for each in path.rglob("*") if each.is_file()} - set(targets.values()):
            stranger.unlink()
        for number, (file, target) in enumerate(targets.items(), 1):
            say(f"{number} of {len(files)} files")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file() and manifest.sha256(target) == files[file]:
                continue
            shutil.copyfile(file, target)
            if manifest.sha256(target) != files[file]:
                raise UserError(f"{file} changed while it was copied", "run the same again")

    return Wanted(
        name="weights",
        directory=directory(model, revision),
        source=f"{model.name}, {revision}",
        bytes=lambda: sum(file.stat().st_size for file in files),
        make=make,
        licence=model.licence,
        about={"model": model.name, "revision": revision},
    )


def checksums(given: Path) -> dict[str, str]:
    """Return the checksum of each file in a model's directory, by its path there. Raises BadInputError."""
    files = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else []
    if not any(path.suffix == ".safetensors" for path in files):
        raise BadInputError(f"--weights {given}: no .safetensors file in it", "give the model's own directory")
    # Python hashes without its lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = list(pool.map(manifest.sha256, files))
    return {path.relative_to(given).as_posix(): checksum for path, checksum in zip(files, sums, strict=True)}


def revision_of(sums: Mapping[str, str]) -> str:
    """Return a name for the content of a directory."""
    return f"files-{hashlib.sha256(json.dumps(list(sums.items())).encode()).hexdigest()[:16]}"


def directory(model: Model, revision: str) -> str:
    """Return the directory of one revision's files in a bundle."""
    return f"weights/{model.directory_name}--{revision[:12]}"

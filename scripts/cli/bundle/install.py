"""Install this project's Python packages and the Pulumi CLI from a bundle: nothing is fetched.

This module needs Python's own library only: nothing of the bundle is installed yet.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from components.bundle import manifest
from components.bundle.manifest import MANIFEST, File, Manifest
from components.errors import UserError
from scripts.lib.errors import report

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / ".pulumi"
"""Directory for PULUMI_HOME: the CLI is in its bin/, as with Pulumi's own installer."""


def packages(directories: Sequence[Path], bundle: Manifest) -> None:
    """Create .venv, unless it already fits. Raises UserError."""
    places = _there(directories, bundle, bundle.parts["wheels"].files)
    found = [*dict.fromkeys(path.parent for path in places.values())]
    missing = [file for file in bundle.parts["wheels"].files if file.path not in places]
    with tempfile.TemporaryDirectory() as empty:
        options = [word for place in [*found, empty] for word in ("--wheels", str(place))]
        setup = [str(ROOT / "scripts" / "setup"), "--python", bundle.python, *options]
        done = subprocess.run(setup, check=False)
    if done.returncode and missing:
        raise _needs_base(bundle, missing[0])
    if done.returncode:
        raise UserError("the Python packages can't be installed", "see the lines above")


def pulumi(directories: Sequence[Path], bundle: Manifest) -> bool:
    """Unpack the CLI and install its plugins, if the bundle has them. Raises UserError."""
    if "pulumi" not in bundle.parts:
        return False
    part = bundle.parts["pulumi"]
    stamp = HOME / "from-bundle"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == part.source:
        return True
    places = _there(directories, bundle, part.files)
    for file in part.files:
        if file.path not in places:
            raise _needs_base(bundle, file)
    cli, *plugins = sorted(places.values(), key=lambda path: path.name.startswith("pulumi-resource-"))
    new = HOME / "bin.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        with tarfile.open(cli) as archive:
            archive.extractall(new, filter="data")
    except tarfile.TarError as error:
        raise UserError(f"{cli}: {error}", "verify the bundle") from error
    shutil.rmtree(HOME / "bin", ignore_errors=True)
    (new / "pulumi").rename(HOME / "bin")
    new.rmdir()
    environment = {**os.environ, "PULUMI_HOME": str(HOME), "PULUMI_SKIP_UPDATE_CHECK": "true"}
    for path in plugins:
        name, version = path.name.removeprefix("pulumi-resource-").split("-linux-")[0].split("-v")
        print(f"installing Pulumi's plugin {name} {version}", flush=True)
        command = [str(HOME / "bin" / "pulumi"), "plugin", "install", "resource", name, version, "--file", str(path)]
        done = subprocess.run([*command, "--reinstall"], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            output = " ".join(f"{done.stdout} {done.stderr}".split())[-300:]
            raise UserError(f"Pulumi's plugin {name} can't be installed: {output}", "see its message")
    stamp.write_text(part.source)
    return True


def _there(directories: Sequence[Path], bundle: Manifest, files: Sequence[File]) -> dict[str, Path]:
    """Map paths to files in the bundle, or with the same content in an earlier one. Raises UserError."""
    before = [(place, file) for place in directories[1:] for file in manifest.read(place).carried]
    known = {file.sha256: place / file.path for place, file in before}
    places = {}
    for file in files:
        path = directories[0] / file.path if file.carried else known.get(file.sha256)
        if path is None:
            continue
        if not path.is_file() or manifest.sha256(path) != file.sha256:
            raise UserError(
                f"{path}: missing or altered", "run scripts/elastic-vllm bundle verify, and carry it over again"
            )
        places[file.path] = path
    return places


def _needs_base(bundle: Manifest, file: File) -> UserError:
    return UserError(
        f"this delta leaves out {file.path}, and it is not installed here either",
        f"give the bundle before it too: --base DIR, whose {MANIFEST} has SHA-256 {bundle.since}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, and end with an exit status of scripts/lib/errors.py."""
    parser = argparse.ArgumentParser(
        prog="scripts/elastic-vllm bundle install",
        description="From a bundle that `bundle verify` accepts, create .venv, and .pulumi if the bundle has the Pulumi"
        " CLI. Nothing is fetched.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the bundle")
    parser.add_argument(
        "--base", metavar="DIR", type=Path, action="append", default=[], help="for a delta: a bundle before it"
    )
    given = parser.parse_args(arguments)
    try:
        directories = [given.directory, *given.base]
        bundle = manifest.read(given.directory)
        packages(directories, bundle)
        there = pulumi(directories, bundle)
    except UserError as error:
        sys.exit(report(error))
    except OSError as error:
        sys.exit(report(UserError(f"it can't be installed: {error}", "correct that, and run the same again")))
    print(f"installed: .venv{', .pulumi' if there else ''}")
    if there:
        print('before pulumi is run: export PULUMI_HOME="$PWD/.pulumi" PATH="$PWD/.pulumi/bin:$PATH"')


if __name__ == "__main__":
    main()

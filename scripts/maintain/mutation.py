"""Mutation testing: unit tests must notice changes in code that renders, reads settings and writes payloads.

mutmut makes the mutants, in a copy of the project; a sample of them, the same for the same seed, is tried within the
time limit. Surviving mutants are listed with their difference, for review.
"""

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutation"
ENVIRONMENT = ROOT / ".venv" / "mutation"
REQUIREMENTS = ROOT / "tests" / "support" / "requirements-mutation.txt"
LEAST_PERCENT = 85
MODULES = (
    "settings/acme",
    "elastic/payloads",
    "settings/elastic",
    "serving/gateway_errors",
    "settings/gcp",
    "settings/keys",
    "settings/limits",
    "settings/model",
    "catalogue/models",
    "settings/pem",
    "render",
    "settings/problems",
    "settings/stack",
    "settings/ssh",
    "settings/tls",
    "serving/nginx_gateway",
    "serving/vllm_process",
    "serving/vllm_server",
)
TESTS = (
    "components/settings/test_acme_settings",
    "components/settings/test_bundle_settings",
    "components/containers/test_containers",
    "components/elastic/test_elastic_payloads",
    "components/settings/test_elastic_settings",
    "components/settings/test_gcp_settings",
    "components/settings/test_limits",
    "components/catalogue/test_models",
    "components/containers/test_podman",
    "components/test_render",
    "components/settings/test_settings",
    "components/settings/test_setting_messages",
    "lib/test_stack_settings",
    "components/settings/test_tls_settings",
)
"""The tests of this code; tests of the whole program would take too long for each mutant."""
COPIED = (
    ".git",
    ".gitignore",
    "Pulumi.yaml",
    "__main__.py",
    "stacks",
    "scripts",
    "README.md",
    "docs",
    "Makefile",
    "components",
)
CONFIGURATION = """
[tool.mutmut]
source_paths = ["components"]
only_mutate = [{modules}]
also_copy = [{copied}]
pytest_add_cli_args = ["--quiet", "-p", "no:cacheprovider", "-p", "no:xdist"]
pytest_add_cli_args_test_selection = [{tests}]
process_isolation = "forkserver"
"""
# Classes of resources, which only tests of the whole program cover.
LEFT_OUT = ("NginxGatewayǁ", "VllmServerǁ", "x__config_files__")
SURVIVED, UNTESTED, UNDECIDED = 0, 33, (None, 34, 35, -11, 255)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    *,
    minutes: Annotated[int, typer.Option(help="Time limit for the whole run.", min=2)] = 30,
    sample: Annotated[int, typer.Option(help="Mutants to try; 0 tries all.", min=0)] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the random sample.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the copy and results of the last run.")] = False,
) -> None:
    """Try a sample of mutants; the exit status is 1 if the tests notice fewer than 85 % of them."""
    end = time.monotonic() + 60 * minutes
    python = _environment()
    if not resume or not WORK.exists():
        _copy()
    if not _results():
        # Trying one mutant generates them all.
        _mutmut(python, end, "components.settings.limits.x_limits__mutmut_1")
    names = sorted(name for name in _results() if not any(part in name for part in LEFT_OUT))
    chosen = random.Random(seed).sample(names, min(sample or len(names), len(names)))  # noqa: S311 - a sample, no secret
    console.print(f"{len(names)} mutants, {len(chosen)} of them chosen")
    left = [name for name in chosen if _results()[name] is None]
    if left:
        _mutmut(python, end, *left)
    results = {name: code for name, code in _results().items() if name in set(chosen) and code not in UNDECIDED}
    counts = Counter({SURVIVED: "survived", UNTESTED: "no test"}.get(code or 0, "noticed") for code in results.values())
    for name in sorted(name for name, code in results.items() if code in {SURVIVED, UNTESTED}):
        shown = subprocess.run([python, "-m", "mutmut", "show", name], cwd=WORK, env=_variables(), capture_output=True)  # noqa: PLW1510 - only shown
        console.print(f"\n{name}\n{shown.stdout.decode().strip()}", markup=False)
    if not results:
        console.print("mutation: no mutant was tried within the time limit; increase --minutes")
        raise typer.Exit(1)
    percent = 100 * counts["noticed"] / len(results)
    console.print(f"\n{len(results)} tried: {dict(counts)}; score {percent:.1f} %, {LEAST_PERCENT} required")
    raise typer.Exit(percent < LEAST_PERCENT)


def _environment() -> str:
    """Install mutmut into a separate environment that also sees our packages, and return its Python."""
    stamp = ENVIRONMENT / "requirements.txt"
    python = str(ENVIRONMENT / "bin" / "python")
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        subprocess.run([str(ROOT / ".venv/bin/python"), "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = ["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(REQUIREMENTS)]
        subprocess.run([python, "-m", "pip", *install], check=True)
        shutil.copy(REQUIREMENTS, stamp)
    return python


def _variables() -> dict[str, str]:
    (packages,) = (ROOT / ".venv" / "lib").glob("python3*/site-packages")
    return {**os.environ, "PYTHONPATH": str(packages)}


def _copy() -> None:
    """Copy the project's tracked files into a separate repository: tests ask git for the stack files."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    stacks = subprocess.run(["git", "ls-files", "stacks"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        # Users keep their own stack files beside the repository's.
        own = name.startswith("stacks/") and name not in stacks.splitlines()
        if not own and (ROOT / name).is_file():
            (WORK / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, WORK / name)
    quoted = {
        "modules": [f"components/{name}.py" for name in MODULES],
        "copied": COPIED,
        "tests": [f"tests/unit/{name}.py" for name in TESTS],
    }
    filled = {key: ", ".join(f'"{each}"' for each in values) for key, values in quoted.items()}
    with (WORK / "pyproject.toml").open("a") as file:
        file.write(CONFIGURATION.format(**filled))
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=WORK, check=True)


def _mutmut(python: str, end: float, *names: str) -> None:
    """Try these mutants until the time limit, with the output in the log."""
    command = [python, "-m", "mutmut", "run", "--max-children", str(os.cpu_count() or 1), *names]
    with (WORK / "mutmut.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=WORK, env=_variables(), stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            console.print("the time limit is reached")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 15)
                process.wait()
    results = _results()
    if not results:
        tail = (WORK / "mutmut.log").read_bytes().decode(errors="replace").replace("\r", "\n").splitlines()[-20:]
        console.print("\n".join(tail), markup=False)
        raise typer.Exit(1)
    tried = [code for code in results.values() if code is not None]
    console.print(f"tried {len(tried)}, survived {tried.count(SURVIVED)}")


def _results() -> dict[str, int | None]:
    """Map each mutant to pytest's exit status with it; None: not tried."""
    found: dict[str, int | None] = {}
    for path in sorted((WORK / "mutants" / "components").glob("*.meta")):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


if __name__ == "__main__":
    app(prog_name="scripts.maintain.mutation")

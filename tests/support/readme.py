"""README's commands: all that it tells people to type, and which of them a test runs as they stand there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("make", "scripts/", "pulumi", "gcloud", "docker", "rm", "export", ".venv/")
NO_COMMANDS = frozenset({"pulumi", "pulumi-tls", "pulumi up", "rm -r", "docker image rm", "scripts/", "docker load"})
"""Words that name a program or what another command does."""

ON_LOCAL = (
    "make help",
    "scripts/setup",
    "make rehearse",
    "docker logs elastic-vllm-STACK-nginx",
    "scripts/rehearse up",
    "scripts/rehearse verify",
    "scripts/rehearse outputs --json --show-secrets",
    "docker rm -f elastic-vllm-STACK-vllm",
    "scripts/rehearse up --set model=rehearsal/tiny-2",
    "scripts/rehearse down",
    "scripts/rehearse setup",
    "make down",
)
"""In this order, by tests/integration/test_readme.py; STACK is local."""
ON_PROD = (
    "scripts/rehearse up --stack prod",
    "scripts/elastic-vllm verify --stack prod",
    "scripts/elastic-vllm handoff --stack prod",
    "scripts/elastic-vllm diagnose --stack prod",
    "scripts/elastic-vllm rotate --stack prod",
    "scripts/rehearse lose --stack prod",
)
"""The same, on the rehearsed stack prod."""
BY_CI = ("make test", "make unit")
"""What runs these tests, or is a part of it."""
NEEDS = {
    "pulumi ": "Pulumi",
    "export PULUMI_": "Pulumi",
    "scripts/elastic-vllm bring-back": "Pulumi",
    "scripts/elastic-vllm tunnel": "Google",
    "gcloud ": "Google",
    "scripts/elastic-vllm preflight": "Google",
    "scripts/elastic-vllm pin": "the internet",
    "scripts/elastic-vllm bundle": "a disk to carry: tests/integration/test_bundle.py",
    "scripts/rehearse up --stack X": "a stack of its own: tests/integration/test_podman.py",
    "scripts/elastic-vllm handoff --stack prod --key siem": "a key of that name: tests/integration/test_rotate.py",
    "make bench": "minutes",
    "make prove": "hours",
    "make drills": "minutes",
    ".venv/bin/python -m scripts.maintain.mutation": "most of an hour",
    ".venv/bin/python -m scripts.maintain.soak": "minutes",
    ".venv/bin/python -m scripts.maintain.bench": "minutes",
}
"""Beginning of a command -> what tests do not have."""


def commands() -> set[str]:
    """Every command in README: lines of code blocks, and code within sentences, that begin with one of PROGRAMS."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"(?ms)^ *```(?:mermaid|yaml)$.*?^ *```$", "", text)
    # A table of the repository's files looks like a block of commands.
    text = text.partition("\n## Repository\n")[0]
    blocks = re.findall(r"(?m)^ {4,}(\S.*)$", text)
    sentences = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    found = {line.partition("  #")[0].partition(" # ")[0].strip() for line in (*blocks, *sentences)}
    # A file is not a command: scripts/NAME.py.
    return {line for line in found if line.startswith(PROGRAMS) and not line.endswith(".py")} - NO_COMMANDS


def on_stack(command: str, stack: str) -> str:
    """The command with what it leaves open filled in."""
    return command.replace("STACK", stack)

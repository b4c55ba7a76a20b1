"""The repository's documents: their links, and the commands that they tell people to type."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("make ", "scripts/", "pulumi ", "gcloud ", "docker ", "podman ", "export ", "git ", ".venv/")
FENCE = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^\1```$")

ON_LOCAL = (
    "make help",
    "scripts/setup",
    "make rehearse",
    "docker logs elastic-vllm-STACK-nginx",
    "docker logs elastic-vllm-STACK-vllm",
    "scripts/rehearse up",
    "scripts/rehearse verify",
    "scripts/rehearse outputs --json --show-secrets",
    "docker rm -f elastic-vllm-STACK-vllm",
    "scripts/rehearse up --set model=rehearsal/tiny-2",
    "scripts/rehearse down",
    "scripts/rehearse setup",
    "make down",
)
"""Commands that tests/integration/test_documents.py runs in this order; STACK is local."""
ON_PROD = (
    "scripts/rehearse up --stack prod",
    "scripts/elastic-vllm verify --stack prod",
    "scripts/elastic-vllm handoff --stack prod",
    "scripts/elastic-vllm diagnose --stack prod",
    "scripts/elastic-vllm rotate --stack prod",
    "scripts/elastic-vllm rotate --stack prod --status",
    "scripts/rehearse lose --stack prod",
)
"""Commands that it runs on the rehearsed stack prod."""
BY_CI = ("make test", "make unit", "make docs")
"""Commands that run these tests, or that these tests are a part of."""
NEEDS = {
    "pulumi ": "the Pulumi CLI",
    "export PULUMI_": "the Pulumi CLI",
    "scripts/elastic-vllm bring-back": "the Pulumi CLI",
    "scripts/elastic-vllm tunnel": "Google Cloud",
    "gcloud ": "Google Cloud",
    "scripts/elastic-vllm preflight": "Google Cloud",
    "scripts/elastic-vllm load": "minutes of load: tests/integration/test_load.py",
    "scripts/elastic-vllm pin": "the internet",
    "scripts/elastic-vllm bundle": "a disk to carry: tests/integration/test_bundle.py",
    "scripts/elastic-vllm verify --stack cluster": "a cluster with GPUs",
    "scripts/elastic-vllm verify --stack gke": "a cluster with GPUs",
    "scripts/elastic-vllm gke-credentials": "Google Cloud",
    "scripts/rehearse up --stack k8s": "a cluster: tests/integration/test_kubernetes.py",
    "scripts/rehearse down --stack k8s": "a cluster: tests/integration/test_kubernetes.py",
    "scripts/rehearse up --stack gke": "a cluster: tests/integration/test_gke.py",
    "scripts/rehearse down --stack gke": "a cluster: tests/integration/test_gke.py",
    "scripts/rehearse up --stack X": "a separate stack: tests/integration/test_podman.py",
    "scripts/elastic-vllm handoff --stack prod --key siem": "a key with that name: tests/integration/test_rotate.py",
    "podman system service": "a server without systemd",
    "sudo systemctl daemon-reload": "a server of one's own",
    "sudo cp company-ca.pem": "a company's CA",
    "git diff": "a change",
    "git lfs pull": "a repository with Git LFS",
    "make pins": "the internet",
    "make kubernetes": "a build of Kubernetes: tests/integration/test_cluster.py",
    "scripts/rehearse cluster": "a build of Kubernetes: tests/integration/test_cluster.py",
    "make bench": "minutes",
    "make prove": "hours",
    "make drills": "minutes",
    ".venv/bin/python -m scripts.maintain.mutation": "most of an hour",
    ".venv/bin/python -m pytest": "tests that run tests",
    ".venv/bin/pre-commit install": "a checkout that may get hooks",
}
"""Beginning of a command -> what tests do not have."""

MENTIONED = frozenset(
    {"docker exec", "docker login", "podman login", "docker load", "docker image rm", "docker stop -t 30", "podman run"}
)
"""Words in sentences that say what another command does."""


def documents() -> list[Path]:
    """Every Markdown file of a checkout, those not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in sorted({*listed}) if (ROOT / name).is_file()]


def guides() -> list[Path]:
    """The documents that tell people what to type: all but recorded output and generated help texts."""
    skipped = {ROOT / "Pulumi.README.md", ROOT / "docs" / "reference" / "commands.md"}
    return [path for path in documents() if "tests" not in path.relative_to(ROOT).parts and path not in skipped]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for _, language, content in FENCE.findall(text):
        yield language, content


def commands(text: str) -> set[str]:
    """Every command in a document: lines of `sh` blocks, and code in sentences that begins with one of PROGRAMS."""
    typed = [line for language, content in blocks(text) if language == "sh" for line in content.splitlines()]
    sentences = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    quoted = [code for code in sentences if code.startswith(PROGRAMS) and " " in code]
    return {line.strip() for line in typed if line.strip()} | {*quoted} - MENTIONED


def links(text: str) -> list[str]:
    """The targets of a document's links, without those in code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return re.findall(r"\]\(([^()\s]+)\)", prose)


def anchors(text: str) -> set[str]:
    """The anchors that the code host makes of a document's headings."""
    found: set[str] = set()
    for title in re.findall(r"(?m)^#+ +(.*?)\s*$", FENCE.sub("", text)):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = 1
        unique = slug
        while unique in found:
            unique, number = f"{slug}-{number}", number + 1
        found.add(unique)
    return found


def on_stack(command: str, stack: str) -> str:
    """The command with the placeholder STACK filled in."""
    return command.replace("STACK", stack)

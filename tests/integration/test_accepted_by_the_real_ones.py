"""Nginx and vLLM themselves accept what tests/golden shows, for models and GPUs that no test can run as well."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from components.render import FILES
from components.serving.nginx_config import METRICS_DIRECTORY
from components.serving.vllm_process import NGINX_UID, SOCKET_GID
from tests.integration.conftest import ROOT, Deployment

GOLDEN = ROOT / "tests" / "golden"
ENTRYPOINT = 4  # /bin/sh -c PROGRAM SOCKET; the program takes several lines
COMMAND_LINES = {
    title.removeprefix("# "): shlex.split(" ".join(lines))[ENTRYPOINT:]
    for title, *lines in map(str.splitlines, (GOLDEN / "vllm-command-lines.txt").read_text().strip().split("\n\n"))
}
WRONG_ARGUMENTS = {
    "no such argument": ["--no-such-argument"],
    "no number": ["--tensor-parallel-size", "two"],
    "no such tool-call parser": ["--enable-auto-tool-choice", "--tool-call-parser", "no-such"],
    "no such reasoning parser": ["--reasoning-parser", "no-such"],
    "no tool-call parser": ["--enable-auto-tool-choice"],
    "no such chat template": ["--chat-template", "/no/such.jinja"],
}

# The part of vLLM that checks arguments before it looks for GPUs and weights. Prints title -> refusal.
PARSE = """
import contextlib, io, json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.reasoning import ReasoningParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

def refused(arguments):
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        # The one exemption: only the images for GPUs have these files.
        if (args.chat_template or "").startswith("/vllm-workspace/examples/"):
            args.chat_template = None
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
        # The server reads the name from the engine's configuration, which needs the weights.
        if args.reasoning_parser and args.reasoning_parser not in ReasoningParserManager.list_registered():
            return "invalid reasoning parser: " + args.reasoning_parser
    except SystemExit:
        return messages.getvalue() or "exit"
    except Exception as error:
        return repr(error)

print(json.dumps({title: refused(arguments) for title, arguments in json.load(sys.stdin).items()}))
"""


def run_in(image: str, command: list[str], *options: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    confined = ["--network", "none", "--read-only", "--tmpfs", "/tmp:exec", "--env", "HOME=/tmp"]
    docker_run = ["docker", "run", "--rm", "--interactive", *confined, *options, image, *command]
    return subprocess.run(docker_run, input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def refused(deployed: Deployment) -> dict[str, str | None]:
    """Map the title of each command line to vLLM's reason for refusing it."""
    image = str(deployed.vllm.attrs["Image"])
    done = run_in(image, ["python3", "-c", PARSE], stdin=json.dumps({**COMMAND_LINES, **WRONG_ARGUMENTS}))
    assert done.returncode == 0, done.stderr
    answer: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("title", COMMAND_LINES)
def test_vllm_accepts_the_golden_command_line(title: str, refused: dict[str, str | None]) -> None:
    assert refused[title] is None


@pytest.mark.parametrize("title", WRONG_ARGUMENTS)
def test_vllm_refuses_a_wrong_one(title: str, refused: dict[str, str | None]) -> None:
    assert WRONG_ARGUMENTS[title][-1] in str(refused[title])


@pytest.fixture
def nginx_config(tmp_path: Path) -> Path:
    """Directory with the golden files, laid out as on a server, and a certificate made for the test."""
    for name in ("nginx.conf", "keys.conf"):
        (tmp_path / name).write_text((GOLDEN / name).read_text())
    (tmp_path / "metrics.conf").write_text((FILES / "nginx/nginx-metrics.conf").read_text())
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", "private-key.pem", "-out", "certificate.pem", "-subj", "/CN=test", "-days", "1"]
    subprocess.run([*certificate, *files], cwd=tmp_path, check=True, capture_output=True)
    for path in (tmp_path, *tmp_path.iterdir()):
        os.chown(path, NGINX_UID, SOCKET_GID)
    return tmp_path


def nginx_test_output(deployed: Deployment, config: Path) -> list[str]:
    image = str(deployed.nginx.attrs["Image"])
    options = ["--volume", f"{config}:/config:ro", "--user", f"{NGINX_UID}:{SOCKET_GID}"]
    options += ["--tmpfs", f"{METRICS_DIRECTORY}:mode=1777"]
    done = run_in(image, ["nginx", "-e", "stderr", "-t", "-c", "/config/nginx.conf"], *options)
    return done.stderr.splitlines()


def test_nginx_accepts_the_golden_configuration_without_a_warning(deployed: Deployment, nginx_config: Path) -> None:
    assert nginx_test_output(deployed, nginx_config) == [
        "nginx: the configuration file /config/nginx.conf syntax is ok",
        "nginx: configuration file /config/nginx.conf test is successful",
    ]

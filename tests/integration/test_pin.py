"""Images pinned and pulled with a real registry (Debian's, on loopback), models pinned with a stand-in hub."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import docker
import pytest
import yaml
from docker.errors import ImageNotFound

from scripts.cli import pin
from scripts.lab import hub as hub_stand_in
from scripts.lab import images
from scripts.lab.hub import COMMIT, Hub
from scripts.lib.errors import ExitCode
from tests.support import local_registry
from tests.support.commands import invoke
from tests.support.local_registry import Registry
from tests.support.program import configuration, run

pytestmark = pytest.mark.usefixtures("machine")

MODEL = "acme/tiny"
VLLM, NGINX = "team/vllm:v0.32.0", "team/nginx:1.30.6"
LOCAL_NAME = "localhost/elastic-vllm/pulled:test"


@pytest.fixture(scope="module")
def registry(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with local_registry.running(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


# Digests


def test_an_image_is_pinned_by_the_registrys_own_digest(registry: Registry) -> None:
    digest = registry.push("team/one:1.0.0", b"one")
    assert pin.image_digest(f"{registry.host}/team/one:1.0.0") == digest


def test_an_image_for_many_platforms_is_pinned_by_its_index(registry: Registry) -> None:
    digests = [registry.push(f"team/many:{platform}", platform.encode()) for platform in ("amd64", "arm64")]
    index = registry.push_index("team/many:1.0.0", *digests)
    assert pin.image_digest(f"{registry.host}/team/many:1.0.0") == index


class _WithToken(BaseHTTPRequestHandler):
    """A registry that demands a token, which it issues to every client that asks."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.headers["Authorization"] == "Bearer for-pull":
            self.answer(200, Docker_Content_Digest=f"sha256:{'5' * 64}")
        else:
            realm = f"http://127.0.0.1:{self.server.server_port}/token"  # type: ignore[attr-defined]
            challenge = f'Bearer realm="{realm}",service="here",scope="repository:team/private:pull"'
            self.answer(401, WWW_Authenticate=challenge)

    def do_GET(self) -> None:
        assert self.path == "/token?service=here&scope=repository%3Ateam%2Fprivate%3Apull"
        self.answer(200, b'{"token": "for-pull"}')

    def answer(self, status: int, content: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_registry_that_demands_a_token_gets_one() -> None:
    with serving(_WithToken) as host:
        assert pin.image_digest(f"{host}/team/private:1.0.0") == f"sha256:{'5' * 64}"


# The stack's file

STACK_FILE = """\
# What this stack is for.
config:
  elastic-vllm:host: llm.example.com
  elastic-vllm:sshPrivateKeyPath: ~/.ssh/id  # no passphrase

  # Which images: pinned by scripts/elastic-vllm pin.
  elastic-vllm:vllmImage: {host}/{vllm}
  elastic-vllm:nginxImage: "{host}/{nginx}"
  elastic-vllm:model: {model} # not in the catalogue
  elastic-vllm:weightsGb: 1
  elastic-vllm:vllmExtraArgs:
    - --enforce-eager
  elastic-vllm:hfEndpoint: {endpoint}
  elastic-vllm:modelRevision: ""
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_stand_in.running(MODEL, {"config.json": b"{}"}) as hub:
        yield hub


@pytest.fixture
def digests(registry: Registry) -> dict[str, str]:
    return {name: registry.push(name, name.encode()) for name in (VLLM, NGINX)}


@pytest.fixture
def file(tmp_path: Path, registry: Registry, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File of a stack in a project made for the test."""
    monkeypatch.setattr(pin, "ROOT", tmp_path)
    path = tmp_path / "stacks" / "Pulumi.pinned.yaml"
    path.parent.mkdir()
    path.write_text(STACK_FILE.format(host=registry.host, vllm=VLLM, nginx=NGINX, model=MODEL, endpoint=hub.endpoint))
    return path


def run_pin(*arguments: str, stack: str = "pinned") -> tuple[int, str]:
    """Return the exit code and all output."""
    done = invoke("pin", "--stack", stack, *arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_what_is_pinned_is_recorded_and_all_else_in_the_file_stays(
    file: Path, registry: Registry, digests: dict[str, str]
) -> None:
    before = file.read_text()
    assert run_pin()[0] == 0
    expected = before.replace('modelRevision: ""', f'modelRevision: "{COMMIT}"')
    for name, digest in digests.items():
        expected = expected.replace(f"{registry.host}/{name}", f"{registry.host}/{name}@{digest}")
    assert file.read_text() == expected


def test_what_is_pinned_is_accepted_by_the_settings(file: Path, digests: dict[str, str], tmp_path: Path) -> None:
    assert run_pin()[0] == 0
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    recorded = yaml.safe_load(file.read_text())["config"]
    values = {name.removeprefix("elastic-vllm:"): value for name, value in recorded.items()}
    keys = {"sshPrivateKeyPath": str(key), "sshHostKey": key.with_suffix(".pub").read_text()}
    found = run(configuration(None, values | keys), stack="pinned").resources
    assert found["runtime-vllm-image"].inputs["name"].endswith(f"{VLLM}@{digests[VLLM]}")


def test_a_tag_that_has_moved_is_pinned_again(file: Path, registry: Registry, digests: dict[str, str]) -> None:
    assert run_pin()[0] == 0
    moved = registry.push(NGINX, b"a newer one")
    assert run_pin()[0] == 0
    assert f"{NGINX}@{moved}" in file.read_text()
    assert digests[NGINX] not in file.read_text()


@pytest.mark.usefixtures("digests")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vllm", "{host}/team/vllm:v9.9.9"], ["no answer for {host}/team/vllm:v9.9.9: 404", "(vllmImage)"]),
        (["--nginx", "127.0.0.1:9/nginx:1.30.6"], ["no answer for 127.0.0.1:9/nginx:1.30.6", "(nginxImage)"]),
    ],
    ids=["no such tag", "no registry"],
)
def test_an_image_that_cannot_be_pinned_is_one_error(
    arguments: list[str], words: list[str], file: Path, registry: Registry
) -> None:
    before = file.read_text()
    result = run_pin(*(argument.format(host=registry.host) for argument in arguments))
    assert failed(result, *(word.format(host=registry.host) for word in words))
    assert file.read_text() == before


def unknown(_: Hub, text: str) -> str:
    return text.replace(MODEL, "acme/typo")


def out_of_reach(hub: Hub, text: str) -> str:
    return text.replace(hub.endpoint, "http://127.0.0.1:9")


@pytest.mark.usefixtures("digests")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unknown, ["the hub refused acme/typo", "check the model's name"]),
        (out_of_reach, ["the hub does not answer", "check hfEndpoint"]),
    ],
)
def test_a_model_that_cannot_be_pinned_is_one_error(
    change: Callable[[Hub, str], str], words: list[str], file: Path, hub: Hub
) -> None:
    file.write_text(change(hub, file.read_text()))
    before = file.read_text()
    assert failed(run_pin(), *words)
    assert file.read_text() == before


def failed(result: tuple[int, str], *words: str) -> bool:
    """Return True if the output ends with one line for the cause and one for the fix, with these words."""
    exit_code, output = result
    problem, fix = output.splitlines()[-2:]
    assert problem.startswith("error: ")
    assert fix.startswith("  fix: ")
    assert output.count("error: ") == 1
    return exit_code in {ExitCode.FAILED, ExitCode.BAD_INPUT} and all(word in f"{problem}\n{fix}" for word in words)


def test_a_missing_stack_is_reported() -> None:
    exit_code, output = run_pin(stack="no-such-stack")
    assert exit_code == ExitCode.BAD_INPUT
    assert "there is no stacks/Pulumi.no-such-stack.yaml" in output


# The rehearsal's images


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=120)
    yield client
    try:
        for reference in {LOCAL_NAME, *client.images.get(LOCAL_NAME).attrs["RepoDigests"]}:
            client.images.remove(reference, force=True)
    except ImageNotFound:
        return


@pytest.fixture
def messages(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages of the rehearsal, whose registry is this one, and which builds nothing."""
    messages: list[str] = []
    monkeypatch.setattr(images, "NGINX_REGISTRY_IMAGE", f"{registry.host}/{NGINX}")
    monkeypatch.setattr(images, "_build", lambda *_: messages.append("built"))
    return messages


def test_a_rehearsal_pulls_by_digest(
    client: docker.DockerClient, registry: Registry, digests: dict[str, str], messages: list[str]
) -> None:
    images.ensure_nginx_image(client, LOCAL_NAME, messages.append)
    found = client.images.get(LOCAL_NAME)
    assert found.attrs["RepoDigests"] == [f"{registry.host}/team/nginx@{digests[NGINX]}"]
    # Pulled by its tag, it could be another image than the one that was asked for, and Docker would show that tag.
    assert found.tags == [LOCAL_NAME]
    assert "built" not in messages


def test_a_rehearsal_pulls_an_image_once(
    client: docker.DockerClient, digests: dict[str, str], messages: list[str]
) -> None:
    images.ensure_nginx_image(client, LOCAL_NAME, messages.append)
    messages.clear()
    images.ensure_nginx_image(client, LOCAL_NAME, messages.append)
    assert messages == []


def test_a_rehearsal_builds_what_the_registry_does_not_have(
    client: docker.DockerClient, registry: Registry, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "NGINX_REGISTRY_IMAGE", f"{registry.host}/team/nothing:1.0.0")
    images.ensure_nginx_image(client, LOCAL_NAME, messages.append)
    assert messages[-1] == "built"
    assert f"{registry.host} refused" in messages[0]

"""Weights from a hub: the program's command and the hub's client, with a stand-in hub on loopback."""

import base64
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import pytest

from components import render
from components.serving.model_weights import DOWNLOAD_UID
from scripts.lab import hub as hub_stand_in
from scripts.lab.hub import COMMIT, Hub
from tests.support.program import HOST_KEY, configuration, run
from tests.support.registered import Secret
from tests.support.shell import Result, bash

pytestmark = pytest.mark.usefixtures("machine")

MODEL = "acme/tiny"
MARK = "elastic-vllm-hub-download"
"""Pattern that finds the downloading process."""
TOKEN = f"hf_{token_hex(16)}"
"""A new one for each run: other tests, which run meanwhile, give theirs to commands that they watch."""
WEIGHTS = "model.safetensors"
# The hub's client writes 10 MiB at a time.
CHUNK = 10 * 2**20
HEADER = b'{"t":{"dtype":"U8","shape":[25000000],"data_offsets":[0,25000000]}}'
WANTED = {
    WEIGHTS: len(HEADER).to_bytes(8, "little") + HEADER + bytes(range(250)) * 100_000,
    "config.json": b'{"model_type": "llama"}\n',
    "tokenizer.json": b"{}",
    "LICENSE": b"",
    "assets/empty": b"",
}
UNNEEDED = {"pytorch_model.bin": b"pickle", "original/params.json": b"{}", "original/consolidated.00.pth": b"pickle"}


@dataclass(frozen=True)
class Download:
    """The command that the program runs on the server for `weights-download`."""

    directory: Path
    """Directory that vLLM serves afterwards."""
    command: str
    stdin: str = field(repr=False)

    def start(self) -> subprocess.Popen[str]:
        """Start the command as sshd does."""
        process = subprocess.Popen(
            ["sh", "-c", self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin
        process.stdin.write(self.stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self) -> Result:
        process = self.start()
        out, err = process.communicate(timeout=120)
        return Result(self.command, process.returncode, out, err)

    def files(self) -> dict[str, bytes]:
        """Return the contents of the directory, except the program's own notes."""
        found = (path for path in self.directory.rglob("*") if path.is_file())
        names = {str(path.relative_to(self.directory)): path for path in found}
        return {name: path.read_bytes() for name, path in names.items() if not name.startswith(".elastic-vllm")}

    @property
    def is_marked_complete(self) -> bool:
        return (self.directory / ".elastic-vllm-complete").exists()


@pytest.fixture(scope="module")
def download_from(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Download]]:
    """Function that returns a download from a hub, with changed settings, to an empty directory by default."""
    keys = tmp_path_factory.mktemp("ssh")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id"], check=True)

    def download(hub: Hub, directory: Path | None = None, **settings: str) -> Download:
        directory = directory or tmp_path_factory.mktemp("models")
        values = {
            "sshPrivateKeyPath": str(keys / "id"),
            "sshHostKey": HOST_KEY,
            "model": MODEL,
            "weightsGb": 1,
            "modelSource": "hub",
            "modelRevision": COMMIT,
            "weightsDirectory": str(directory),
            "hfEndpoint": hub.endpoint,
        }
        resources = run(configuration("test", values | settings), stack="hub").resources
        command = resources["weights-download"].inputs
        stdin = command["stdin"].value if isinstance(command["stdin"], Secret) else command["stdin"]
        served = next(v for v in resources["vllm-container"].inputs["volumes"] if v["containerPath"] == "/model")
        return Download(Path(served["hostPath"]), command["create"], stdin)

    yield download
    for process in downloading():
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_stand_in.running(MODEL, {**WANTED, **UNNEEDED}) as hub:
        yield hub


def failed(result: Result, *words: str) -> bool:
    """Return True if it failed with cause and fix in one line, with these words, and a line with the consequence."""
    lines = result.stderr.splitlines()
    assert len(lines) == 3, result.stderr
    assert re.match(r"elastic-vllm: the weights of \S+ could not be downloaded from http://127.0.0.1:\d+$", lines[1])
    return result.returncode == 1 and "; fix: " in lines[0] and all(word in lines[0] for word in words)


# An undisturbed download


@dataclass(frozen=True)
class Finished:
    result: Result
    download: Download
    hub: Hub


@pytest.fixture(scope="module")
def finished(download_from: Callable[..., Download]) -> Iterator[Finished]:
    with hub_stand_in.running(MODEL, {**WANTED, **UNNEEDED}) as hub:
        download = download_from(hub)
        yield Finished(download.run(), download, hub)


def test_a_download_brings_the_model_unchanged(finished: Finished) -> None:
    assert (finished.result.returncode, finished.result.stderr) == (0, "")
    assert {name: finished.download.files().get(name) for name in WANTED} == WANTED


def test_formats_that_vllm_does_not_load_are_not_downloaded(finished: Finished) -> None:
    assert not finished.download.files().keys() & UNNEEDED.keys()
    assert not [request for request in finished.hub.requests if request.path.endswith(tuple(UNNEEDED))]


def test_downloaded_weights_are_readable_by_the_server(finished: Finished) -> None:
    paths = [finished.download.directory, *finished.download.directory.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o755}


def test_downloaded_weights_pass_the_check_of_weights(finished: Finished) -> None:
    script = (
        render.script("weights/check-weights.sh", weights=str(finished.download.directory))
        + 'check_weights "$WEIGHTS"\n'
    )
    done = subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_download_fetches_nothing_and_says_so(finished: Finished) -> None:
    assert finished.download.is_marked_complete
    before = len(finished.hub.fetched())
    result = finished.download.run()
    assert (result.returncode, result.stdout.split(":")[0]) == (0, "unchanged")
    assert len(finished.hub.fetched()) == before


# A disturbed download


def test_a_download_resumes_after_a_dropped_connection(hub: Hub, download_from: Callable[..., Download]) -> None:
    hub.drop_after[WEIGHTS] = CHUNK + 1_000_000
    download = download_from(hub)
    assert download.run().returncode == 0
    assert download.files() == WANTED
    assert hub.ranges(WEIGHTS) == [None, f"bytes={CHUNK}-"]


def hold(hub: Hub, download: Download) -> subprocess.Popen[str]:
    """Start a download and return once it hangs in the middle of the weights, with all other files done."""
    hub.hold_after[WEIGHTS] = CHUNK + 1_000_000
    process = download.start()
    assert hub.held.wait(30), process.communicate(timeout=60)
    limit = time.monotonic() + 30
    others = WANTED.keys() - {WEIGHTS}
    while max((path.stat().st_size for path in download.directory.rglob("*")), default=0) < CHUNK or not all(
        (download.directory / name).exists() for name in others
    ):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return process


def downloading() -> list[int]:
    """Return the processes that download, with their dedicated user."""
    found = subprocess.run(
        ["pgrep", "-u", str(DOWNLOAD_UID), "-f", "--", f"{MARK}$"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def kill_download(_: subprocess.Popen[str]) -> None:
    (pid,) = downloading()
    os.kill(pid, signal.SIGKILL)


def kill_client(process: subprocess.Popen[str]) -> None:
    """Kill the client, as when the SSH connection breaks: the download itself survives."""
    (pid,) = downloading()
    os.killpg(process.pid, signal.SIGSTOP)
    for each in children(process.pid):
        if each != pid:
            os.kill(each, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    """Return all descendants of a process."""
    found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(later for each in found for later in children(each))]


@pytest.mark.parametrize("kill", [kill_download, kill_client])
def test_a_killed_download_resumes(
    kill: Callable[[subprocess.Popen[str]], None], hub: Hub, download_from: Callable[..., Download]
) -> None:
    download = download_from(hub)
    process = hold(hub, download)
    kill(process)
    assert process.wait(30) != 0
    assert not download.is_marked_complete
    before = len(hub.requests)
    assert download.run().returncode == 0
    assert download.files() == WANTED
    assert [(r.path.rpartition("/")[2], r.range) for r in hub.fetched() if r in hub.requests[before:]] == [
        (WEIGHTS, f"bytes={CHUNK}-")
    ]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_damaged_file_is_refused_and_fetched_again(
    name: str, hub: Hub, download_from: Callable[..., Download]
) -> None:
    hub.sent_instead[name] = WANTED[name][:-1] + b"?"
    download = download_from(hub)
    assert failed(download.run(), f"{name} arrived damaged")
    assert not download.is_marked_complete
    assert name not in download.files()
    hub.sent_instead.clear()
    assert download.run().returncode == 0
    assert download.files() == WANTED


def test_files_that_are_there_already_are_kept_only_if_they_are_right(
    hub: Hub, download_from: Callable[..., Download]
) -> None:
    download = download_from(hub)
    download.directory.mkdir(parents=True)
    (download.directory / "config.json").write_bytes(WANTED["config.json"].replace(b"llama", b"gpt-2"))
    (download.directory / "tokenizer.json").write_bytes(WANTED["tokenizer.json"])
    assert download.run().returncode == 0
    assert download.files() == WANTED
    assert not hub.ranges("tokenizer.json")


# Models that need a token


@pytest.mark.parametrize("token", ["", "hf_OfSomeoneElse"])
def test_a_gated_model_is_refused_without_the_right_token(
    token: str, hub: Hub, download_from: Callable[..., Download]
) -> None:
    hub.token = TOKEN
    assert failed(download_from(hub, hfToken=token).run(), f"{MODEL} is gated", "hfToken")


@dataclass(frozen=True)
class Gated:
    """A download with a token, and everything visible while it ran and after."""

    hub: Hub
    result: Result
    seen: dict[str, bytes]


@pytest.fixture(scope="module")
def gated(download_from: Callable[..., Download]) -> Iterator[Gated]:
    with hub_stand_in.running(MODEL, {**WANTED, **UNNEEDED}) as hub:
        hub.token = TOKEN
        download = download_from(hub, hfToken=TOKEN)
        process = hold(hub, download)
        (pid,) = downloading()
        assert f"Uid:\t{DOWNLOAD_UID}" in Path(f"/proc/{pid}/status").read_text()
        seen = {
            "the command": download.command.encode(),
            "command lines": of_processes("cmdline"),
            "environments": of_processes("environ"),
        }
        hub.release.set()
        out, err = process.communicate(timeout=60)
        seen["what was printed"] = (out + err).encode()
        seen["files of the model"] = b"".join(contents(download.directory))
        yield Gated(hub, Result(download.command, process.returncode, out, err), seen)


def of_processes(name: str) -> bytes:
    """Return one file in /proc of every process, the download's among them."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            found.append(path.read_bytes())
        except OSError:  # ended meanwhile
            continue
    return b"\n".join(found)


def contents(directory: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_a_gated_model_is_downloaded_with_the_token(gated: Gated) -> None:
    assert (gated.result.returncode, gated.result.stderr) == (0, "")
    files = [request for request in gated.hub.fetched() if request.server == "hub"]
    assert {request.authorization for request in files} == {f"Bearer {TOKEN}"}


def test_the_token_is_for_the_hub_alone_and_not_for_hosts_that_it_redirects_to(gated: Gated) -> None:
    redirected = [request for request in gated.hub.requests if request.server == "cdn"]
    assert {request.authorization for request in redirected} == {None}


@pytest.mark.parametrize(
    "place",
    [
        "the command",
        "command lines",
        "environments",
        "what was printed",
        "files of the model",
    ],
)
def test_the_token_is_nowhere_to_be_read(place: str, gated: Gated) -> None:
    encoded = base64.b64encode(TOKEN.encode())
    assert not [form for form in (TOKEN.encode(), encoded) if form in gated.seen[place]]


# Models that can't be downloaded


def test_an_unknown_model_is_refused(hub: Hub, download_from: Callable[..., Download]) -> None:
    assert failed(download_from(hub, model="acme/typo").run(), "the hub has no model acme/typo", "check model")


def test_an_unknown_revision_is_refused(hub: Hub, download_from: Callable[..., Download]) -> None:
    revision = "c3" * 20
    result = download_from(hub, modelRevision=revision).run()
    assert failed(result, f"{MODEL} has no revision {revision}", "modelRevision")


def test_a_failing_hub_is_named(hub: Hub, download_from: Callable[..., Download]) -> None:
    hub.out_of_order = True
    assert failed(download_from(hub).run(), "the hub answered 503", "try again later")


def test_a_hub_that_can_not_be_reached_is_named(hub: Hub, download_from: Callable[..., Download]) -> None:
    result = download_from(hub, hfEndpoint="http://127.0.0.1:9").run()
    assert failed(result, "Connection refused", "check hfEndpoint")


# The hub's client itself


def test_a_package_that_was_exchanged_on_the_index_is_not_installed(tmp_path: Path) -> None:
    requirements = re.sub("[0-9a-f]{64}", "0" * 64, (render.FILES / "weights/hub-client.txt").read_text())
    script = render.script("host/install-python-client.sh", requirements=requirements, client=str(tmp_path / "client"))
    result = bash(script + 'install_client "$CLIENT" "the client" "$REQUIREMENTS" "or do without it"\n')
    assert result.returncode == 1
    assert "DO NOT MATCH THE HASHES" in result.stderr
    assert "elastic-vllm: the client could not be installed\n" in result.stderr
    assert not (tmp_path / "client" / "requirements.txt").exists()

"""The health check in vLLM's container tells apart a healthy, loading, busy and hanging vLLM."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from components.files.vllm import vllm_watch

PATIENCE = 0.3
MODEL = "acme/model"


class Vllm:
    """A server on a socket that may answer chat, and counts its engine's steps."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answers = True
        self.steps = 7.0
        self.moves = 0
        """Number of the reading of metrics from which on each one makes a step; 0: none."""
        self.reads = 0


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[Vllm]:
    it = Vllm(tmp_path / "vllm.sock")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "socket"

        def do_GET(self) -> None:
            it.reads += 1
            it.steps += 0 < it.moves <= it.reads
            count = f'vllm:iteration_tokens_total_count{{engine="0"}} {it.steps}'
            self.reply(f"# HELP x\n{count}\nvllm:other 5.0\n".encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if not it.answers:
                time.sleep(2 * PATIENCE)
                return
            self.reply(b"{}")

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with socketserver.ThreadingUnixStreamServer(it.path, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield it
        server.shutdown()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """List that is filled when the watch would kill."""
    calls: list[bool] = []
    monkeypatch.setattr(vllm_watch, "kill", lambda: calls.append(True))
    monkeypatch.setattr(vllm_watch, "SERVER", Path("/proc/1/cmdline").read_bytes())  # as if this were the container
    monkeypatch.setattr(vllm_watch, "say", lambda _: None)
    monkeypatch.setattr(vllm_watch, "LOOK_SECONDS", 0)
    return calls


def hang(vllm: Vllm) -> None:
    vllm.answers = False


def work(vllm: Vllm) -> None:
    vllm.answers, vllm.moves = False, 1


def work_later(vllm: Vllm) -> None:
    """Make the first step after the request for a token, which waits behind others."""
    vllm.answers, vllm.moves = False, 3


@pytest.mark.parametrize(
    ("state", "code", "kills"),
    [(lambda _: None, 0, False), (work, 0, False), (work_later, 0, False), (hang, 1, True)],
    ids=["well", "busy", "busy with others", "hangs"],
)
def test_only_a_vllm_that_makes_no_step_is_killed(
    state: Callable[[Vllm], None], code: int, kills: bool, vllm: Vllm, killed: list[bool]
) -> None:
    state(vllm)
    assert (vllm_watch.main(vllm.path, MODEL, PATIENCE), bool(killed)) == (code, kills)


def test_a_loading_vllm_is_left_alone(tmp_path: Path, killed: list[bool]) -> None:
    assert (vllm_watch.main(str(tmp_path / "vllm.sock"), MODEL, PATIENCE), killed) == (1, [])


def test_outside_vllms_container_nothing_is_ever_killed(vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _: signals.append(pid))
    hang(vllm)
    assert (vllm_watch.main(vllm.path, MODEL, PATIENCE), signals) == (1, [])

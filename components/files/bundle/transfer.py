"""Send files to receive-files.sh over SSH: a program for bare Python that reads its order from standard input.

Standard input is JSON: `ssh` (the command that runs the script's shell on the server), `script` (the shell's first
input), `closing_word` (the last line that a script prints if it runs to its end), `title`, `directory` (of the part, on
this machine), and `files`, each with its `path` in that directory, `sha256`, `bytes` and `carried`.
The program needs only Python's own library and holds one block in memory. It opens a broken connection again as long as
something arrives. The exit code is 0 once all files are there.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

BLOCK_BYTES = 1 << 20
HEARTBEAT_SECONDS = 5
FRUITLESS_TRIES = 3
SSH_FAILED = 255
"""Exit code of ssh itself, for errors of the connection rather than of the command."""


class CutShortError(Exception):
    """The server ended without an error, and did not run the script to its end; the text is its last line."""


@dataclass
class Sent:
    """Bytes sent over this connection."""

    bytes: int = 0


def send(order: dict[str, Any], say: Callable[[str], None], sent: Sent) -> int:
    """Send the data that the server asks for over one connection, and return ssh's exit code.

    Raises OSError for files on this machine, and CutShortError.
    """
    lines = [""]

    def pass_on(line: str) -> None:
        lines[0] = line
        if line != order["closing_word"]:
            say(line)

    files = order["files"]
    listing = "".join(
        f"{file['sha256']} {file['bytes']} {'yes' if file['carried'] else 'no'} {file['path']}\n" for file in files
    )
    with subprocess.Popen(order["ssh"], stdin=PIPE, stdout=PIPE, pipesize=BLOCK_BYTES) as ssh:
        assert ssh.stdin  # noqa: S101 - asked for
        assert ssh.stdout  # noqa: S101 - asked for
        rest = threading.Thread(target=_pass_on, args=(ssh.stdout, pass_on))
        with suppress(BrokenPipeError):  # its exit code shows why
            ssh.stdin.write(f"{order['script']}{listing}\n".encode())
            ssh.stdin.flush()
            wanted = _wanted(ssh.stdout, pass_on)
            rest.start()
            for index, offset in wanted:
                _send_rest(Path(order["directory"]) / files[index]["path"], offset, ssh.stdin, sent)
        with suppress(BrokenPipeError):
            ssh.stdin.close()
        if rest.ident:
            rest.join()
    if ssh.returncode == 0 and lines[0] != order["closing_word"]:
        raise CutShortError(lines[0])
    # A negative code, ssh killed by a signal, also means a broken connection.
    return ssh.returncode if ssh.returncode >= 0 else SSH_FAILED


def _wanted(stdout: IO[bytes], say: Callable[[str], None]) -> list[tuple[int, int]]:
    """Return the server's requests: index of a file, and the byte to begin at."""
    wanted = []
    for line in stdout:
        words = line.decode(errors="replace").split()
        if words == ["@begin"]:
            break
        if words[:1] == ["@send"]:
            wanted.append((int(words[1]), int(words[2])))
        else:
            say(" ".join(words))
    return wanted


def _pass_on(stdout: IO[bytes], say: Callable[[str], None]) -> None:
    for line in stdout:
        say(line.decode(errors="replace").rstrip())


def _send_rest(path: Path, offset: int, out: IO[bytes], sent: Sent) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while block := file.read(BLOCK_BYTES):
            out.write(block)
            sent.bytes += len(block)


def main() -> None:
    """Send, and retry after broken connections; exit with one line for errors that a retry can't solve."""
    order = json.load(sys.stdin)
    over = threading.Event()
    sent = Sent()

    def say(line: str) -> None:
        print(f"{order['title']}: {line}", flush=True)

    def beat() -> None:
        before, began = 0, time.monotonic()
        while not over.wait(HEARTBEAT_SECONDS):
            now, moment = sent.bytes, time.monotonic()
            say(f"{now / 1e9:.2f} GB sent, {(now - before) / 1e6 / (moment - began):.0f} MB/s")
            before, began = now, moment

    threading.Thread(target=beat, daemon=True).start()
    code, fruitless = SSH_FAILED, 0
    while code == SSH_FAILED and fruitless < FRUITLESS_TRIES:
        already = sent.bytes
        try:
            code = send(order, say, sent)
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            sys.exit(f"{order['title']}: {where}; fix: plug in the bundle's disk, or carry it over again (bundle)")
        except CutShortError as error:
            sys.exit(
                f"{order['title']}: the server did not run what it was sent; it answered: {error}\n"
                "  fix: is there a ForceCommand in its sshd_config, or command= in its authorized_keys?"
            )
        if code == SSH_FAILED:
            fruitless = 0 if sent.bytes > already else fruitless + 1
            say("there is no connection; trying again")
            time.sleep(1 + fruitless)
    over.set()
    if code == SSH_FAILED:
        sys.exit(f"{order['title']}: no connection; fix: see ssh's line above, then run the update again")
    sys.exit(code)


if __name__ == "__main__":
    main()

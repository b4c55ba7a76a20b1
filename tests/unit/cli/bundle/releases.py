"""Pulumi's releases as published by their makers, on a local web server; the CLI in them only records its calls."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

from scripts.cli.bundle import pulumi_cli
from scripts.cli.bundle.pulumi_cli import Archive
from scripts.cli.bundle.wanted import Wanted
from tests.support.program import ROOT

WANTED = pulumi_cli.archives(ROOT / "requirements.txt", "amd64", "existing")
PULUMI = """#!/bin/sh
printf '%s %s\\n' "$PULUMI_HOME" "$*" >>"$(dirname "$0")/../calls"
case "$*" in *refuse*) echo 'error: no such plugin' >&2; exit 1 ;; esac
"""


def tar(name: str, content: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o755
        archive.addfile(entry, io.BytesIO(content.encode()))
    return gzip.compress(out.getvalue(), mtime=0)  # the same at each call, also in another second


def content(archive: Archive) -> bytes:
    cli = archive.repository == "pulumi"
    return tar("pulumi/pulumi", PULUMI) if cli else tar(archive.name.partition("-v")[0], archive.name * 50)


def published() -> dict[str, bytes]:
    """Map each URL path to its content, as the makers' workflows publish it."""
    found = {}
    for each in WANTED:
        place, data = f"/{each.repository}/releases/download/v{each.version}", content(each)
        line = f"{hashlib.sha1(data).hexdigest()}  ./{each.name}"  # noqa: S324 - what plugins have
        if each.repository == "pulumi":
            line = f"{hashlib.sha256(data).hexdigest()}  {each.name}"
        found[f"{place}/{each.name}"] = data
        found[f"{place}/{each.checksums}"] = f"{'0' * 40}  ./other.tar.gz\n{line}\n".encode()
    return found


@dataclass
class Mirror:
    """A web server of releases."""

    url: str
    files: dict[str, bytes] = field(default_factory=published)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of each GET."""
    cut_after: int | None = None
    """Number of bytes after which answers end."""

    def part(self) -> Wanted:
        found = pulumi_cli.part(WANTED, self.url)
        assert found
        return found


@contextmanager
def running() -> Iterator[Mirror]:
    """Serve the releases until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        mirror: ClassVar[Mirror]

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            data = self.mirror.files.get(self.path)
            if self.command == "GET":
                self.mirror.asked.append((self.path, self.headers["Range"]))
            if data is None:
                self.send_error(404)
                return
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "GET":
                end = None if self.path.endswith(".txt") else self.mirror.cut_after
                self.wfile.write(data[start:][:end])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.mirror = Mirror(f"http://127.0.0.1:{server.server_port}/")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    yield Handler.mirror
    server.shutdown()
    thread.join()
    server.server_close()

"""A hub on this machine with the part of the Hugging Face Hub's protocol that huggingface_hub uses.

It records requests. Like the real one, it redirects large files (LFS) to a signed address on another host, and small
ones within the hub; the description of a gated model is public, its files are not.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a1" * 20


@dataclass(frozen=True)
class Request:
    """Request of a client."""

    server: str
    """`hub`, or `cdn` for the host that large files are redirected to."""
    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class Hub:
    """One model, and the hub's behaviour, which tests change while it runs."""

    model: str
    files: dict[str, bytes] = field(repr=False)
    commit: str = COMMIT
    token: str | None = None
    """Token that gives access to the files; None: everyone has access."""
    sent_instead: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Files whose bytes differ from the published ones."""
    drop_after: dict[str, int] = field(default_factory=dict)
    """Bytes of a file after which the connection is dropped, once."""
    hold_after: dict[str, int] = field(default_factory=dict)
    """Bytes of a file after which the hub sends nothing until `release` is set."""
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    out_of_order: bool = False
    """True to answer every request with 503."""
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    cdn: str = ""

    def fetched(self) -> list[Request]:
        """Return the requests for files' contents."""
        return [r for r in self.requests if r.method == "GET" and not r.path.startswith("/api/models/")]

    def ranges(self, name: str) -> list[str | None]:
        """Return the Range of each request for a file's content, in order."""
        return [request.range for request in self.fetched() if request.path.endswith(name)]


def is_large(name: str) -> bool:
    """Return True if the hub stores a file in LFS."""
    return name.endswith((".safetensors", ".bin", ".pth"))


def blob_id(content: bytes) -> str:
    """Return Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own hash


def sha256(content: bytes) -> str:
    """Return LFS's hash of a file."""
    return hashlib.sha256(content).hexdigest()


def _sibling(name: str, content: bytes) -> dict[str, object]:
    found: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
    if is_large(name):
        found["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return found


def _entry(name: str, content: bytes) -> dict[str, object]:
    found: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
    if is_large(name):
        found["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    server_name: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(
            Request(self.server_name, self.command, path, self.headers["Authorization"], self.headers["Range"])
        )
        if hub.out_of_order:
            self.answer(503)
        elif self.server_name == "cdn":
            self.send_file(path.removeprefix("/signed/"))
        elif path.startswith("/api/models/"):
            self.describe(path.removeprefix("/api/models/"))
        elif path.startswith("/api/resolve-cache/"):
            self.send_file(path.split(f"{hub.commit}/", 1)[1])
        else:
            self.resolve(path.strip("/"))

    def describe(self, path: str) -> None:
        asked = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?)?", path)
        model, what, revision = asked.groups() if asked else ("", "", "")
        if model != self.hub.model:
            self.refuse(401, "RepoNotFound")
        elif revision not in {self.hub.commit, None, "main"}:
            self.refuse(404, "RevisionNotFound")
        elif what == "tree":
            self.answer(200, json.dumps([_entry(name, content) for name, content in self.hub.files.items()]).encode())
        else:
            siblings = [_sibling(name, content) for name, content in self.hub.files.items()]
            gated = "manual" if self.hub.token else False
            description = {"id": model, "sha": self.hub.commit, "gated": gated, "private": False, "siblings": siblings}
            self.answer(200, json.dumps(description).encode())

    def resolve(self, path: str) -> None:
        model, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = self.hub.files[name]
        if self.hub.token and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            self.refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
        elif is_large(name):
            self.answer(
                302,
                **self.about(name),
                X_Linked_Size=str(len(content)),
                X_Linked_ETag=f'"{sha256(content)}"',
                Location=f"{self.hub.cdn}/signed/{name}?Signature=abc",
            )
        else:
            self.answer(307, **self.about(name), Location=f"/api/resolve-cache/models/{model}/{revision}/{name}")

    def send_file(self, name: str) -> None:
        content = self.hub.sent_instead.get(name, self.hub.files[name])
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        end = self.hub.drop_after.pop(name, len(content)) if self.command == "GET" else len(content)
        hold = self.hub.hold_after.pop(name, None) if self.command == "GET" else None
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in {**self.about(name), "Content_Length": str(len(content) - start)}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if hold is not None:
                self.wfile.write(content[start:hold])
                self.wfile.flush()
                self.hub.held.set()
                self.hub.release.wait(60)
                start = hold
            self.wfile.write(content[start:end])
        except OSError:
            self.close_connection = True  # the client was killed meanwhile
        if end < len(content):
            self.close_connection = True

    def about(self, name: str) -> dict[str, str]:
        content = self.hub.files[name]
        etag = sha256(content) if is_large(name) else blob_id(content)
        return {"ETag": f'"{etag}"', "X_Repo_Commit": self.hub.commit, "Accept_Ranges": "bytes"}

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b'{"error":"refused"}', X_Error_Code=code, X_Error_Message=code)

    def answer(self, status: int, content: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content_Length": str(len(content))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running(
    model: str, files: dict[str, bytes], *, commit: str = COMMIT, address: str = "127.0.0.1", port: int = 0
) -> Iterator[Hub]:
    """Run a hub with this model until the block ends; `port` 0 chooses a free one."""
    hub = Hub(model=model, files=files, commit=commit)
    servers = []
    for name, own_port in (("hub", port), ("cdn", 0)):
        handler = type("Handler", (_Handler,), {"hub": hub, "server_name": name})
        server = ThreadingHTTPServer((address, own_port), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
    hub.endpoint, hub.cdn = (f"http://{address}:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        hub.release.set()
        for server in servers:
            server.shutdown()
            server.server_close()

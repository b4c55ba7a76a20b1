"""Permitted reactions of the endpoint to any bytes, derived from its promises and RFC 9112, never from nginx.conf.

`entitled` is an upper bound, by the most lenient reading: nothing else may reach vLLM. `expected` is exact, for
requests that can be read in one way only.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from tests.integration.hostile.recorder import Arrived
from tests.integration.hostile.wire import LAST, Answer

ALLOWED = {"/v1/chat/completions": "POST", "/v1/models": "GET"}
HEALTH = "/healthz"
BEHIND = {"/v1/chat/completions": "/v1/chat/completions", "/v1/models": "/v1/models", HEALTH: "/health"}
"""Path -> path of the request to vLLM."""
REFUSALS = {400, 401, 404, 405, 413, 414, 431}
HEADERS = {"strict-transport-security": "max-age=63072000", "x-content-type-options": "nosniff"}

START = re.compile(rb"([A-Z]+) +([^ \r\n]+)(?: +HTTP/1\.[0-9]+)? *\r?\n")
"""Pattern of anything that could be read as a request's first line, anywhere in the bytes."""
PLAIN_START = re.compile(
    rb"(GET|POST|PUT|DELETE|PATCH|HEAD|OPTIONS) (/[A-Za-z0-9_./{}-]*)(\?[a-z0-9=&]*)? HTTP/1\.1\r\n"
)
PLAIN_HEADER = re.compile(rb"([A-Za-z0-9-]+): ?([!-~](?:[ -~]*[!-~])?)?\r\n")
PLAIN_HOST = re.compile(rb"[a-z0-9-]+(\.[a-z0-9-]+)*(:[0-9]{1,4})?")  # Nginx 1.30 refuses empty labels
CHUNK_SIZE = re.compile(rb"[0-9a-f]{1,6}\r\n")
HOP_BY_HOP = {b"connection", b"expect", b"upgrade", b"te", b"trailer", b"keep-alive", b"http2-settings"}
ONCE = {
    *(b"authorization", b"host"),
    *(b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since"),
}
"""Headers that may occur once only; Nginx 1.30 also refuses repeated conditional headers."""
PLAIN_BYTES = 4096
"""A head shorter than this is within every limit."""


class Violation(AssertionError):  # noqa: N818 - a violation is a finding, not an error of the test
    """The endpoint broke a promise."""


def path_of(target: bytes) -> str:
    """Return the path that a target could mean: no authority or query, percent-encoding decoded once, dots resolved."""
    text = re.sub(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", b"", target)
    text = re.split(rb"[?#]", text, maxsplit=1)[0]
    text = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), text)
    parts: list[bytes] = []
    for part in text.split(b"/"):
        if part == b"..":
            parts = parts[:-1]
        elif part not in {b"", b"."}:
            parts.append(part)
    ends = b"/" if parts and text.endswith((b"/", b"/.", b"/..")) else b""
    return (b"/" + b"/".join(parts) + ends).decode("latin-1")


def has_key(credentials: bytes, keys: Iterable[str]) -> bool:
    """Return True for a key behind the scheme in any case and one or more spaces (RFC 9110, 11.1 and 11.4)."""
    scheme, _, rest = credentials.partition(b" ")
    return scheme.lower() == b"bearer" and rest.lstrip(b" ") in {key.encode() for key in keys}


def entitled(payload: bytes, keys: Iterable[str]) -> Counter[tuple[str, str]]:
    """Count the pairs (method, path) that vLLM may see at most."""
    keys = list(keys)
    found: Counter[tuple[str, str]] = Counter()
    for match in START.finditer(payload):
        method, path = match[1].decode(), path_of(match[2])
        head = re.split(rb"\r?\n\r?\n", payload[match.end() :], maxsplit=1)[0]
        lines = [line.partition(b":") for line in re.split(rb"\r?\n", head)]
        given = [value.strip(b" ") for name, _, value in lines if name.strip().lower() == b"authorization"]
        if (path == HEALTH and method == "GET") or (
            ALLOWED.get(path) == method and len(given) == 1 and has_key(given[0], keys)
        ):
            found[method, BEHIND[path]] += 1
    return found


@dataclass(frozen=True)
class Plain:
    """A request that can be read in one way only."""

    method: str
    path: str
    authorized: bool
    body: bytes

    @property
    def status(self) -> int:
        """Status that the answer must have."""
        method = "GET" if self.path == HEALTH else ALLOWED.get(self.path)
        if not self.authorized and self.path != HEALTH:
            return 401
        if method is None:
            return 404
        return 200 if self.method == method else 405


def plain_requests(payload: bytes, keys: Iterable[str], body_bytes: int) -> tuple[list[Plain], bool]:
    """Return the plain requests at the beginning, and True if nothing else follows."""
    keys = list(keys)
    found, reader = list[Plain](), BytesIO(payload)
    while reader.tell() < len(payload):
        request = _plain(reader, keys, body_bytes)
        if request is None:
            return found, False
        found.append(request)
    return found, True


def _plain(reader: BinaryIO, keys: Sequence[str], body_bytes: int) -> Plain | None:
    begun = reader.tell()
    start = PLAIN_START.fullmatch(reader.readline())
    if not start or re.search(rb"//|/\.\.?(/|$)", start[2]):
        return None
    headers: list[tuple[bytes, bytes]] = []
    while (line := reader.readline()) != b"\r\n":
        header = PLAIN_HEADER.fullmatch(line)
        if not header or reader.tell() - begun > PLAIN_BYTES:
            return None
        headers.append((header[1].lower(), header[2] or b""))
    of = {name: [value for key, value in headers if key == name] for name, _ in headers}
    if any(name in HOP_BY_HOP or (len(values) > 1 and name in ONCE) for name, values in of.items()):
        return None
    if not PLAIN_HOST.fullmatch(b"".join(of.get(b"host", []))):
        return None
    framing = of.get(b"content-length", []), of.get(b"transfer-encoding", [])
    body = _plain_body(reader, *framing)
    if body is None or len(body) > body_bytes:
        return None
    authorized = b"authorization" in of and has_key(of[b"authorization"][0], keys)
    return Plain(start[1].decode(), start[2].decode(), authorized, body)


def _plain_body(reader: BinaryIO, lengths: Sequence[bytes], encodings: Sequence[bytes]) -> bytes | None:
    if not lengths and not encodings:
        return b""
    if encodings == [b"chunked"] and not lengths:
        body = b""
        while CHUNK_SIZE.fullmatch(size := reader.readline()):
            chunk = reader.read(int(size, 16))
            if len(chunk) < int(size, 16) or reader.read(2) != b"\r\n":
                return None
            if not chunk:
                return body
            body += chunk
        return None
    if encodings or len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,9}", lengths[0]):
        return None
    body = reader.read(int(lengths[0]))
    return body if len(body) == int(lengths[0]) else None


def judge(
    payload: bytes, answers: Sequence[Answer], arrived: Sequence[Arrived], keys: Sequence[str], body_bytes: int
) -> None:
    """Raise Violation if an answer, or a request that arrived at vLLM, breaks the endpoint's promises."""
    for problem in _problems(payload, answers, arrived, keys, body_bytes):
        raise Violation(f"{problem}\nsent: {payload[:3000]!r}\nanswers: {answers!r:.2000}\narrived: {arrived!r:.2000}")


def _problems(
    payload: bytes, answers: Sequence[Answer], arrived: Sequence[Arrived], keys: Sequence[str], body_bytes: int
) -> Iterator[str]:
    allowed = entitled(payload + LAST, keys)
    reached = Counter((each.method, each.path) for each in arrived)
    if not reached <= allowed:
        yield f"vLLM was reached by {reached - allowed}"
    for each in arrived:
        if each.values("host") != ["vllm"]:
            yield f"vLLM got the host {each.values('host')}"
        if each.values("authorization"):
            yield "vLLM got an Authorization header"
    if sum(each.status == 200 for each in answers) > allowed.total():
        yield "a success that nobody was entitled to"
    for answer in answers:
        yield from _problems_of(answer, keys, heads=b"HEAD" in payload)
    plain, whole = plain_requests(payload, keys, body_bytes)
    expected = [each.status for each in plain] + ([401] if whole else [])
    got = [each.status for each in answers]
    if (got if whole else got[: len(expected)]) != expected:
        yield f"plain requests were answered with {got}, not with {expected}"
    bodies = [each.body for each in plain if each.status == 200]
    if [each.body for each in arrived][: len(bodies)] != bodies:
        yield "vLLM got another body than was sent"


def _problems_of(answer: Answer, keys: Sequence[str], *, heads: bool) -> Iterator[str]:
    everything = repr(answer.headers).encode() + answer.body
    if any(key.encode() in everything.lower() for key in keys):
        yield "a key is in an answer"
    if re.search(rb"nginx/|uvicorn|openresty", everything):
        yield "an answer reveals the software"
    if answer.status == 200:
        return
    if answer.status and answer.status not in REFUSALS:
        yield f"status {answer.status}"
    if answer.status:
        wrong = {name: answer.header(name) for name, value in HEADERS.items() if answer.header(name) != value}
        if wrong:
            yield f"headers are {wrong}"
        if answer.header("content-type") != "application/json":
            yield f"an error of type {answer.header('content-type')!r}"
        if (answer.status == 401) != bool(answer.header("www-authenticate")):
            yield "WWW-Authenticate belongs to 401"
    if answer.body or (answer.status and not heads):
        yield from _problems_of_body(answer.body)


def _problems_of_body(body: bytes) -> Iterator[str]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        yield f"an error that is not OpenAI's JSON: {body[:200]!r}"
        return
    if error.keys() != {"message", "type", "param", "code"}:
        yield f"an error with {sorted(error)}"

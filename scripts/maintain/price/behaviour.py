"""Behaviour towards requests that should not pass, without vLLM behind the gateway, and towards clients that leave."""

import http.client
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

from scripts.maintain.price.gateways import DIRECT, Gateway, Opened, Source
from scripts.maintain.price.traffic import Way, chat

CHAT = "/v1/chat/completions"
WRONG_KEY = "0" * 64
BODIES_MIB = (2, 33)
PATIENCE_SECONDS = 60  # for an answer
NOTICE_SECONDS = 10  # for a client that has left
BACK_SECONDS = 120
POLL_SECONDS = 0.005
SAY_SECONDS = 5
LEAVING = {"running stream": (True, ""), "silent stream": (True, "silent"), "plain request": (False, "silent")}
"""The kinds of requests that a client leaves: is it a stream, and a word for the source."""
KINDS = {"application/json": "JSON", "text/html": "HTML", "text/plain": "text", "text/event-stream": "stream"}


@dataclass(frozen=True)
class Answer:
    """The outline of an answer."""

    status: int
    kind: str
    """JSON, HTML, text, or empty."""
    retry_after: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.status} {self.kind}"


def ask(way: Way, method: str = "POST", path: str = CHAT, *, key: str | None = None, body: str = "") -> Answer:
    """Send a request on a connection of its own; `key`: instead of the right one, empty for none."""
    headers = {"Content-Type": "application/json"}
    if key is None or key:
        headers["Authorization"] = f"Bearer {way.key if key is None else key}"
    connection = (
        http.client.HTTPSConnection(way.host, way.port, timeout=PATIENCE_SECONDS, context=way.tls)
        if way.tls
        else http.client.HTTPConnection(way.host, way.port, timeout=PATIENCE_SECONDS)
    )
    start = time.monotonic()
    try:
        # Who refuses a body may close before it has come.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, None if method == "GET" else body or chat(), headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    kind = (response.getheader("Content-Type") or "").partition(";")[0]
    retry_after = response.getheader("Retry-After") or ""
    return Answer(response.status, KINDS.get(kind, kind) if content else "empty", retry_after, time.monotonic() - start)


def with_source(gateway: Gateway, source: Source) -> dict[str, str]:
    """Return what a gateway does while the source is there: row of the table -> cell."""
    way = gateway.way
    rows = {"wrong key, no key": f"{ask(way, key=WRONG_KEY)}, {ask(way, key='')}"}
    for asked, key in (("the right key", None), ("no key", "")):
        metrics, tokenize = ask(way, "GET", "/metrics", key=key), ask(way, path="/tokenize", key=key)
        rows[f"/metrics, /tokenize with {asked}"] = f"{metrics}, {tokenize}"
    for mib in BODIES_MIB:
        body = chat(messages=[{"role": "user", "content": "x" * (mib * 2**20)}])
        rows[f"body of {mib} MiB"] = str(ask(way, body=body))
    identity = source.new_id()
    ask(way, body=chat(messages=[{"role": "user", "content": f"note={identity}"}]))
    arrived = source.note("arrived", identity, NOTICE_SECONDS)
    if not arrived:
        raise RuntimeError(f"{way.name}: a request did not arrive")
    rows["the client's key goes on to vLLM"] = "yes" if way.key in arrived["authorization"] else "no"
    return rows


def without_source(opened: Opened, say: Callable[[str], None]) -> dict[str, dict[str, str]]:
    """Stop the source, ask each gateway, start it again and wait for the first 200: gateway -> row -> cell."""
    found: dict[str, dict[str, str]] = {}
    gateways = {name: gateway for name, gateway in opened.gateways.items() if name != DIRECT}
    opened.source.stop()
    for name, gateway in gateways.items():
        say(f"{gateway.title}: asked without vLLM")
        first = ask(gateway.way)
        say(f"{gateway.title}: {first}, asked again")
        again = ask(gateway.way)
        after = f", Retry-After {first.retry_after}" if first.retry_after else ""
        then = f", then {again}" if str(again) != str(first) else ""
        found[name] = {"vLLM absent": f"{first}{after}{then}, {_seconds(first.seconds)}"}
    opened.source.start()
    start = time.monotonic()

    def seconds_until_200(gateway: Gateway) -> float | None:
        while time.monotonic() < start + BACK_SECONDS:
            with suppress(OSError, http.client.HTTPException):
                if ask(gateway.way).status == http.client.OK:
                    return time.monotonic() - start
            time.sleep(POLL_SECONDS)
        return None

    with ThreadPoolExecutor() as threads:
        waiting = {name: threads.submit(seconds_until_200, gateway) for name, gateway in gateways.items()}
        while wait(waiting.values(), SAY_SECONDS).not_done:
            left = ", ".join(gateways[name].title for name, each in waiting.items() if not each.done())
            say(f"vLLM has been back for {time.monotonic() - start:.0f} s; no 200 yet from {left}")
    for name, each in waiting.items():
        seconds = each.result()
        found[name]["first 200 after it is back"] = (
            f"not within {BACK_SECONDS} s" if seconds is None else _seconds(seconds)
        )
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def seconds_to_notice(way: Way, source: Source, kind: str, say: Callable[[str], None]) -> float | None:
    """Return the seconds from a client's disconnect until the source's connection is closed; None: too many."""
    is_stream, word = LEAVING[kind]
    identity = source.new_id()
    request = way.request(
        messages=[{"role": "user", "content": f"note={identity} {word}"}], stream=is_stream, max_tokens=1_000_000
    )
    with way.connection() as connection:
        connection.sendall(request)
        if not source.note("arrived", identity, NOTICE_SECONDS):
            raise RuntimeError(f"{way.name}: a request did not arrive")
        time.sleep(0.2)
        # A client that leaves bytes unread closes with a reset, which is easier to notice.
        connection.setblocking(False)
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            while connection.recv(65536):
                pass
        start = time.monotonic_ns()
    left = source.note("left", identity, NOTICE_SECONDS / 2)
    if not left:
        say(f"{way.name}: a client that has left is not noticed yet")
        left = source.note("left", identity, NOTICE_SECONDS / 2)
    return (left["ns"] - start) / 1e9 if left else None

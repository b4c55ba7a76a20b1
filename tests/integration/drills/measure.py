"""Measurements of a drill: answers to clients, seconds to recover, and changes by the next `up`."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.integration.drills.clients import Endpoint, watching
from tests.integration.drills.server import HTTPS_PORT, Server
from tests.support.netns_machine import outcomes

STREAMS = 3
OBSERVE_SECONDS = 3
"""A fault that no client has noticed by then will not be noticed."""
PROXY_SECONDS = 5
"""Nginx must answer again within this time, with any status."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    saw: str
    seconds: float
    """Seconds until chat worked again."""
    proxy_seconds: float
    """Seconds until Nginx answered again."""
    next_up: str

    @property
    def line(self) -> str:
        """Return the row as Markdown."""
        seconds = f"{self.seconds:.1f}" if self.seconds else "0"
        return f"| {self.fault} | {self.saw} | {seconds} | {self.next_up} |"


@dataclass(frozen=True)
class Site:
    """A running server and its endpoint; `real` is True if its vLLM is the real one."""

    server: Server
    endpoint: Endpoint
    real: bool

    @property
    def tokens(self) -> int:
        """Tokens of a stream that flows for about 6 s; with the real vLLM, this depends on the machine."""
        return 600 if self.real else 300


def site(server: Server, *, real: bool) -> Site:
    """Return the endpoint as the stack's outputs describe it."""
    done = server.rehearse("outputs", "--json", "--show-secrets")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    endpoint = Endpoint(
        host=server.address,
        port=HTTPS_PORT,
        key=values["connectorApiKey"],
        ca=values["caCertificate"],
        model=values["model"],
    )
    return Site(server, endpoint, real)


def measure(site: Site, fault: str, do: Callable[[], object], *, patience: float = 240, longer: int = 1) -> Row:
    """Cause the fault under load, wait until all is well, then run `up`. `longer` multiplies the streams' length."""
    with watching(site.endpoint, STREAMS, longer * site.tokens) as (health, chat, streams):
        since = time.monotonic()
        do()
        limit = time.monotonic() + patience
        observe = time.monotonic() + OBSERVE_SECONDS
        while time.monotonic() < observe or not (health.is_well(since) and chat.is_well(since)):
            assert time.monotonic() < limit, f"{fault}: not well after {patience} s: {chat.summary(since)}"
            time.sleep(0.05)
        for stream in streams:
            stream.join(120)
    summaries = {"health": health.summary(since), "chat": chat.summary(since)}
    whole = sum(stream.end == "whole" for stream in streams)
    parts = [f"{name}: {text}" for name, text in summaries.items() if text]
    if whole < STREAMS:
        parts.append(f"{STREAMS - whole} of {STREAMS} streams cut off")
    return Row(
        fault=fault,
        saw="; ".join(parts) or "nothing",
        seconds=max(chat.recovered(since), health.recovered(since)),
        proxy_seconds=health.reached(since),  # chat may wait for vLLM
        next_up=next_up(site.server),
    )


def next_up(server: Server, *arguments: str) -> str:
    """Run `up` and describe its changes."""
    changed = {name: what for name, what in outcomes(server.up(*arguments)).items() if what != "unchanged"}
    return ", ".join(f"{what} {name}" for name, what in changed.items()) or "nothing"

"""What a drill measures: what clients saw, seconds to recover, and what the next `up` did."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.integration.drills.clients import Endpoint, watching
from tests.integration.drills.server import HTTPS_PORT, Server
from tests.support.netns_machine import outcomes

STREAMS = 3
OBSERVE_SECONDS = 3
"""A fault that clients have not noticed by then has passed them by."""
PROXY_SECONDS = 5
"""Nginx must answer again within that, whatever it has to say."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    saw: str
    seconds: float
    """Until chat worked again."""
    proxy_seconds: float
    """Until Nginx answered again."""
    next_up: str

    @property
    def line(self) -> str:
        """As Markdown."""
        seconds = f"{self.seconds:.1f}" if self.seconds else "0"
        return f"| {self.fault} | {self.saw} | {seconds} | {self.next_up} |"


@dataclass(frozen=True)
class Site:
    """A server that serves, and whether its vLLM is the real one."""

    server: Server
    endpoint: Endpoint
    real: bool

    @property
    def tokens(self) -> int:
        """Of a stream that flows for some 6 s; the real one's depends on the machine."""
        return 600 if self.real else 300


def site(server: Server, *, real: bool) -> Site:
    """The endpoint as the stack's outputs describe it."""
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
    """Do it while clients are at work, until all is well again; then `up`. `longer`: so many times are the streams."""
    with watching(site.endpoint, STREAMS, longer * site.tokens) as (health, chat, streams):
        since = time.monotonic()
        do()
        limit = time.monotonic() + patience
        observe = time.monotonic() + OBSERVE_SECONDS
        while time.monotonic() < observe or not (health.is_well(since) and chat.is_well(since)):
            assert time.monotonic() < limit, f"{fault}: not well after {patience} s: {chat.told(since)}"
            time.sleep(0.05)
        for stream in streams:
            stream.join(120)
    told = {"health": health.told(since), "chat": chat.told(since)}
    whole = sum(stream.end == "whole" for stream in streams)
    parts = [f"{name}: {text}" for name, text in told.items() if text]
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
    """What an `up` changes, in words."""
    changed = {name: what for name, what in outcomes(server.up(*arguments)).items() if what != "unchanged"}
    return ", ".join(f"{what} {name}" for name, what in changed.items()) or "nothing"

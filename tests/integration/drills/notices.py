"""Google's notice that the VM will be stopped, from a stand-in for its metadata server."""

import shlex
import time

from components import render
from components.machine.gpu_vm import DRAIN_SECONDS
from tests.integration.drills.clients import Stream
from tests.integration.drills.measure import STREAMS, Row, Site, next_up
from tests.support.netns_machine import wait_until

PORT = 18181
DRAIN_LIMIT = 60
# Files stand for metadata keys; `python3 -m http.server` serves them unchanged.
METADATA = """
mkdir -p /run/metadata && cd /run/metadata
printf FALSE >preempted
printf NONE >maintenance-event
exec python3 -m http.server --bind 127.0.0.1 {port}
"""


def preempted(site: Site) -> Row:
    return _noticed(site, "preempted", "TRUE", "spot VM preempted: notice")


def maintenance(site: Site) -> Row:
    return _noticed(site, "maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", "host maintenance: notice")


def _noticed(site: Site, key: str, value: str, fault: str) -> Row:
    """Run the service of install-drain.sh without systemd, give the notice, and finally withdraw it."""
    server = site.server
    prefix = f"elastic-vllm-{server.stack}"
    metadata = f"http://127.0.0.1:{PORT}"
    script = render.script("host/install-drain.sh", prefix=prefix, metadata=metadata, drain_seconds=DRAIN_SECONDS)
    server.shell(f"bash -c {shlex.quote(script)}")
    background = [["sh", "-ec", METADATA.format(port=PORT)], [f"/etc/elastic-vllm/{prefix}-drain"]]
    running = [server.start(*command) for command in background]
    try:
        wait_until(lambda: server.run("curl", "-sf", f"http://127.0.0.1:{PORT}/{key}").returncode == 0)
        streams = [Stream(site.endpoint, site.tokens) for _ in range(STREAMS)]
        for stream in streams:
            stream.start()
        wait_until(lambda: all(stream.events > 1 for stream in streams))
        since = time.monotonic()
        server.shell(f"printf {value} >/run/metadata/{key}")
        wait_until(lambda: site.endpoint.ask("/v1/models") != "200", 10)
        refused = f"{site.endpoint.ask('/v1/models')} {time.monotonic() - since:.1f} s after it"
        wait_until(lambda: server.container("nginx").status == "exited", DRAIN_LIMIT)
        drained = time.monotonic() - since
        for stream in streams:
            stream.join(10)
        whole = sum(stream.end == "whole" for stream in streams)
        server.shell("printf FALSE >/run/metadata/preempted; printf NONE >/run/metadata/maintenance-event")
        wait_until(lambda: site.endpoint.ask("/v1/models") == "200", 30)
    finally:
        for process in running:
            server.end(process)
    saw = f"new requests: {refused}; {whole} of {STREAMS} streams completed; drained after {drained:.1f} s"
    return Row(fault, saw, 0, 0, next_up(server))

"""Faults of time: a certificate that has expired, and a clock that jumps."""

import datetime
import io
import json
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.conftest import installed
from tests.integration.drills.measure import Row, Site, measure, next_up
from tests.integration.drills.server import Server
from tests.support.made_stacks import NGINX_IMAGE
from tests.support.netns_machine import wait_until

DAY = 86_400
JUMPS = (2 * DAY, -2 * DAY)
CLOCK_IMAGE = "localhost/elastic-vllm/nginx:clock"
CLOCK_DOCKERFILE = f"FROM {NGINX_IMAGE}\nCOPY clock.so /\nENV LD_PRELOAD=/clock.so\n"


def certificate_expired(site: Site) -> Row:
    """Nobody ran `up` in the last 30 days: Nginx presents an expired certificate."""
    _let_expire(site.server)
    since = time.monotonic()
    saw = site.endpoint.ask("/healthz")
    changed = next_up(site.server)
    wait_until(lambda: site.endpoint.ask("/healthz") == "200", 10)
    seconds = time.monotonic() - since
    return Row("certificate expired", f"{saw}, until the next `up`", seconds, 0, changed)


def _let_expire(server: Server) -> None:
    """Replace the certificate, in the state and in Nginx, with one of the same CA and key that expired yesterday."""
    path = server.directory / "rehearsal" / "stacks" / server.stack / "state.json"
    state = json.loads(path.read_text())
    resources: dict[str, dict[str, Any]] = {
        urn.rpartition("::")[2]: record["outputs"] for urn, record in state["resources"].items()
    }
    old = x509.load_pem_x509_certificate(resources["certificate-server"]["certPem"].encode())
    key = serialization.load_pem_private_key(resources["certificate-ca-key"]["privateKeyPem"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(end - datetime.timedelta(days=397)).not_valid_after(end)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    resources["certificate-server"] |= {"certPem": pem, "validityEndTime": end.isoformat()}
    path.write_text(json.dumps(state))
    shown = server.directory / "lib" / server.stack / "nginx" / "current" / "certificate.pem"
    shown.write_text(pem + resources["certificate-ca"]["certPem"])
    server.shell(f"docker kill --signal HUP {server.container('nginx').name}")
    time.sleep(1)  # until the new workers serve


def clock_jumps(site: Site) -> Row:
    """Nginx's clock jumps. The machine's own clock, which all its processes share, stays."""
    server = site.server
    _build_clock_image(server)
    server.up("--set", f"nginxImage={CLOCK_IMAGE}")
    clock = server.directory / "lib" / server.stack / "nginx" / "clock"
    log = f"/var/log/elastic-vllm/{server.stack}/access.log"
    days: set[str] = set()

    def jump() -> None:
        for each in JUMPS:
            clock.write_text(str(each))
            time.sleep(1)
            assert site.endpoint.ask("/v1/models") == "200"
            days.add(server.shell(f"grep -aF [ {log} | tail -n 1").split("[")[1][:11])

    try:
        row = measure(site, "clock jumps two days ahead, then four back", jump)
    finally:
        clock.unlink(missing_ok=True)
        server.up()
    assert len(days) == len(JUMPS), f"Nginx's clock did not jump: {days}"
    # The drill ran with another image: restore the stack's own before looking at the next `up`.
    return replace(row, next_up=next_up(server))


def _build_clock_image(server: Server) -> None:
    """Build Nginx's image with a wall clock that a file moves."""
    installed("gcc", "build-essential")
    library = server.directory / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content in (("Dockerfile", CLOCK_DOCKERFILE.encode()), ("clock.so", library.read_bytes())):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    server.docker.images.build(fileobj=context, custom_context=True, tag=CLOCK_IMAGE, rm=True)

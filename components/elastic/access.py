"""Check of the API keys for Kibana and Elasticsearch before anything is created."""

from dataclasses import dataclass
from typing import Any

import pulumi

from components.elastic.resources import ElasticsearchAccess, KibanaAccess
from components.settings.elastic import ElasticSettings


@dataclass(frozen=True, kw_only=True)
class ElasticAccessArgs:
    """The Kibana and Elasticsearch that `up` connects."""

    elastic: ElasticSettings
    client_certificates: bool
    """True if clients must show a certificate, which Kibana's connectors can do from 8.19 and 9.1 on."""


class ElasticAccess(pulumi.ComponentResource):
    """Kibana and Elasticsearch, if they are to be connected, accept the API keys, which have the privileges.

    A product that does not answer now is no error: it is needed only once the endpoint works. Other components create
    the resources there.
    """

    checks: tuple[pulumi.Resource, ...]
    kibana_version: pulumi.Output[str]
    """Such as 9.1.3 or `serverless`; empty where Kibana is not connected, or did not answer yet."""

    def __init__(self, name: str, args: ElasticAccessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ElasticAccess", name, None, opts)
        elastic, child = args.elastic, pulumi.ResourceOptions(parent=self)
        checks: list[pulumi.Resource] = []
        self.kibana_version = pulumi.Output.from_input("")
        if elastic.kibana.url:
            props: dict[str, pulumi.Input[Any]] = {"url": elastic.kibana.url, "key": elastic.kibana.key}
            props |= {"ca": elastic.ca, "space": elastic.space, "pki": args.client_certificates}
            kibana = KibanaAccess(f"{name}-kibana", props, child)
            self.kibana_version = kibana.version.apply(lambda version: version or "")
            checks.append(kibana)
        if elastic.elasticsearch.url:
            props = {"url": elastic.elasticsearch.url, "key": elastic.elasticsearch.key, "ca": elastic.ca}
            checks.append(ElasticsearchAccess(f"{name}-elasticsearch", props, child))
        self.checks = tuple(checks)
        self.register_outputs({})

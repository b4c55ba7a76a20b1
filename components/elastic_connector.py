"""What an Elastic admin needs to connect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pulumi

from components import elastic_payloads
from components.elastic_payloads import HTTPS_PORT, ElasticEndpoint

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ElasticConnectorArgs:
    """The endpoint as clients see it."""

    name: str
    """What Elastic is to call it."""
    host: pulumi.Input[str]
    """The name or IP address that the certificate is for."""
    https_port: int
    key: pulumi.Input[str]
    ca_certificate: pulumi.Input[str]
    """PEM."""
    model: str
    """The name that Elastic asks for."""
    context_tokens: int
    """The longest context that is served; 0: unknown."""
    native_function_calling: bool
    ready: tuple[pulumi.Resource, ...]
    """The endpoint works once these exist."""


class ElasticConnector(pulumi.ComponentResource):
    """URL, key and the bodies of the requests that connect Elastic are known, and the endpoint behind them answers.

    Leaves creating the connector in Kibana to the Elastic admin.
    """

    url: pulumi.Output[str]
    key: pulumi.Output[str]
    """Secret."""
    kibana_connector: pulumi.Output[dict[str, Any]]
    """Secret: holds the key."""
    inference_endpoint: pulumi.Output[dict[str, Any]]
    """Secret: holds the key."""
    kibana_settings: pulumi.Output[str]
    preconfigured_connector: pulumi.Output[str]
    """Secret: holds the key."""

    def __init__(self, name: str, args: ElasticConnectorArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:elastic_connector:ElasticConnector", name, None, opts)
        port = "" if args.https_port == HTTPS_PORT else f":{args.https_port}"
        url = pulumi.Output.format("https://{}{}/v1/chat/completions", args.host, port)
        # The outputs wait for the endpoint: whoever has them may use them.
        ready = pulumi.Output.all(*[resource.urn for resource in args.ready])
        self.url = pulumi.Output.all(url, ready).apply(lambda values: str(values[0]))
        self.key = pulumi.Output.secret(pulumi.Output.all(ready, args.key).apply(lambda values: str(values[1])))

        def told(make: Callable[[ElasticEndpoint], T], key: pulumi.Input[str]) -> pulumi.Output[T]:
            """What `make` says of the endpoint; a secret where the key is."""
            return pulumi.Output.all(self.url, key, args.ca_certificate).apply(
                lambda values: make(
                    ElasticEndpoint(
                        name=args.name,
                        url=values[0],
                        key=values[1],
                        model=args.model,
                        context_tokens=args.context_tokens,
                        native_function_calling=args.native_function_calling,
                        ca_certificate=values[2],
                    )
                )
            )

        self.kibana_connector = told(elastic_payloads.kibana_connector, self.key)
        self.inference_endpoint = told(elastic_payloads.inference_endpoint, self.key)
        self.preconfigured_connector = told(elastic_payloads.preconfigured_connector, self.key)
        self.kibana_settings = told(elastic_payloads.kibana_settings, "")
        self.register_outputs({"url": self.url, "key": self.key})

"""Everything that an Elastic admin needs to connect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pulumi

from components import render
from components.elastic import payloads, resources
from components.elastic.payloads import HTTPS_PORT, ElasticEndpoint
from components.elastic.resources import InferenceEndpoint, KibanaConnector, KibanaDefaultConnector
from components.settings.elastic import ElasticProduct, ElasticSettings
from components.tls.client_certificates import ClientCertificate

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ElasticConnectorArgs:
    """The endpoint as clients see it."""

    name: str
    """Name for Elastic."""
    host: pulumi.Input[str]
    """Name or IP address in the certificate."""
    https_port: int
    key: pulumi.Input[str]
    ca_certificate: pulumi.Input[str]
    """PEM."""
    model: str
    """The name that Elastic asks for."""
    max_model_len: int
    """The longest context that is served; 0: unknown."""
    native_function_calling: bool
    ready: tuple[pulumi.Resource, ...]
    """The endpoint works once these exist; empty while it is parked."""
    elastic: ElasticSettings
    kibana_version: pulumi.Input[str]
    """Such as 9.1.3 or `serverless`; empty: the newest is assumed."""
    client: ClientCertificate | None
    """Client certificate for Kibana, or None."""


class ElasticConnector(pulumi.ComponentResource):
    """URL, key and the bodies of the requests that connect Elastic are known, and the endpoint behind them answers.

    Where the settings say so, the connector in Kibana and the inference endpoint in Elasticsearch exist as well. Leaves
    to the Elastic admin what no API changes: kibana.yml, and Java's trust in a private CA.
    """

    endpoint_url: pulumi.Output[str]
    """Base URL of the OpenAI API."""
    url: pulumi.Output[str]
    """URL of the chat completions, which Elastic asks for."""
    key: pulumi.Output[str]
    """Secret."""
    kibana_connector: pulumi.Output[dict[str, Any]]
    """Secret: holds the key."""
    inference_endpoint: pulumi.Output[dict[str, Any]]
    """Secret: holds the key."""
    kibana_settings: pulumi.Output[str]
    preconfigured_connector: pulumi.Output[str]
    """Secret: holds the key."""
    connector_id: str
    """Id in Kibana; empty if none is created."""
    inference_id: str
    """Id in Elasticsearch; empty if none is created."""

    def __init__(self, name: str, args: ElasticConnectorArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ElasticConnector", name, None, opts)
        port = "" if args.https_port == HTTPS_PORT else f":{args.https_port}"
        host = pulumi.Output.from_input(args.host).apply(render.url_host)
        url = pulumi.Output.format("https://{}{}/v1", host, port)
        # The outputs wait for the endpoint, so that a client that has them can use it.
        ready = pulumi.Output.all(*[resource.urn for resource in args.ready])
        self.endpoint_url = pulumi.Output.all(url, ready).apply(lambda values: str(values[0]))
        self.url = self.endpoint_url.apply(lambda known: f"{known}/chat/completions")
        self.key = pulumi.Output.secret(pulumi.Output.all(ready, args.key).apply(lambda values: str(values[1])))

        client = (args.client.certificate, args.client.private_key) if args.client else ("", "")

        def described(make: Callable[[ElasticEndpoint], T], *secrets: pulumi.Input[str]) -> pulumi.Output[T]:
            """Return the result of `make` for the endpoint, which is secret if it has the secrets."""
            key, certificate, private_key = secrets
            given = (self.url, key, args.ca_certificate, certificate, private_key, args.kibana_version)
            return pulumi.Output.all(*given).apply(
                lambda values: make(
                    ElasticEndpoint(
                        name=args.name,
                        url=values[0],
                        key=values[1],
                        model=args.model,
                        max_model_len=args.max_model_len,
                        native_function_calling=args.native_function_calling,
                        ca_certificate=values[2],
                        client_certificate=values[3],
                        client_key=values[4],
                        kibana_version=values[5] or args.elastic.version,
                        deployment=args.elastic.deployment,
                    )
                )
            )

        self.kibana_connector = described(payloads.kibana_connector, self.key, *client)
        self.inference_endpoint = described(payloads.inference_endpoint, self.key, *client)
        self.preconfigured_connector = described(payloads.preconfigured_connector, self.key, *client)
        self.kibana_settings = described(payloads.kibana_settings, "", "", "")
        self.connector_id, self.inference_id = "", ""
        if args.ready:
            self._in_elastic(name, args)
        self.register_outputs(
            {
                "endpointUrl": self.endpoint_url,
                "url": self.url,
                "key": self.key,
                "connectorId": self.connector_id,
                "inferenceId": self.inference_id,
            }
        )

    def _in_elastic(self, name: str, args: ElasticConnectorArgs) -> None:
        """Make what Elastic needs, once the endpoint answers: Elasticsearch tests it at once."""
        elastic = args.elastic
        opts = pulumi.ResourceOptions(parent=self, depends_on=list(args.ready))
        if elastic.kibana.url:
            self.connector_id = payloads.connector_id(args.name)
            props = _props(elastic.kibana, elastic.ca, self.connector_id, self.kibana_connector)
            props["space"] = elastic.space
            connector = KibanaConnector(f"{name}-kibana", props, opts)
            if elastic.default_connector:
                after = pulumi.ResourceOptions(parent=self, depends_on=[connector])
                about = {name: props[name] for name in ("url", "key", "ca", "id", "space")}
                KibanaDefaultConnector(f"{name}-kibana-default", about, after)
        if elastic.elasticsearch.url:
            self.inference_id = args.name
            props = _props(elastic.elasticsearch, elastic.ca, self.inference_id, self.inference_endpoint)
            InferenceEndpoint(f"{name}-inference", props, opts)


def _props(
    product: ElasticProduct, ca: str, id_: str, body: pulumi.Output[dict[str, Any]]
) -> dict[str, pulumi.Input[Any]]:
    return {
        "url": product.url,
        "key": product.key,
        "ca": ca,
        "id": id_,
        "body": body.apply(resources.as_text),
    }

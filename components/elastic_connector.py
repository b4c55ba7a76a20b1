"""What an Elastic admin needs to connect."""

from dataclasses import dataclass

import pulumi


@dataclass(frozen=True, kw_only=True)
class ElasticConnectorArgs:
    """The endpoint as clients see it."""

    host: pulumi.Input[str]
    """The name or IP address that the certificate is for."""
    https_port: int
    key: pulumi.Input[str]
    ready: tuple[pulumi.Resource, ...]
    """The endpoint works once these exist."""


class ElasticConnector(pulumi.ComponentResource):
    """The connector's URL and key are known, and the endpoint behind them answers.

    Leaves creating the connector in Kibana to the Elastic admin.
    """

    url: pulumi.Output[str]
    key: pulumi.Output[str]
    """Secret."""

    def __init__(self, name: str, args: ElasticConnectorArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:elastic_connector:ElasticConnector", name, None, opts)
        port = "" if args.https_port == 443 else f":{args.https_port}"  # noqa: PLR2004 - HTTPS's own port
        url = pulumi.Output.format("https://{}{}/v1/chat/completions", args.host, port)
        # The outputs wait for the endpoint: whoever has them may use them.
        ready = pulumi.Output.all(*[resource.urn for resource in args.ready])
        self.url = pulumi.Output.all(url, ready).apply(lambda values: str(values[0]))
        self.key = pulumi.Output.secret(pulumi.Output.all(ready, args.key).apply(lambda values: str(values[1])))
        self.register_outputs({"url": self.url, "key": self.key})

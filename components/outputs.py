"""The stack's outputs: what each of them is, for docs/reference/outputs.md. Read by people, not by the program."""

from collections.abc import Mapping
from typing import NamedTuple


class Output(NamedTuple):
    """An output: its description, and whether Pulumi keeps it secret."""

    description: str
    secret: bool = False


OUTPUTS: Mapping[str, Output] = {
    "endpointUrl": Output("Base URL for OpenAI clients: `https://HOST[:PORT]/v1`"),
    "connectorUrl": Output("Full URL of the chat route, as Kibana's connector and the inference endpoint need it"),
    "connectorApiKey": Output("The key `default`, in its current version", secret=True),
    "apiKeys": Output("All other keys by name, each in its current version", secret=True),
    "model": Output("The model's name on the hub"),
    "servedModelName": Output("The model's stable second name; empty if there is none"),
    "nativeFunctionCalling": Output("Whether the model can call tools natively"),
    "maxModelLen": Output("The longest context in tokens; 0 if it is not known"),
    "caCertificate": Output("Certificate of the CA that clients have to trust, in PEM; empty for a public CA"),
    "clientCertificates": Output("By name: `certificate` and `privateKey` of a client, in PEM", secret=True),
    "kibanaConnectorRequest": Output("Body of the request that creates the connector in Kibana", secret=True),
    "inferenceEndpointRequest": Output(
        "Body of the request that creates the inference endpoint in Elasticsearch; empty with client certificates",
        secret=True,
    ),
    "kibanaYml": Output("Block for `kibana.yml` that every connector to the endpoint needs"),
    "preconfiguredConnectorYml": Output("Block for `kibana.yml` that defines a preconfigured connector", secret=True),
    "kibanaConnectorId": Output("ID of the connector that `up` created; empty if it created none"),
    "inferenceEndpointId": Output("ID of the inference endpoint that `up` created; empty if it created none"),
    "elasticAgentPolicy": Output("Standalone policy for Elastic Agent on the server; none while the VM is parked"),
}
"""Every output but `_internal`, in the order of the exports."""

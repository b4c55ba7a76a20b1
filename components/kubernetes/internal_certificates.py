"""Certificates between the gateway and vLLM's pods, from a CA that signs nothing else."""

from dataclasses import dataclass

import pulumi

from components.tls.authority import issue, make_authority


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate_pem: pulumi.Output[str]
    private_key_pem: pulumi.Output[str]
    """A secret."""


class InternalCertificates(pulumi.ComponentResource):
    """The gateways have a client certificate, and vLLM's pods a server certificate that they let the gateways in by.

    An `up` in the last 30 days of their 366 renews them, in place: pods load them as they load keys.
    """

    ca_pem: pulumi.Output[str]
    gateway: Pair
    door: Pair

    def __init__(self, name: str, door_name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        """`door_name` is the name in the certificate of vLLM's pods."""
        super().__init__("elastic-vllm:index:InternalCertificates", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        ca = make_authority(name, "elastic-vllm internal", child)
        self.ca_pem = ca.certificate.cert_pem

        def pair(role: str, common_name: str, use: str) -> Pair:
            issued = issue(f"{name}-{role}", ca, child, common_name=common_name[:64], use=use, dns_names=[common_name])
            return Pair(certificate_pem=issued.certificate.cert_pem, private_key_pem=issued.key.private_key_pem)

        self.gateway = pair("gateway", "gateway", "client_auth")
        self.door = pair("door", door_name, "server_auth")
        self.register_outputs({"caPem": self.ca_pem})

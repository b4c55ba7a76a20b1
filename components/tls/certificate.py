"""Certificate of the endpoint that the program knows: from the stack's own CA, or provided."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime

import pulumi

from components.settings.acme import AcmeSettings
from components.settings.tls import ProvidedCertificate
from components.tls.authority import issue, make_authority

WARNING_DAYS = 30


@dataclass(frozen=True, kw_only=True)
class CertificateArgs:
    """Host name of the endpoint, and the source of its certificate."""

    host: pulumi.Input[str]
    """Name or IP address that clients connect to."""
    provided: ProvidedCertificate | None
    """Certificate that was issued elsewhere, or None."""
    acme: AcmeSettings | None
    """ACME server that issues one to the host, or None. Without both, the stack's own CA signs one."""


class Certificate(pulumi.ComponentResource):
    """A server certificate for the endpoint exists: the provided one, or one signed by the stack's own CA.

    If an ACME server issues it to the host (AcmeCertificate), this component creates none and only knows which CA
    clients must trust.

    An `up` in the last 30 days of its 366 renews a certificate of the stack's CA, which lasts 10 years. Clients must
    be set up to trust the CA.
    """

    certificate_pem: pulumi.Output[str]
    """The server's certificate, then the CA's. Like the key, it is empty if an ACME server issues it to the host."""
    private_key_pem: pulumi.Output[str]
    """Private key of the certificate, a secret."""
    ca_certificate_pem: pulumi.Output[str]
    """Certificate of the CA that clients must be set up to trust; empty for a public one."""

    def __init__(self, name: str, args: CertificateArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:Certificate", name, None, opts)
        if args.provided:
            self._take(args.provided)
        elif args.acme:
            self.certificate_pem = self.private_key_pem = pulumi.Output.from_input("")
            self.ca_certificate_pem = pulumi.Output.from_input(args.acme.ca)
        else:
            self._make(name, args)
        self.register_outputs({"certificatePem": self.certificate_pem, "caCertificatePem": self.ca_certificate_pem})

    def _take(self, provided: ProvidedCertificate) -> None:
        left = (provided.expires - datetime.now(UTC)).days
        if left < WARNING_DAYS:
            pulumi.log.warn(f"tlsCertificate expires in {left} days, on {provided.expires:%Y-%m-%d}: renew it", self)
        self.certificate_pem = pulumi.Output.from_input(provided.chain)
        self.private_key_pem = provided.private_key
        self.ca_certificate_pem = pulumi.Output.from_input(provided.ca)

    def _make(self, name: str, args: CertificateArgs) -> None:
        child = pulumi.ResourceOptions(parent=self)
        ca = make_authority(name, "elastic-vllm CA", child)
        host = pulumi.Output.from_input(args.host)
        server = issue(
            name,
            ca,
            child,
            common_name=host.apply(lambda name: name[:64]),
            use="server_auth",
            dns_names=host.apply(lambda name: None if _is_ip_address(name) else [name]),
            ip_addresses=host.apply(lambda name: [name] if _is_ip_address(name) else None),
            role="server",
        )
        self.certificate_pem = pulumi.Output.concat(server.certificate.cert_pem, ca.certificate.cert_pem)
        self.private_key_pem = server.key.private_key_pem
        self.ca_certificate_pem = ca.certificate.cert_pem


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

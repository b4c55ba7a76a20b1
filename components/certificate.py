"""The endpoint's certificate, from a certificate authority of the stack's own."""

import ipaddress
from dataclasses import dataclass

import pulumi
import pulumi_tls as tls

CA_HOURS = 10 * 365 * 24
# 397 days: the most that TLS clients accepted of a public CA for years; some check private ones alike.
SERVER_HOURS = 397 * 24
RENEWAL_HOURS = 30 * 24


@dataclass(frozen=True, kw_only=True)
class CertificateArgs:
    """What the certificate is for."""

    host: pulumi.Input[str]
    """The name or IP address that clients connect to."""


class Certificate(pulumi.ComponentResource):
    """A server certificate for the endpoint exists, signed by the stack's own CA.

    An `up` in the last 30 days of its 397 renews it; the CA lasts 10 years. Leaves trusting the CA to clients.
    """

    certificate_pem: pulumi.Output[str]
    """The server's certificate followed by the CA's."""
    private_key_pem: pulumi.Output[str]
    """Secret."""
    ca_certificate_pem: pulumi.Output[str]

    def __init__(self, name: str, args: CertificateArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:certificate:Certificate", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        ca_key = tls.PrivateKey(f"{name}-ca-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
        ca = tls.SelfSignedCert(
            f"{name}-ca",
            private_key_pem=ca_key.private_key_pem,
            subject=tls.SelfSignedCertSubjectArgs(common_name="elastic-vllm CA", organization="elastic-vllm"),
            is_ca_certificate=True,
            set_subject_key_id=True,
            validity_period_hours=CA_HOURS,
            allowed_uses=["cert_signing", "crl_signing"],
            opts=child,
        )
        key = tls.PrivateKey(f"{name}-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
        host = pulumi.Output.from_input(args.host)
        request = tls.CertRequest(
            f"{name}-request",
            private_key_pem=key.private_key_pem,
            subject=tls.CertRequestSubjectArgs(common_name=host.apply(lambda name: name[:64])),
            dns_names=host.apply(lambda name: None if _is_ip_address(name) else [name]),
            ip_addresses=host.apply(lambda name: [name] if _is_ip_address(name) else None),
            opts=child,
        )
        server = tls.LocallySignedCert(
            f"{name}-server",
            cert_request_pem=request.cert_request_pem,
            ca_private_key_pem=ca_key.private_key_pem,
            ca_cert_pem=ca.cert_pem,
            set_subject_key_id=True,
            validity_period_hours=SERVER_HOURS,
            early_renewal_hours=RENEWAL_HOURS,
            allowed_uses=["digital_signature", "server_auth"],
            opts=child,
        )
        self.certificate_pem = pulumi.Output.concat(server.cert_pem, ca.cert_pem)
        self.private_key_pem = key.private_key_pem
        self.ca_certificate_pem = ca.cert_pem
        self.register_outputs({"caCertificatePem": self.ca_certificate_pem})


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

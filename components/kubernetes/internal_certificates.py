"""Certificates between the gateway and vLLM's pods, from a CA that signs nothing else."""

from dataclasses import dataclass

import pulumi
import pulumi_tls as tls

from components.tls.certificate import CA_HOURS, RENEWAL_HOURS, SERVER_HOURS


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
        ca_key = tls.PrivateKey(f"{name}-ca-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
        ca = tls.SelfSignedCert(
            f"{name}-ca",
            private_key_pem=ca_key.private_key_pem,
            subject=tls.SelfSignedCertSubjectArgs(common_name="elastic-vllm internal", organization="elastic-vllm"),
            is_ca_certificate=True,
            set_subject_key_id=True,
            validity_period_hours=CA_HOURS,
            allowed_uses=["cert_signing", "crl_signing"],
            opts=child,
        )
        self.ca_pem = ca.cert_pem

        def issue(role: str, common_name: str, use: str) -> Pair:
            key = tls.PrivateKey(f"{name}-{role}-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
            request = tls.CertRequest(
                f"{name}-{role}-request",
                private_key_pem=key.private_key_pem,
                subject=tls.CertRequestSubjectArgs(common_name=common_name[:64]),
                dns_names=[common_name],
                opts=child,
            )
            certificate = tls.LocallySignedCert(
                f"{name}-{role}-certificate",
                cert_request_pem=request.cert_request_pem,
                ca_private_key_pem=ca_key.private_key_pem,
                ca_cert_pem=ca.cert_pem,
                set_subject_key_id=True,
                validity_period_hours=SERVER_HOURS,
                early_renewal_hours=RENEWAL_HOURS,
                allowed_uses=["digital_signature", use],
                opts=child,
            )
            return Pair(certificate_pem=certificate.cert_pem, private_key_pem=key.private_key_pem)

        self.gateway = issue("gateway", "gateway", "client_auth")
        self.door = issue("door", door_name, "server_auth")
        self.register_outputs({"caPem": self.ca_pem})

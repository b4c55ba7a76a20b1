"""Certificates for clients, from a dedicated certificate authority."""

from dataclasses import dataclass

import pulumi
import pulumi_tls as tls

from components.tls.certificate import CA_HOURS, RENEWAL_HOURS, SERVER_HOURS


@dataclass(frozen=True, kw_only=True)
class ClientCertificatesArgs:
    """The clients that get a certificate."""

    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """Certificate and private key of one client, in PEM. The key is PKCS#8, the only format that Kibana accepts."""

    certificate: pulumi.Output[str]
    private_key: pulumi.Output[str]
    """Private key of the certificate, a secret."""


class ClientCertificates(pulumi.ComponentResource):
    """Each name has a certificate with that subject, from a CA that signs nothing else.

    An `up` in the last 30 days of its 366 renews one, with the same key and name, so the old one works until it
    expires. Nginx must check that a client's name is in the list.
    """

    ca_pem: pulumi.Output[str] | None
    """Certificate of the CA; None without names."""
    of: dict[str, ClientCertificate]

    def __init__(self, name: str, args: ClientCertificatesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ClientCertificates", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.ca_pem, self.of = None, {}
        if args.names:
            ca_key = tls.PrivateKey(f"{name}-ca-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
            ca = tls.SelfSignedCert(
                f"{name}-ca",
                private_key_pem=ca_key.private_key_pem,
                subject=tls.SelfSignedCertSubjectArgs(common_name="elastic-vllm clients", organization="elastic-vllm"),
                is_ca_certificate=True,
                set_subject_key_id=True,
                validity_period_hours=CA_HOURS,
                allowed_uses=["cert_signing", "crl_signing"],
                opts=child,
            )
            self.ca_pem = ca.cert_pem
            for client in args.names:
                self.of[client] = _issue(f"{name}-of-{client}", client, ca_key, ca, child)
        certificates = {name: client.certificate for name, client in self.of.items()}
        self.register_outputs({"caPem": self.ca_pem, "certificates": certificates})


def subject(name: str) -> str:
    """Return a certificate's subject in the form that Nginx uses (RFC 2253)."""
    return f"CN={name}"


def _issue(
    name: str, client: str, ca_key: tls.PrivateKey, ca: tls.SelfSignedCert, child: pulumi.ResourceOptions
) -> ClientCertificate:
    key = tls.PrivateKey(f"{name}-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
    request = tls.CertRequest(
        f"{name}-request",
        private_key_pem=key.private_key_pem,
        subject=tls.CertRequestSubjectArgs(common_name=client),
        opts=child,
    )
    certificate = tls.LocallySignedCert(
        f"{name}-certificate",
        cert_request_pem=request.cert_request_pem,
        ca_private_key_pem=ca_key.private_key_pem,
        ca_cert_pem=ca.cert_pem,
        set_subject_key_id=True,
        validity_period_hours=SERVER_HOURS,
        early_renewal_hours=RENEWAL_HOURS,
        allowed_uses=["digital_signature", "client_auth"],
        opts=child,
    )
    return ClientCertificate(certificate=certificate.cert_pem, private_key=key.private_key_pem_pkcs8)

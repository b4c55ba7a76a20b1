"""Certificates for clients, from a dedicated certificate authority."""

from dataclasses import dataclass

import pulumi

from components.tls.authority import issue, make_authority


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
            ca = make_authority(name, "elastic-vllm clients", child)
            self.ca_pem = ca.certificate.cert_pem
            for client in args.names:
                issued = issue(f"{name}-of-{client}", ca, child, common_name=client, use="client_auth")
                self.of[client] = ClientCertificate(
                    certificate=issued.certificate.cert_pem, private_key=issued.key.private_key_pem_pkcs8
                )
        certificates = {name: client.certificate for name, client in self.of.items()}
        self.register_outputs({"caPem": self.ca_pem, "certificates": certificates})


def subject(name: str) -> str:
    """Return a certificate's subject in the form that Nginx uses (RFC 2253)."""
    return f"CN={name}"

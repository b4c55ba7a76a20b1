"""Certificate authorities of a stack, and the certificates that they sign."""

from dataclasses import dataclass

import pulumi
import pulumi_tls as tls

CA_HOURS = 10 * 365 * 24
# The maximum in Mozilla's guideline; some clients check private CAs like public ones, and refuse more than 397 days.
SIGNED_HOURS = 366 * 24
RENEWAL_HOURS = 30 * 24


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA of the stack's own, valid for 10 years."""

    key: tls.PrivateKey
    certificate: tls.SelfSignedCert


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A private key and the certificate for it."""

    key: tls.PrivateKey
    certificate: tls.LocallySignedCert


def make_authority(name: str, common_name: str, child: pulumi.ResourceOptions) -> Authority:
    """Make a CA; its resources are `NAME-ca-key` and `NAME-ca`."""
    key = tls.PrivateKey(f"{name}-ca-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
    certificate = tls.SelfSignedCert(
        f"{name}-ca",
        private_key_pem=key.private_key_pem,
        subject=tls.SelfSignedCertSubjectArgs(common_name=common_name, organization="elastic-vllm"),
        is_ca_certificate=True,
        set_subject_key_id=True,
        validity_period_hours=CA_HOURS,
        allowed_uses=["cert_signing", "crl_signing"],
        opts=child,
    )
    return Authority(key=key, certificate=certificate)


def issue(
    name: str,
    authority: Authority,
    child: pulumi.ResourceOptions,
    *,
    common_name: pulumi.Input[str],
    use: str,
    dns_names: pulumi.Input[list[str] | None] = None,
    ip_addresses: pulumi.Input[list[str] | None] = None,
    role: str = "certificate",
) -> Issued:
    """Make a key and its certificate, valid for 366 days, which an `up` in the last 30 of them renews.

    The resources are `NAME-key`, `NAME-request` and `NAME-ROLE`. `use` is server_auth or client_auth.
    """
    key = tls.PrivateKey(f"{name}-key", algorithm="ECDSA", ecdsa_curve="P256", opts=child)
    request = tls.CertRequest(
        f"{name}-request",
        private_key_pem=key.private_key_pem,
        subject=tls.CertRequestSubjectArgs(common_name=common_name),
        dns_names=dns_names,
        ip_addresses=ip_addresses,
        opts=child,
    )
    certificate = tls.LocallySignedCert(
        f"{name}-{role}",
        cert_request_pem=request.cert_request_pem,
        ca_private_key_pem=authority.key.private_key_pem,
        ca_cert_pem=authority.certificate.cert_pem,
        set_subject_key_id=True,
        validity_period_hours=SIGNED_HOURS,
        early_renewal_hours=RENEWAL_HOURS,
        allowed_uses=["digital_signature", use],
        opts=child,
    )
    return Issued(key=key, certificate=certificate)

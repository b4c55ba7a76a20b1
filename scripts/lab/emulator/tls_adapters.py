"""Adapters for tls:* and random:*, whose resources exist only in the state."""

import base64
import datetime
import ipaddress
import secrets
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from scripts.lab import RehearsalError
from scripts.lab.emulator.resource import Adapter, Resource, Seen

CURVES: dict[str, type[ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1]] = {
    "P256": ec.SECP256R1,
    "P384": ec.SECP384R1,
    "P521": ec.SECP521R1,
}
SUBJECT: dict[str, ObjectIdentifier] = {
    "commonName": NameOID.COMMON_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "country": NameOID.COUNTRY_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "province": NameOID.STATE_OR_PROVINCE_NAME,
}
KEY_USAGES = {
    "digital_signature": "digital_signature",
    "content_commitment": "content_commitment",
    "key_encipherment": "key_encipherment",
    "data_encipherment": "data_encipherment",
    "key_agreement": "key_agreement",
    "cert_signing": "key_cert_sign",
    "crl_signing": "crl_sign",
    "encipher_only": "encipher_only",
    "decipher_only": "decipher_only",
}
EXTENDED_USAGES = {
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}


def _create_private_key(resource: Resource) -> tuple[str, dict[str, Any]]:
    algorithm, curve = resource.inputs["algorithm"], resource.inputs.get("ecdsaCurve", "P224")
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    if algorithm == "ED25519":
        key, traditional = ed25519.Ed25519PrivateKey.generate(), serialization.PrivateFormat.PKCS8
    elif algorithm == "ECDSA" and curve in CURVES:
        key, traditional = ec.generate_private_key(CURVES[curve]()), serialization.PrivateFormat.TraditionalOpenSSL
    else:
        raise RehearsalError(
            f"the rehearsal makes no {algorithm} keys of curve {curve}: use ED25519, or ECDSA with P256"
        )
    public = key.public_key()
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    openssh = serialization.PublicFormat.OpenSSH
    outputs = {
        "privateKeyPem": key.private_bytes(pem, traditional, plain).decode(),
        "privateKeyPemPkcs8": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode(),
        "privateKeyOpenssh": key.private_bytes(pem, serialization.PrivateFormat.OpenSSH, plain).decode(),
        "publicKeyPem": public.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo).decode(),
        "publicKeyOpenssh": public.public_bytes(serialization.Encoding.OpenSSH, openssh).decode() + "\n",
    }
    return secrets.token_hex(20), outputs


def _create_self_signed(resource: Resource) -> tuple[str, dict[str, Any]]:
    inputs = resource.inputs
    key = _load_key(inputs["privateKeyPem"])
    subject = _subject(inputs)
    builder = _builder(inputs, subject, subject, key.public_key())
    if names := _alternative_names(inputs):
        builder = builder.add_extension(names, critical=False)
    if inputs.get("setAuthorityKeyId"):
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        builder = builder.add_extension(issuer, critical=False)
    return _certificate(builder.sign(key, hashes.SHA256()))


def _create_request(resource: Resource) -> tuple[str, dict[str, Any]]:
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(resource.inputs))
    if names := _alternative_names(resource.inputs):
        builder = builder.add_extension(names, critical=False)
    request = builder.sign(_load_key(resource.inputs["privateKeyPem"]), hashes.SHA256())
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    return secrets.token_hex(20), {"certRequestPem": pem, "keyAlgorithm": "ECDSA"}


def _create_locally_signed(resource: Resource) -> tuple[str, dict[str, Any]]:
    inputs = resource.inputs
    request = x509.load_pem_x509_csr(inputs["certRequestPem"].encode())
    authority = x509.load_pem_x509_certificate(inputs["caCertPem"].encode())
    public = request.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise RehearsalError("the rehearsal signs requests with ECDSA keys only")
    builder = _builder(inputs, request.subject, authority.subject, public)
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, critical=False)
    ca_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    builder = builder.add_extension(issuer, critical=False)
    id_, outputs = _certificate(builder.sign(_load_key(inputs["caPrivateKeyPem"]), hashes.SHA256()))
    return id_, {**outputs, "caKeyAlgorithm": "ECDSA"}


def _read_certificate(resource: Resource) -> Seen:
    """Report a certificate in its window of early renewal as expired, like the real provider."""
    end = datetime.datetime.fromisoformat(resource.outputs["validityEndTime"])
    early = datetime.timedelta(hours=resource.inputs.get("earlyRenewalHours", 0))
    return "expired" if datetime.datetime.now(datetime.UTC) >= end - early else "same"


def _builder(
    inputs: dict[str, Any], subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    is_ca = bool(inputs.get("isCaCertificate"))
    length = inputs.get("maxPathLength", -1)
    constraints = x509.BasicConstraints(ca=is_ca, path_length=length if is_ca and length >= 0 else None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=inputs["validityPeriodHours"]))
        .add_extension(constraints, critical=True)
    )
    uses = list(inputs["allowedUses"])
    unknown = sorted(set(uses) - KEY_USAGES.keys() - EXTENDED_USAGES.keys())
    if unknown:
        raise RehearsalError(f"the rehearsal doesn't know {', '.join(unknown)} in allowedUses")
    key_uses = {KEY_USAGES[use] for use in uses if use in KEY_USAGES}
    if key_uses:
        usage = x509.KeyUsage(**{name: name in key_uses for name in KEY_USAGES.values()})
        builder = builder.add_extension(usage, critical=True)
    if extended := [EXTENDED_USAGES[use] for use in uses if use in EXTENDED_USAGES]:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    if is_ca or inputs.get("setSubjectKeyId"):
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return builder


def _certificate(certificate: x509.Certificate) -> tuple[str, dict[str, Any]]:
    outputs = {
        "certPem": certificate.public_bytes(serialization.Encoding.PEM).decode(),
        "keyAlgorithm": "ECDSA",
        "readyForRenewal": False,
        "validityStartTime": certificate.not_valid_before_utc.isoformat(),
        "validityEndTime": certificate.not_valid_after_utc.isoformat(),
    }
    return str(certificate.serial_number), outputs


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RehearsalError("the rehearsal signs with ECDSA keys only")
    return key


def _subject(inputs: dict[str, Any]) -> x509.Name:
    subject = inputs.get("subject", {})
    unknown = sorted(subject.keys() - SUBJECT.keys())
    if unknown:
        raise RehearsalError(f"the rehearsal doesn't know {', '.join(unknown)} in a certificate's subject")
    return x509.Name([x509.NameAttribute(SUBJECT[key], value) for key, value in subject.items()])


def _alternative_names(inputs: dict[str, Any]) -> x509.SubjectAlternativeName | None:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in inputs.get("dnsNames", [])]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in inputs.get("ipAddresses", [])]
    return x509.SubjectAlternativeName(names) if names else None


def _create_random_bytes(resource: Resource) -> tuple[str, dict[str, Any]]:
    value = secrets.token_bytes(int(resource.inputs["length"]))
    return secrets.token_hex(8), {"base64": base64.b64encode(value).decode(), "hex": value.hex()}


_SIGNED = {
    "allowedUses",
    "validityPeriodHours",
    "earlyRenewalHours",
    "isCaCertificate",
    "maxPathLength",
    "setSubjectKeyId",
}
_NAMED = {"privateKeyPem", "subject", "dnsNames", "ipAddresses"}

ADAPTERS = {
    "random:index/randomBytes:RandomBytes": Adapter(
        inputs=frozenset({"length", "keepers"}), create=_create_random_bytes
    ),
    "tls:index/privateKey:PrivateKey": Adapter(
        inputs=frozenset({"algorithm", "ecdsaCurve"}), create=_create_private_key
    ),
    "tls:index/selfSignedCert:SelfSignedCert": Adapter(
        inputs=frozenset(_NAMED | _SIGNED | {"setAuthorityKeyId"}),
        create=_create_self_signed,
        read=_read_certificate,
    ),
    "tls:index/certRequest:CertRequest": Adapter(inputs=frozenset(_NAMED), create=_create_request),
    "tls:index/locallySignedCert:LocallySignedCert": Adapter(
        inputs=frozenset(_SIGNED | {"certRequestPem", "caCertPem", "caPrivateKeyPem"}),
        create=_create_locally_signed,
        read=_read_certificate,
    ),
}

"""Certificate of the endpoint from an ACME server: issued to the server itself, and renewed there."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pulumi
from cryptography import x509

from components import render
from components.machine.host import Host
from components.serving.vllm_process import NGINX_UID, SOCKET_GID
from components.settings.acme import LETS_ENCRYPT, AcmeSettings

ACME_FILE = "acme/certificate-and-key.pem"
"""Path of the certificate in Nginx's directory."""
LOOK_SECONDS = 3
# Let's Encrypt's certificates last 90 days or less and are renewed with a third of that left, so a quarter is late.
WARNING_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class AcmeCertificateArgs:
    """The issuer, the name to certify, and the host."""

    host: Host
    name: pulumi.Input[str]
    """Name or IP address that clients connect to, and that the ACME server checks on port 80."""
    https_port: int
    acme: AcmeSettings


class AcmeCertificate(pulumi.ComponentResource):
    """A certificate for the endpoint is on the host and is renewed there in time; Nginx reloads to use each new one.

    The private key never leaves the host. Port 80 is open only while the ACME server checks the name. This component
    leaves Nginx's configuration to others.
    """

    issued: pulumi.Resource

    def __init__(self, name: str, args: AcmeCertificateArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:AcmeCertificate", name, None, opts)
        host = args.host
        places = {"prefix": host.prefix, "directory": host.directory}

        def scripts(endpoint: str) -> str:
            renew = render.template(
                "acme/renew-certificate.sh.j2",
                common=(render.FILES / "host/common.sh").read_text(encoding="utf-8"),
                host=endpoint,
                server=args.acme.directory,
                public=args.acme.directory in LETS_ENCRYPT.values(),
                **places,
                downloads=host.downloads,
                nginx=f"{host.directory}/nginx",
                file=ACME_FILE,
                engine=host.engine,
                container=f"{host.prefix}-nginx",
                owner=NGINX_UID,
                gid=SOCKET_GID,
            )
            return render.script(
                "host/install-python-client.sh",
                "acme/install-acme-certificate.sh",
                **places,
                renew=renew,
                ca=args.acme.ca,
                requirements=(render.FILES / "acme/acme-client.txt").read_text(encoding="utf-8").strip(),
            )

        self.issued = host.command(
            f"{name}-certificate",
            pulumi.Output.from_input(args.name).apply(scripts),
            cleanup=render.script("acme/remove-acme-certificate.sh", **places),
            parent=self,
        )
        pulumi.Output.from_input(args.name).apply(lambda endpoint: self._look(endpoint, args))
        self.register_outputs({})

    def _look(self, endpoint: str, args: AcmeCertificateArgs) -> None:
        """Warn if the endpoint presents a certificate that should have been renewed by now."""
        certificate, unit = served_certificate(endpoint, args.https_port), f"{args.host.prefix}-acme"
        if certificate and (warning := renewal_warning(certificate, unit, datetime.now(UTC))):
            pulumi.log.warn(f"{endpoint}: {warning}", self)


def served_certificate(host: str, port: int) -> x509.Certificate | None:
    """Return the certificate that the endpoint presents, or None if this machine can't reach an endpoint."""
    try:
        pem = ssl.get_server_certificate((host, port), timeout=LOOK_SECONDS)
        return x509.load_pem_x509_certificate(pem.encode())
    except (OSError, ValueError):
        return None


def renewal_warning(certificate: x509.Certificate, unit: str, now: datetime) -> str:
    """Return a warning that the renewal is late, and where to look; empty if it is not late."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end - now >= (end - begin) * WARNING_SHARE:
        return ""
    left = max(end - now, timedelta())
    state = f"expires in {left.days} days" if left else "has expired"
    return (
        f"the certificate {state}, on {end:%Y-%m-%d}, and was not renewed: does the ACME server still reach this name "
        f"on port 80? On the server see: journalctl -u {unit}"
    )

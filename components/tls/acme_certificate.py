"""The endpoint's certificate from an ACME server: issued to the server itself, and renewed there."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pulumi
from cryptography import x509

from components import render
from components.machine.host import Host
from components.serving.vllm_server import NGINX_UID, SOCKET_GID
from components.settings.acme import LETS_ENCRYPT, AcmeSettings

ACME_FILE = "acme/certificate-and-key.pem"
"""In Nginx's directory."""
LOOK_SECONDS = 3
# Let's Encrypt's last 90 days or less, and are renewed when a third of that is left: a quarter is late for all.
WARNING_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class AcmeCertificateArgs:
    """Who issues it, and for what."""

    host: Host
    name: pulumi.Input[str]
    """The name or IP address that clients connect to, and the ACME server asks on port 80."""
    https_port: int
    acme: AcmeSettings


class AcmeCertificate(pulumi.ComponentResource):
    """A certificate for the endpoint is on the host, and renewed there in time; Nginx takes each by a reload.

    The private key never leaves the host. Port 80 is open while the ACME server asks, and at no other time. Leaves
    telling Nginx of it to others.
    """

    issued: pulumi.Resource

    def __init__(self, name: str, args: AcmeCertificateArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:AcmeCertificate", name, None, opts)
        host = args.host
        places = {"prefix": host.prefix, "directory": host.directory}

        def scripts(endpoint: str) -> str:
            renew = render.template(
                "acme/renew-certificate.sh.j2",
                common=(render.FILES / "host/common.sh").read_text(),
                host=endpoint,
                server=args.acme.directory,
                public=args.acme.directory in LETS_ENCRYPT.values(),
                **places,
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
                requirements=(render.FILES / "acme/acme-client.txt").read_text().strip(),
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
        """Warn where the endpoint shows a certificate that should have been renewed by now."""
        certificate, unit = served_certificate(endpoint, args.https_port), f"{args.host.prefix}-acme"
        if certificate and (warning := renewal_warning(certificate, unit, datetime.now(UTC))):
            pulumi.log.warn(f"{endpoint}: {warning}", self)


def served_certificate(host: str, port: int) -> x509.Certificate | None:
    """What the endpoint shows, if it is there yet and this machine may reach it."""
    try:
        pem = ssl.get_server_certificate((host, port), timeout=LOOK_SECONDS)
        return x509.load_pem_x509_certificate(pem.encode())
    except (OSError, ValueError):
        return None


def renewal_warning(certificate: x509.Certificate, unit: str, now: datetime) -> str:
    """That the renewal is late, and where to look; empty while it is not."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end - now >= (end - begin) * WARNING_SHARE:
        return ""
    left = max(end - now, timedelta())
    state = f"expires in {left.days} days" if left else "has expired"
    return (
        f"the certificate {state}, on {end:%Y-%m-%d}, and was not renewed: does the ACME server still reach this name "
        f"on port 80? On the server see: journalctl -u {unit}"
    )

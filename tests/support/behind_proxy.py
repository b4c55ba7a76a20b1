"""A server whose only way out is a company's proxy: squid, with a password, inspecting TLS with a CA of its own.

`Outside` is a separate network with the proxy and, behind it, a hub, a package index, a package repository and an ACME
server. Only the proxy can resolve their names, and the server has no route to their address. The server is a copy of
this machine in a third network, with one cable to the proxy.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.integration.conftest import ROOT, installed
from tests.support import machine_copy
from tests.support.machine_copy import Copy
from tests.support.verify_server import Authority, issue, new_authority

PROXY, SERVER, INTERNET = "198.51.100.1", "198.51.100.2", "203.0.113.10"
INSPECTING, PASSING = 3128, 3129
"""Ports of the proxy: one that inspects TLS, and one that lets it through."""
DIRECT_PORT = 8080
"""Port at the proxy's address that serves the internet's files without any proxy, as an internal mirror does."""
ACME_PORT = 14000
USER, PASSWORD = "DOMAIN%5Cops", "p%40ss%22%25!$&'()*,;~"
HUB, MODEL = "https://hub.example", "acme/tiny"
NAMES = (
    "hub.example",
    "cdn.example",
    "pypi.org",
    "files.pythonhosted.org",
    "deb.example",
    "nvidia.example",
    "acme.example",
)
LARGE = b'{"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
FILES = {
    "model.safetensors": len(LARGE).to_bytes(8, "little") + LARGE + bytes(8),
    "config.json": b'{"model_type": "llama"}\n',
    "tokenizer.json": b"{}",
}
SQUID = """
http_port {proxy}:{inspecting} ssl-bump generate-host-certificates=on tls-cert={directory}/company.pem
http_port {proxy}:{passing}
acl inspected myportname {proxy}:{inspecting}
ssl_bump bump inspected
ssl_bump none all
sslcrtd_program /usr/lib/squid/security_file_certgen -s {directory}/made -M 4MB
tls_outgoing_options cafile={directory}/internet-ca.pem
auth_param basic program /usr/lib/squid/basic_ncsa_auth {directory}/passwords
auth_param basic casesensitive on
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all
hosts_file {directory}/hosts
dns_nameservers 127.0.0.1
access_log stdio:{directory}/log/access.log
cache_log {directory}/log/cache.log
pid_filename none
coredump_dir {directory}/log
cache deny all
shutdown_lifetime 0 seconds
max_filedescriptors 1024
"""
NETWORK = """
set -e
ip link set lo up
ip address add {internet}/32 dev lo
mount --bind {directory}/hosts /etc/hosts
echo ready
read -r _
exec {python} -m tests.support.internet {directory}
"""


@dataclass(frozen=True)
class Outside:
    """The proxy and what is behind it; `internet` in its directory holds what is served there."""

    directory: Path
    pid: int

    def address(self, port: int = INSPECTING, password: str = PASSWORD) -> str:
        return f"http://{USER}:{password}@{PROXY}:{port}"

    def requests(self) -> list[str]:
        """Return what the proxy was asked so far: method and URL."""
        lines = (self.directory / "log" / "access.log").read_text().splitlines()
        return [" ".join(line.split()[5:7]) for line in lines]

    @property
    def company_ca(self) -> Path:
        return self.directory / "company-ca.pem"


@contextmanager
def outside(contents: Path) -> Iterator[Outside]:
    """Run proxy and internet until the block ends; `contents` is served as index (simple/) and repository (deb/)."""
    installed("squid", "squid-openssl")
    installed("pebble", "pebble")
    directory = Path(tempfile.mkdtemp(prefix="elastic-vllm-proxy-"))
    directory.chmod(0o755)
    try:
        _write(directory, contents)
        script = NETWORK.format(directory=directory, internet=INTERNET, python=sys.executable)
        apart = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *apart],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process:
            try:
                assert process.stdin
                assert process.stdout
                assert process.stdout.readline() == "ready\n"
                yield from _joined(Outside(directory, process.pid), process)
            finally:
                process.terminate()
                process.wait(10)
    finally:
        shutil.rmtree(directory)


def _joined(found: Outside, process: subprocess.Popen[str]) -> Iterator[Outside]:
    """Lay the cable to the proxy, start everything, and wait until it answers."""
    assert process.stdin
    assert process.stdout
    # The server's end waits in the proxy's network until there is a server.
    _ip(found.pid, "link", "add", "cable", "type", "veth", "peer", "name", "server")
    _ip(found.pid, "address", "add", f"{PROXY}/30", "dev", "cable")
    _ip(found.pid, "link", "set", "cable", "up")
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "started\n", (found.directory / "log" / "cache.log").read_text()
    yield found


def _write(directory: Path, contents: Path) -> None:
    """Write keys, CAs, configuration, and what is served."""
    company, internet = new_authority("Company CA"), new_authority("Internet CA")
    for name, authority in (("company", company), ("internet", internet)):
        (directory / f"{name}-ca.pem").write_text(authority.pem)
    (directory / "company.pem").write_bytes(company.pem.encode() + _key(company))
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
    issue(internet, directory / "internet.pem", names=names)
    hosts = [f"127.0.0.1 localhost\n{SERVER} server.example\n", *(f"{INTERNET} {name}\n" for name in NAMES)]
    (directory / "hosts").write_text("".join(hosts))
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", "-stdin"],
        input="p@ss\"%!$&'()*,;~\n",
        capture_output=True,
        text=True,
        check=True,
    )
    (directory / "passwords").write_text(f"DOMAIN\\ops:{hashed.stdout}")
    squid = SQUID.format(directory=directory, proxy=PROXY, inspecting=INSPECTING, passing=PASSING)
    (directory / "squid.conf").write_text(squid)
    (directory / "pebble.json").write_text(
        json.dumps(
            {
                "pebble": {
                    "listenAddress": f"{INTERNET}:{ACME_PORT}",
                    "managementListenAddress": "127.0.0.1:15000",
                    "certificate": str(directory / "internet.pem"),
                    "privateKey": str(directory / "internet.pem"),
                    "httpPort": 80,
                    "tlsPort": 5001,
                }
            }
        )
    )
    (directory / "log").mkdir()
    shutil.chown(directory / "log", "proxy", "proxy")
    shutil.chown(directory / "company.pem", "proxy", "proxy")
    (directory / "contents").symlink_to(contents)
    certgen = ["/usr/lib/squid/security_file_certgen", "-c", "-s", str(directory / "made"), "-M", "4MB"]
    subprocess.run(certgen, check=True, capture_output=True)
    subprocess.run(["chown", "-R", "proxy:proxy", directory / "made"], check=True)


def _key(authority: Authority) -> bytes:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return authority.key.private_bytes(*form)


@contextmanager
def server(directory: Path, behind: Outside) -> Iterator[Copy]:
    """Run a copy of this machine until the block ends whose network ends at the proxy."""
    with machine_copy.running(directory, network=True) as copy:
        _ip(behind.pid, "link", "set", "server", "netns", str(copy.pid))
        for words in (["link", "set", "lo", "up"], ["address", "add", f"{SERVER}/30", "dev", "server"]):
            _ip(copy.pid, *words)
        _ip(copy.pid, "link", "set", "server", "up")
        prepared = copy.run(
            f"rm -rf /etc/pip.conf /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/*proxy* /var/lib/elastic-vllm\n"
            f"echo 'deb [trusted=yes] http://deb.example/deb ./' >/etc/apt/sources.list\n"
            f"echo '127.0.0.1 localhost' >/etc/hosts\necho '{SERVER} server.example' >>/etc/hosts\n"
            f"echo '{PROXY} direct.example' >>/etc/hosts\n: >/etc/resolv.conf\n"
        )
        assert prepared.returncode == 0, prepared.stderr
        try:
            yield copy
        finally:
            _ip(copy.pid, "link", "set", "server", "netns", str(behind.pid))


def _ip(pid: int, *words: str) -> None:
    subprocess.run(["nsenter", "--target", str(pid), "--net", "--", "ip", *words], check=True)


def waited_for(address: tuple[str, int], seconds: float = 60) -> None:
    """Return once something answers there."""
    limit = time.monotonic() + seconds
    while True:
        with suppress(OSError), socket.create_connection(address, 1):
            return
        assert time.monotonic() < limit, f"nothing answers at {address}"
        time.sleep(0.05)


def quiet(**variables: str) -> Mapping[str, str]:
    """Return this process's environment without its own proxies."""
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | variables

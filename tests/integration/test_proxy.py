"""A server whose only way out is a company's proxy: weights, packages, Python clients and certificates come through it.

The proxy is squid, which asks for a password and inspects TLS; squid alone knows the names of what is fetched.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components import render
from components.machine.gpu_driver import TOOLKIT
from components.machine.host import RUN_CLEANUP, RUN_SCRIPT
from scripts.lab.hub import COMMIT
from tests.integration.test_gpu_install import NVIDIA_CTK, build, index
from tests.support import behind_proxy, debian_roots
from tests.support.behind_proxy import ACME_PORT, DIRECT_PORT, FILES, HUB, MODEL, PASSING, PASSWORD, Outside
from tests.support.machine_copy import Copy
from tests.support.process_trace import Watcher
from tests.support.program import HOST_KEY, Program, configuration, run
from tests.support.registered import Secret
from tests.support.shell import Result

pytestmark = pytest.mark.slow

STACK = "behind"
CLIENT, ACME_CLIENT = "/var/lib/elastic-vllm/hub-client", "/var/lib/elastic-vllm/acme-client"
DOWNLOADS = f"/var/lib/elastic-vllm/{STACK}/downloads"
Planned = Callable[..., Program]
CLIENTS = {"hub-client": "weights/hub-client.txt", "acme-client": "acme/acme-client.txt"}
PLAIN_PASSWORD = "p@ss\"%!$&'()*,;~"


def wheels() -> Path:
    """Return a directory with the wheels of the server's clients for the system's Python, kept for later runs."""
    requirements = [render.FILES / name for name in CLIENTS.values()]
    mark = hashlib.sha256(b"".join(file.read_bytes() for file in requirements)).hexdigest()[:12]
    made = debian_roots.DIRECTORY / f"client-wheels-{mark}"
    if made.exists():
        return made
    with debian_roots.alone():
        if not made.exists():
            half_made = debian_roots.DIRECTORY / "client-wheels"
            shutil.rmtree(half_made, ignore_errors=True)
            subprocess.run(["/usr/bin/python3", "-m", "venv", half_made / "venv"], check=True)
            for file in requirements:
                command: list[str | Path] = [
                    half_made / "venv/bin/pip",
                    "download",
                    "-q",
                    "--no-deps",
                    "--only-binary",
                    ":all:",
                ]
                subprocess.run([*command, "--dest", half_made / "files", "--requirement", file], check=True)
            (half_made / "files").rename(made)
            shutil.rmtree(half_made)
    return made


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """Proxy and internet, with an index of Python packages and a signed repository of Debian's."""
    contents = tmp_path_factory.mktemp("internet")
    shutil.copytree(wheels(), contents / "packages")
    for wheel in (contents / "packages").iterdir():
        page = contents / "simple" / re.sub("[-_.]+", "-", wheel.name.split("-")[0]).lower() / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        with page.open("a") as file:
            file.write(f'<a href="https://files.pythonhosted.org/packages/{wheel.name}">{wheel.name}</a><br>\n')
    home = contents / "keys"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--no-tty", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "test@localhost", "ed25519", "sign", "never"], check=True)
    try:
        architecture = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
        toolkit = f"deb/{architecture.stdout.strip()}"
        for directory, packages in {"deb": ["hello-proxy"], toolkit: TOOLKIT["toolkit_packages"].split()}.items():
            (contents / directory).mkdir()
            version = "1" if directory == "deb" else TOOLKIT["toolkit_version"]
            for name in packages:
                program = ("usr/bin/nvidia-ctk", NVIDIA_CTK) if name == "nvidia-container-toolkit-base" else ("", "")
                build(contents / directory, name, version, *program)
            shutil.rmtree(contents / directory / "source")
            index(contents / directory, gpg)
        exported = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True).stdout
        (contents / "gpgkey").write_text(exported)
        with behind_proxy.outside(contents) as found:
            yield found
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


@pytest.fixture(scope="module")
def server(outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    with behind_proxy.server(tmp_path_factory.mktemp("copy"), outside) as copy:
        yield copy


@pytest.fixture(scope="module")
def planned(outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Function that runs the program with these settings."""
    keys = tmp_path_factory.mktemp("ssh")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id"], check=True)

    def plan(**settings: object) -> Program:
        values: dict[str, object] = {
            "host": "server.example",
            "sshPrivateKeyPath": str(keys / "id"),
            "sshHostKey": HOST_KEY,
            "model": MODEL,
            "weightsGb": 1,
            "modelSource": "hub",
            "modelRevision": COMMIT,
            "hfEndpoint": HUB,
            "tls": "letsencrypt",
            "acmeServer": f"https://acme.example:{ACME_PORT}/dir",
            "tlsCa": str(outside.directory / "internet-ca.pem"),
            "downloadProxy": outside.address(),
            "downloadCa": str(outside.company_ca),
        }
        return run(configuration("test", values | settings), stack=STACK)

    return plan


def execute(server: Copy, program: Program, name: str, *, cleanup: bool = False) -> Result:
    """Run a command of the program as sshd does."""
    stdin = program.resources[name].inputs["stdin"]
    return server.run(stdin.value if isinstance(stdin, Secret) else stdin, RUN_CLEANUP if cleanup else RUN_SCRIPT)


def succeeded(result: Result) -> bool:
    """Return True if it succeeded without showing the password."""
    assert result.returncode == 0, result.stdout + result.stderr
    return not shows_password(result.stdout + result.stderr)


def failed(result: Result, *words: str) -> bool:
    """Return True if it failed with these words, without showing the password."""
    assert [word for word in words if word not in result.stderr] == [], result.stderr
    return result.returncode != 0 and not shows_password(result.stdout + result.stderr)


def shows_password(text: str) -> bool:
    return PASSWORD in text or PLAIN_PASSWORD in text


def script(*names: str, then: str = "", **variables: str) -> str:
    return f"DOWNLOADS={DOWNLOADS}\n{render.script(*names, **variables)}{then}\n"


def install(package: str) -> str:
    return script(then=f"install_packages {package}")


def client() -> str:
    """Script that installs a Python client, out of the index behind the proxy."""
    requirements = (render.FILES / CLIENTS["hub-client"]).read_text()
    command = 'install_client /tmp/client "the client" "$REQUIREMENTS" "or do without it"'
    return script("host/install-python-client.sh", then=command, requirements=requirements)


def toolkit(outside: Outside) -> str:
    """Script that installs NVIDIA's toolkit from the repository behind the proxy."""
    shown = subprocess.run(
        ["gpg", "--with-colons", "--show-keys", outside.directory / "contents" / "gpgkey"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    own = {
        "toolkit_repository": "https://nvidia.example/deb",
        "toolkit_key": "https://nvidia.example/gpgkey",
        "toolkit_fingerprint": next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:")),
    }
    return script("gpu/install-nvidia-toolkit.sh", engine="podman", **{**TOOLKIT, **own})


@dataclass(frozen=True)
class Fetched:
    """The server after everything was fetched, and what could be seen meanwhile."""

    server: Copy
    program: Program
    command_lines: str
    requests: str


@pytest.fixture(scope="module")
def fetched(server: Copy, outside: Outside, planned: Planned) -> Fetched:
    watcher, program = Watcher(), planned()
    watcher.start()
    try:
        for name in ("host-downloads", "weights-download", "acme-certificate"):
            assert succeeded(execute(server, program, name))
        for packages in (install("hello-proxy"), toolkit(outside)):
            assert succeeded(server.run(packages))
    finally:
        watcher.stop()
    shown = b"\n".join(watcher.arguments).decode(errors="replace")
    return Fetched(server, program, shown, " ".join(outside.requests()))


@pytest.fixture
def configured(fetched: Fetched, planned: Planned) -> Iterator[Callable[..., Program]]:
    """Function that has the server fetch as other settings say; afterwards it is as before."""

    def configure(**settings: object) -> Program:
        program = planned(**settings)
        assert succeeded(execute(fetched.server, program, "host-downloads"))
        return program

    yield configure
    assert succeeded(execute(fetched.server, fetched.program, "host-downloads"))


def test_everything_comes_through_the_proxy(fetched: Fetched) -> None:
    volumes = fetched.program.resources["vllm-container"].inputs["volumes"]
    directory = next(volume["hostPath"] for volume in volumes if volume["containerPath"] == "/model")
    assert fetched.server.read(f"{directory}/config.json").encode() == FILES["config.json"]
    assert (
        fetched.server.run(f"stat -c %s {directory}/model.safetensors").stdout == f"{len(FILES['model.safetensors'])}\n"
    )
    names = "hub.example", "cdn.example", "pypi.org", "files.pythonhosted.org", "acme.example", "deb.example"
    assert [name for name in (*names, "nvidia.example") if name not in fetched.requests] == []


def test_the_password_is_in_no_command_line_and_in_files_of_root_alone(fetched: Fetched) -> None:
    assert f"elastic-vllm-{STACK}-download" in fetched.command_lines
    assert not shows_password(fetched.command_lines)
    places = "/etc /var/lib/elastic-vllm /var/lib/apt /var/log /tmp /run"
    holding = fetched.server.run(f"grep -rlF -e '{PASSWORD[:12]}' {places} | xargs stat -c '%a %U %n'").stdout
    assert sorted(holding.splitlines()) == [f"600 root {DOWNLOADS}/{name}" for name in ("apt.conf", "environment")]


def test_without_the_setting_each_failure_names_it(fetched: Fetched, configured: Callable[..., Program]) -> None:
    program = configured(downloadProxy="", downloadCa="", endpointHost="other.example")
    assert failed(execute(fetched.server, program, "weights-download"), "could not be downloaded", "downloadProxy")
    assert failed(execute(fetched.server, program, "acme-certificate"), "no certificate for", "downloadProxy")
    assert failed(fetched.server.run(install("another")), "apt's lines", "downloadProxy")
    assert failed(fetched.server.run(client()), "the client could not be installed", "downloadProxy")
    remove = "dpkg --purge nvidia-container-toolkit-base >/dev/null 2>&1; rm -f /usr/bin/nvidia-ctk\n"
    again = script("gpu/install-nvidia-toolkit.sh", engine="podman", **TOOLKIT)
    assert failed(fetched.server.run(remove + again), "repository can't be reached", "downloadProxy")


def test_a_wrong_password_and_a_ca_that_is_missing_are_named(
    fetched: Fetched, outside: Outside, configured: Callable[..., Program]
) -> None:
    program = configured(downloadProxy=outside.address(password="wrong"))
    assert failed(execute(fetched.server, program, "weights-download"), "407", "set downloadProxy to http://USER:")
    program = configured(downloadCa="")
    assert failed(execute(fetched.server, program, "weights-download"), "CERTIFICATE_VERIFY_FAILED", "set downloadCa")


def test_a_proxy_that_lets_tls_through_needs_the_cas_of_what_is_behind_it(
    fetched: Fetched, outside: Outside, configured: Callable[..., Program]
) -> None:
    program = configured(downloadProxy=outside.address(PASSING), downloadCa=str(outside.directory / "internet-ca.pem"))
    assert succeeded(execute(fetched.server, program, "weights-download"))


def test_exceptions_are_asked_directly(fetched: Fetched, outside: Outside, configured: Callable[..., Program]) -> None:
    address = f"http://direct.example:{DIRECT_PORT}"
    only = "-o Dir::Etc::sourcelist=/tmp/direct.list -o Dir::Etc::sourceparts=-"
    lists = f"{only} -o APT::Update::Error-Mode=any -o APT::Get::List-Cleanup=0"
    ask = f"""
chmod 1777 /tmp
echo 'deb [trusted=yes] {address}/deb ./' >/tmp/direct.list
apt_get update {lists}
fetching curl -sSf -o /dev/null {address}/gpgkey
fetching {CLIENT}/bin/python -c 'import httpx2; httpx2.get("{address}/gpgkey").raise_for_status()'
fetching {ACME_CLIENT}/bin/python -c 'import requests; requests.get("{address}/gpgkey").raise_for_status()'
"""
    for exceptions, asks_proxy in (([], True), (["direct.example"], False), ([".example"], False)):
        configured(downloadNoProxy=exceptions)
        before = len(outside.requests())
        result = fetched.server.run(script(then=ask))
        assert failed(result) if asks_proxy else succeeded(result)  # the proxy does not know this name
        assert any("direct.example" in request for request in outside.requests()[before:]) == asks_proxy


def test_nothing_of_it_is_left_with_the_stack(fetched: Fetched) -> None:
    assert succeeded(execute(fetched.server, fetched.program, "host-downloads", cleanup=True))
    assert fetched.server.run(f"ls {DOWNLOADS}").returncode != 0
    assert succeeded(execute(fetched.server, fetched.program, "host-downloads"))

"""Fixtures of the unit tests: the values of stacks, with real SSH keys, and the program's runs with them."""

import asyncio
import gc
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.settings.problems import SECRETS
from components.settings.stack import Settings, SettingsError, parse_settings
from components.tls import acme_certificate
from tests.conftest import GOLDEN
from tests.support import empty_bundle
from tests.support.program import FILLED_IN, GPU, HOST_KEY, PINS, STACKS, VM_IMAGE, Program, configuration, run, written

ON_KUBERNETES = [stack for stack in STACKS if written(stack).get("target") == "kubernetes"]
ON_GKE = [stack for stack in STACKS if written(stack).get("target") == "gke"]
BASES = [*(stack for stack in STACKS if stack not in {*ON_KUBERNETES, *ON_GKE}), "gpu"]
"""Bases of the tests: each stack file for a server, and a server with GPUs."""
ON_GOOGLE = [stack for stack in STACKS if written(stack).get("target") == "gcp"]
ON_SERVERS = [base for base in BASES if base not in ON_GOOGLE]


@pytest.fixture(autouse=True)
def event_loop_for_outputs() -> None:
    """Set an event loop: Pulumi needs one to create an output, and another test may have left none."""
    if asyncio.get_event_loop_policy()._local._loop is None:  # type: ignore[attr-defined]
        asyncio.set_event_loop(asyncio.new_event_loop())


@pytest.fixture(scope="package", autouse=True)
def no_garbage_is_looked_for() -> Iterator[None]:
    """Keep the garbage collector from searching the programs, which stay until the end: that saves a fifth of time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="package", autouse=True)
def no_agent_of_this_session_is_asked() -> Iterator[None]:
    """Keep the program from connecting to the SSH agent of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield


@pytest.fixture(scope="package", autouse=True)
def no_endpoint_is_looked_at() -> Iterator[None]:
    """Keep the program from looking for the certificates of endpoints, which do not exist in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acme_certificate, "served_certificate", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def private_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of stack airgap."""
    return empty_bundle.write(tmp_path_factory.mktemp("bundle"), empty_bundle.parts())


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kubernetes") / "kubeconfig"
    path.write_text("contexts: []\n")
    return path


@pytest.fixture(scope="session")
def values_of(private_key: Path, bundle: Path, kubeconfig: Path) -> Callable[..., dict[str, str]]:
    """Function that returns the values of a base, with replacements; empty values are filled in as users would."""

    def values(base: str, **overrides: Any) -> dict[str, str]:
        key = {"sshPrivateKeyPath": str(private_key)}
        if base in {*ON_GOOGLE, *ON_GKE}:
            filled_in = {
                name: FILLED_IN[name] for name, value in written(base).items() if not value and value is not False
            }
            if base in ON_GKE:
                return configuration(base, {**filled_in, **PINS, **overrides})
            return configuration(base, {**filled_in, **PINS, "vmImage": VM_IMAGE, **key, **overrides})
        if base in ON_KUBERNETES:
            return configuration(base, {"kubeconfig": str(kubeconfig), **overrides})
        if base == "airgap":
            key |= {"bundle": str(bundle), "bundleKey": str(bundle / "signer.pub"), "host": "llm.example"}
        if base == "gpu":
            return configuration(None, {**GPU, **key, "sshHostKey": HOST_KEY, **overrides})
        return configuration(base, {**key, "sshHostKey": HOST_KEY, **overrides})

    return values


@pytest.fixture(scope="session")
def program_of(values_of: Callable[..., dict[str, str]]) -> Callable[..., Program]:
    """Function that runs the program with a base and replaced values. Each combination runs once."""
    known: dict[tuple[Any, ...], Program] = {}

    def program(base: str, **overrides: Any) -> Program:
        values = values_of(base, **overrides)
        combination = (base, *sorted(values.items()))
        if combination not in known:
            known[combination] = run(values, stack=base)
        return known[combination]

    return program


@pytest.fixture(scope="session")
def outputs_of(values_of: Callable[..., dict[str, str]]) -> Callable[..., dict[str, Any]]:
    """Function that returns the outputs of a base, with a real CA certificate, and for prod with a host name."""

    def outputs(base: str, **overrides: Any) -> dict[str, Any]:
        names = {"endpointHost": "llm.example.com"} if base == "prod" else {}
        ca = {"certificate-ca": {"certPem": (GOLDEN / "elastic" / "ca.pem").read_text()}}
        return run(values_of(base, **names | overrides), stack=base, outputs=ca).outputs

    return outputs


@pytest.fixture(params=ON_SERVERS)
def on_server(request: pytest.FixtureRequest, program_of: Callable[..., Program]) -> Program:
    """Each base with an existing server."""
    return program_of(request.param)


@pytest.fixture(params=ON_GOOGLE)
def on_google(request: pytest.FixtureRequest, program_of: Callable[..., Program]) -> Program:
    """Each stack file for Google Cloud."""
    return program_of(request.param)


@pytest.fixture(params=BASES)
def program(request: pytest.FixtureRequest, program_of: Callable[..., Program]) -> Program:
    """Each base in turn."""
    return program_of(request.param)


NO_SECRETS: Any = dict.fromkeys(SECRETS)


@pytest.fixture(scope="session")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds that users provide as keys."""
    directory = tmp_path_factory.mktemp("keys")
    for name, passphrase in (("plain", ""), ("encrypted", "secret")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", passphrase, "-f", f"{directory}/{name}"]
        subprocess.run(command, check=True)
    (directory / "pem-encrypted").write_text(
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
    )
    (directory / "host.pub").write_text(f"{HOST_KEY} root@server\n")
    (directory / "known_hosts").write_text(f"server {HOST_KEY}\n")
    (directory / "damaged").write_text((directory / "plain").read_text().replace("AAAA", "AAAB", 2))
    (directory / "binary").write_bytes(bytes(range(128, 256)))
    return directory


@pytest.fixture
def settle(values_of: Callable[..., dict[str, str]], key_files: Path) -> Callable[..., Settings]:
    """Function that checks a base with replaced values; a value that begins with @ is one of key_files."""

    def settled(base: str, overrides: dict[str, Any], stack: str = "local") -> Settings:
        files = {k: str(key_files / v[1:]) for k, v in overrides.items() if isinstance(v, str) and v.startswith("@")}
        return parse_settings(values_of(base, **overrides | files), stack, NO_SECRETS)

    return settled


def found(check: Callable[[], Any]) -> list[str]:
    """Return the problems in a SettingsError, one line each; none without an error."""
    try:
        check()
    except SettingsError as error:
        return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
    return []

"""SSH keys as people keep them: each is accepted if pulumi-command and `ssh` can use it, or refused with its fix."""

import base64
import hashlib
import hmac
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from components.settings import ssh
from components.settings.problems import Problems
from components.settings.stack import Settings, defaults
from tests.support.program import HOST_KEY
from tests.unit.conftest import found

Settle = Callable[..., Settings]
PASSPHRASE = "open, sesame"
FORMATS = serialization.PrivateFormat


def write(path: Path, key: Any, form: serialization.PrivateFormat = FORMATS.OpenSSH, passphrase: str = "") -> None:
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    write_text(path, key.private_bytes(serialization.Encoding.PEM, form, encryption).decode())


def write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
    path.chmod(0o600)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind; those of ssh-keygen have the kind's name, too."""
    directory = tmp_path_factory.mktemp("keys")
    keygen = ["ssh-keygen", "-q", "-a", "1", "-N", ""]
    subprocess.run([*keygen, "-t", "ed25519", "-f", directory / "ed25519"], check=True)
    for cipher in ("aes256-ctr", "aes256-cbc", "aes256-gcm@openssh.com"):
        encrypted = directory / f"passphrase-{cipher.partition('@')[0]}"
        own = ["-t", "ed25519", "-Z", cipher, "-N", PASSPHRASE, "-f", encrypted]
        subprocess.run(["ssh-keygen", "-q", "-a", "1", *own], check=True)
    plain = (directory / "ed25519").read_text()
    curve, small = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
    write(directory / "ecdsa", curve)
    write(directory / "ec-pem", curve, FORMATS.TraditionalOpenSSL)
    write(directory / "ec-pkcs8", curve, FORMATS.PKCS8)
    write(directory / "rsa", small)
    write(directory / "rsa-pem", small, FORMATS.TraditionalOpenSSL)
    write(directory / "rsa-pkcs8", small, FORMATS.PKCS8)
    write(directory / "passphrase-pem", small, FORMATS.TraditionalOpenSSL, PASSPHRASE)
    write(directory / "passphrase-pkcs8", small, FORMATS.PKCS8, PASSPHRASE)
    write(directory / "ed25519-pkcs8", ed25519.Ed25519PrivateKey.generate(), FORMATS.PKCS8)
    write(directory / "dsa", dsa.generate_private_key(2048), FORMATS.TraditionalOpenSSL)
    write(directory / "secp256k1", ec.generate_private_key(ec.SECP256K1()), FORMATS.PKCS8)
    write_text(directory / "crlf", plain.replace("\n", "\r\n"))
    write_text(directory / "pem-crlf", (directory / "rsa-pem").read_text().replace("\n", "\r\n"))
    write_text(directory / "no-last-newline", plain.rstrip("\n"))
    write_text(directory / "byte-order-mark", f"\ufeff{plain}")
    write_text(directory / "words-before", f"my key:\n{plain}")
    write_text(directory / "empty", "\n")
    write_text(directory / "putty.ppk", "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n")
    write_text(directory / "tectia", "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nAAAA\n")
    write_text(directory / "damaged", plain.replace("AAAA", "AAAB", 2))
    for mode in ("0644", "0640", "0400"):
        write_text(directory / f"mode-{mode}", plain)
        (directory / f"mode-{mode}").chmod(int(mode, 8))
    return directory


def settled(settle: Settle, keys: Path, **settings: Any) -> list[str]:
    own = {name: str(keys / value[1:]) if str(value).startswith("@") else value for name, value in settings.items()}
    return [problem.replace(str(keys), "KEYS") for problem in found(lambda: settle("gpu", own))]


def read_by_ssh(path: Path) -> bool:
    command = ["ssh-keygen", "-y", "-P", "", "-f", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# Private keys


@pytest.mark.parametrize(
    "name",
    ["ed25519", "ecdsa", "ec-pem", "ec-pkcs8", "rsa", "rsa-pem", "rsa-pkcs8", "pem-crlf", "mode-0400"],
)
def test_a_private_key_that_ssh_can_read_is_accepted(name: str, keys: Path, settle: Settle) -> None:
    assert not settled(settle, keys, sshPrivateKeyPath=f"@{name}")
    assert read_by_ssh(keys / name)


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("crlf", "has Windows line endings", "run: sed -i 's/\\r$//' KEYS/crlf"),
        ("no-last-newline", "lacks the line break at its end", "run: echo >> KEYS/no-last-newline"),
        ("byte-order-mark", "has something before -----BEGIN", "remove it"),
        ("words-before", "has something before -----BEGIN", "remove it"),
        ("mode-0644", "may be read by others (mode 0644)", "run: chmod 600 KEYS/mode-0644"),
        ("mode-0640", "may be read by others (mode 0640)", "run: chmod 600 KEYS/mode-0640"),
        ("ed25519-pkcs8", "is an ed25519 key in PKCS#8", "ssh-keygen -p -N '' -f KEYS/ed25519-pkcs8"),
        ("secp256k1", "is damaged or of an unknown kind", "make one: ssh-keygen -t ed25519"),
        ("dsa", "is a DSA key", "make one: ssh-keygen -t ed25519"),
        ("damaged", "is damaged or of an unknown kind", "make one: ssh-keygen -t ed25519"),
        ("empty", "is empty", "give the file of the SSH private key"),
        ("putty.ppk", "is a key of PuTTY", "run: puttygen KEYS/putty.ppk -O private-openssh"),
        ("tectia", "is a key of SSH Tectia", "run: ssh-keygen -i -f KEYS/tectia > NEW"),
        ("ed25519.pub", "is not an SSH private key", "give the private key, not the .pub file"),
        ("passphrase-aes256-ctr", "has a passphrase", "pulumi config set --secret sshPrivateKeyPassword"),
        ("passphrase-pem", "has a passphrase", "pulumi config set --secret sshPrivateKeyPassword"),
        ("passphrase-pkcs8", "has a passphrase", "pulumi config set --secret sshPrivateKeyPassword"),
    ],
)
def test_a_private_key_that_can_not_be_used_is_refused_with_its_fix(
    name: str, cause: str, fix: str, keys: Path, settle: Settle
) -> None:
    (problem,) = settled(settle, keys, sshPrivateKeyPath=f"@{name}")
    assert problem.startswith("sshPrivateKeyPath = ")
    assert f": {cause}" in problem
    assert fix in problem
    assert not read_by_ssh(keys / name) or name == "dsa"


def test_a_private_key_of_another_user_may_have_any_mode(keys: Path, settle: Settle) -> None:
    """Root may use such a file, as with `ssh`."""
    path = keys / "of-another-user"
    write_text(path, (keys / "ed25519").read_text())
    path.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(path, 65534, -1)
        assert not settled(settle, keys, sshPrivateKeyPath="@of-another-user")
        assert read_by_ssh(path)


# Passphrases


@pytest.mark.parametrize("name", ["passphrase-aes256-ctr", "passphrase-aes256-cbc", "passphrase-pem"])
def test_a_private_key_with_its_passphrase_is_accepted(name: str, keys: Path, settle: Settle) -> None:
    assert not settled(settle, keys, sshPrivateKeyPath=f"@{name}", sshPrivateKeyPassword=PASSPHRASE)


@pytest.mark.parametrize(
    ("name", "passphrase", "cause", "fix"),
    [
        ("passphrase-aes256-ctr", "wrong", "sshPrivateKeyPassword: does not open the key", "correct it"),
        ("passphrase-pem", "wrong", "sshPrivateKeyPassword: does not open the key", "correct it"),
        ("ed25519", "wrong", "sshPrivateKeyPassword: set, but the key of sshPrivateKeyPath has none", "remove it"),
        ("passphrase-aes256-gcm", PASSPHRASE, "pulumi-command does not know", "ssh-keygen -p -Z aes256-ctr -f KEYS"),
        ("passphrase-pkcs8", PASSPHRASE, "pulumi-command does not know", "ssh-keygen -p -Z aes256-ctr -f KEYS"),
    ],
)
def test_a_passphrase_that_can_not_be_used_is_refused_with_its_fix(
    name: str, passphrase: str, cause: str, fix: str, keys: Path, settle: Settle
) -> None:
    (problem,) = settled(settle, keys, sshPrivateKeyPath=f"@{name}", sshPrivateKeyPassword=passphrase)
    assert cause in problem
    assert fix in problem
    assert passphrase not in problem.replace("of the wrong", "")


# Agents


@pytest.fixture
def agent_socket(tmp_path: Path, keys: Path) -> Iterator[str]:
    """An agent that holds the key ed25519."""
    path = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-a", path, "cat"], stdin=subprocess.PIPE) as agent:
        while not Path(path).exists():
            assert agent.poll() is None
        environment = {**os.environ, "SSH_AUTH_SOCK": path}
        subprocess.run(["ssh-add", "-q", keys / "ed25519"], env=environment, check=True)
        yield path
        subprocess.run(["ssh-add", "-q", "-D"], env=environment, check=True)


def with_agent(settings: dict[str, Any], agent_socket: str) -> list[str]:
    values = {**defaults(), **settings}
    problems = Problems(values, defaults())
    ssh.agent(problems, ssh.ssh_key(problems, "local", Path("/")), agent_socket)
    return problems.found


@pytest.mark.parametrize("path", ["", "ed25519.pub"])
def test_an_agents_key_is_accepted(path: str, keys: Path, agent_socket: str) -> None:
    assert not with_agent({"sshAgent": "true", "sshPrivateKeyPath": path and str(keys / path)}, agent_socket)


def test_without_an_agent_a_key_is_accepted(keys: Path) -> None:
    assert not with_agent({"sshPrivateKeyPath": str(keys / "ed25519")}, "")


def test_an_agent_that_does_not_answer_is_refused(keys: Path, tmp_path: Path) -> None:
    """pulumi-command connects to it, whatever key it is given."""
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    for path, reason in ((stale, "Connection refused"), (tmp_path / "gone", "No such file or directory")):
        (problem,) = with_agent({"sshPrivateKeyPath": str(keys / "ed25519")}, str(path))
        assert problem == (
            f"SSH_AUTH_SOCK = '{path}': no agent answers there ({reason}), and Pulumi's SSH connects to it although it "
            "is given a key; run: unset SSH_AUTH_SOCK"
        )
        (problem,) = with_agent({"sshAgent": "true"}, str(path))
        assert problem == f"SSH_AUTH_SOCK = '{path}': no agent answers there ({reason}); start the agent"


def test_an_agent_without_the_key_is_refused(keys: Path, agent_socket: str) -> None:
    (problem,) = with_agent({"sshAgent": "true"}, "")
    assert problem.startswith("sshAgent = 'true': there is no agent: SSH_AUTH_SOCK is not set; start one")
    other = keys / "other.pub"
    other.write_text(HOST_KEY)
    (problem,) = with_agent({"sshAgent": "true", "sshPrivateKeyPath": str(other)}, agent_socket)
    assert "the agent does not hold this key; add its private key: ssh-add FILE" in problem
    subprocess.run(["ssh-add", "-q", "-D"], env={**os.environ, "SSH_AUTH_SOCK": agent_socket}, check=True)
    (problem,) = with_agent({"sshAgent": "true"}, agent_socket)
    assert problem == "sshAgent = 'true': the agent holds no key; run: ssh-add FILE"


def test_an_agent_takes_no_private_key_and_no_passphrase(keys: Path, settle: Settle) -> None:
    (problem,) = settled(settle, keys, sshAgent=True, sshPrivateKeyPath="@ed25519")
    assert "is no public key, but sshAgent is true; give the public key's file (.pub)" in problem
    (problem,) = settled(settle, keys, sshAgent=True, sshPrivateKeyPath="", sshPrivateKeyPassword=PASSPHRASE)
    assert problem.startswith("sshPrivateKeyPassword: set, but sshAgent is true")


def test_a_vm_needs_the_public_key_of_an_agents_key(keys: Path, settle: Settle) -> None:
    (problem,) = found(lambda: settle("prod", {"sshAgent": True, "sshPrivateKeyPath": ""}))
    assert problem == (
        "sshPrivateKeyPath: not set; give the public key's file (.pub) of one key in the agent, for the VM"
    )
    public = keys / "ed25519.pub"
    settings = settle("prod", {"sshAgent": True, "sshPrivateKeyPath": str(public)})
    assert settings.gcp
    assert settings.gcp.ssh_public_key.split() == public.read_text().split()[:2]


def test_a_vm_is_told_the_public_key_of_one_with_a_passphrase(keys: Path, settle: Settle) -> None:
    private = keys / "passphrase-aes256-ctr"
    settings = settle("prod", {"sshPrivateKeyPath": str(private), "sshPrivateKeyPassword": PASSPHRASE})
    assert settings.gcp
    assert settings.gcp.ssh_public_key.split() == private.with_suffix(".pub").read_text().split()[:2]


# Host keys

ECDSA = ec.generate_private_key(ec.SECP256R1()).public_key()
ECDSA_LINE = ECDSA.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
RSA = rsa.generate_private_key(65537, 2048).public_key()
RSA_LINE = RSA.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
OTHER = ed25519.Ed25519PrivateKey.generate().public_key()
OTHER_LINE = OTHER.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
DSS_LINE = "ssh-dss AAAAB3NzaC1kc3MAAACB"
CERTIFICATE_LINE = "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAx"
TOKEN_LINE = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2g"


def hashed(name: str) -> str:
    salt = b"01234567890123456789"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def host_key(text: str, tmp_path: Path, host: str = "llm.example", port: int = 22) -> tuple[str, list[str]]:
    """Return the result of a setting, which must be the same for a file with that content."""
    (tmp_path / "file").write_text(text, newline="")
    answers = []
    for value in (text, str(tmp_path / "file")):
        problems = Problems({**defaults(), "sshHostKey": value}, defaults())
        key = ssh.host_key(problems, tmp_path, "sshHostKey", host, port)
        answers.append((key, [problem.rpartition("': ")[2] for problem in problems.found]))
    assert answers[0] == answers[1] or "\n" in text
    return answers[1]


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        (HOST_KEY, 22, HOST_KEY),
        (f"{HOST_KEY} root@server\n", 22, HOST_KEY),
        (f"{HOST_KEY} root@server\r\n", 22, HOST_KEY),
        (f"\n# the server's\n{HOST_KEY}\n", 22, HOST_KEY),
        (ECDSA_LINE, 22, ECDSA_LINE),
        (f"{RSA_LINE}\n{ECDSA_LINE}\n{HOST_KEY}\n{DSS_LINE}\n", 22, HOST_KEY),
        (f"{RSA_LINE}\n{ECDSA_LINE}\n", 22, ECDSA_LINE),
        (f"# llm.example:22 SSH-2.0-OpenSSH_9.2\nllm.example {RSA_LINE}\nllm.example {HOST_KEY}\n", 22, HOST_KEY),
        (f"10.0.0.5 {HOST_KEY}\n10.0.0.5 {ECDSA_LINE}\n", 22, HOST_KEY),
        (f"other.example {OTHER_LINE}\nllm.example,10.0.0.5 {HOST_KEY}\n", 22, HOST_KEY),
        (f"other.example {OTHER_LINE}\nLLM.Example {HOST_KEY}\n", 22, HOST_KEY),
        (f"other.example {OTHER_LINE}\n*.example {HOST_KEY}\n".replace("other.example", "other.test"), 22, HOST_KEY),
        (f"llm.example {OTHER_LINE}\n[llm.example]:2222 {HOST_KEY}\n", 2222, HOST_KEY),
        (f"{hashed('other.example')} {OTHER_LINE}\n{hashed('llm.example')} {HOST_KEY}\n", 22, HOST_KEY),
        (f"{hashed('llm.example')} {OTHER_LINE}\n{hashed('[llm.example]:2222')} {HOST_KEY}\n", 2222, HOST_KEY),
        (f"@cert-authority *.example {OTHER_LINE}\nllm.example {HOST_KEY}\n", 22, HOST_KEY),
        (f"@revoked llm.example {OTHER_LINE}\nllm.example {HOST_KEY}\n", 22, HOST_KEY),
    ],
)
def test_a_host_key_is_found_in_whatever_holds_it(text: str, port: int, expected: str, tmp_path: Path) -> None:
    assert host_key(text, tmp_path, port=port) == (expected, [])


GIVE_ANOTHER = "which can't be used as the host key; give the server's ed25519 or ecdsa key: copy the line that"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RSA_LINE, f"of type ssh-rsa, {GIVE_ANOTHER}"),
        (f"llm.example {RSA_LINE}", f"of type ssh-rsa, {GIVE_ANOTHER}"),
        (DSS_LINE, f"of type ssh-dss, {GIVE_ANOTHER}"),
        (CERTIFICATE_LINE, f"of type ssh-ed25519-cert-v01@openssh.com, {GIVE_ANOTHER}"),
        (TOKEN_LINE, f"of type sk-ssh-ed25519@openssh.com, {GIVE_ANOTHER}"),
        (f"@cert-authority * {HOST_KEY}", f"of type @cert-authority, {GIVE_ANOTHER}"),
        (f"{RSA_LINE}\n{DSS_LINE}\n", f"of type ssh-dss and ssh-rsa, {GIVE_ANOTHER}"),
        (f"a.test {HOST_KEY}\nb.test {OTHER_LINE}\n", "has keys of other hosts only, not of llm.example"),
        (f"{HOST_KEY}\n{OTHER_LINE}\n", "has 2 keys of type ssh-ed25519; leave the server's own"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkV", "not a public key of the form 'ssh-ed25519 AAAA...'"),
        (f"---- BEGIN SSH2 PUBLIC KEY ----\n{HOST_KEY.split()[1]}\n", "not a public key of the form"),
        ("# llm.example:22 SSH-2.0-OpenSSH_9.2\n", "not a public key of the form"),
    ],
)
def test_a_host_key_that_can_not_be_used_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    key, problems = host_key(text, tmp_path)
    assert not key
    assert len(problems) == 1
    assert words in problems[0]


def test_a_bastions_host_key_is_held_to_the_same(settle: Settle) -> None:
    bastion = {"sshVia": "bastion", "bastion": "ops@bastion.example"}
    (problem,) = found(lambda: settle("prod", {**bastion, "bastionHostKey": RSA_LINE}))
    assert problem.startswith("bastionHostKey = ")
    assert "of type ssh-rsa" in problem
    accepted = settle("prod", {**bastion, "bastionHostKey": f"bastion.example {HOST_KEY}"})
    assert accepted.gcp
    assert accepted.gcp.bastion
    assert accepted.gcp.bastion.host_key == HOST_KEY

"""Settings of SSH keys."""

import base64
import binascii
import hashlib
import hmac
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519

from components.errors import UserError
from components.machine.ssh import STANDARD_SSH_PORT, SshKey, load_private_key
from components.settings.problems import ENCRYPTED, Problems

HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
"""Types that pulumi-command and sshd agree on, the best first. For ssh-rsa it offers SHA-1, which sshd refuses."""
KEY_TYPE = re.compile(r"(?:ssh|ecdsa-sha2|sk-ssh|sk-ecdsa-sha2|rsa-sha2|x509v3)-[a-z0-9@.-]+")
CIPHERS = (None, "none", "aes256-ctr", "aes256-cbc")
"""Ciphers of private keys in OpenSSH's own format that pulumi-command knows."""
GIVE_THE_FILE = "give the file of the SSH private key for sshUser"
MAKE_ONE = "make one: ssh-keygen -t ed25519"


def _read(value: str, project_directory: Path) -> tuple[Path, str]:
    """A file and its text. Raises OSError or ValueError with the reason."""
    try:
        path = project_directory / Path(value).expanduser()
        return path, path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not a text file") from error
    except RuntimeError as error:  # expanduser: no such user
        raise ValueError("no such user") from error


def ssh_key(problems: Problems, stack: str, project_directory: Path) -> SshKey:
    """The key by which servers know sshUser: a file that `ssh` and pulumi-command can read, or one in an agent."""
    key, value = "sshPrivateKeyPath", problems.values["sshPrivateKeyPath"]
    passphrase, agent = problems.values["sshPrivateKeyPassword"], problems.boolean("sshAgent")
    if agent and passphrase:
        problems.add("sshPrivateKeyPassword", "set, but sshAgent is true: the agent asks for it", "remove it")
    if agent and not value:
        return SshKey(path=None, agent=True)
    nothing = SshKey(path=project_directory)
    if not value:
        problems.add(key, "not set", f"{GIVE_THE_FILE}, or set sshAgent to true")
        return nothing
    try:
        path, text = _read(value, project_directory)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.add(key, f"cannot be read ({reason})", GIVE_THE_FILE)
        return nothing
    if agent:
        if not _public_key(text):
            fix = "give the public key's file (.pub) of one key in the agent, or leave it empty"
            problems.add(key, "is no public key, but sshAgent is true", fix)
        return SshKey(path=path, agent=True)
    try:
        _refuse_other_files(path, text)
        if _passphrase_fits(problems, path, text, passphrase):
            _refuse_private_key(path, text, passphrase)
    except UserError as error:
        problems.add(key, error.cause, error.fix)
    return SshKey(path=path, passphrase=passphrase, socket=f"~/.ssh/elastic-vllm-{stack}.agent")


def _refuse_other_files(path: Path, text: str) -> None:
    """Raise UserError for a file that is no private key in a format of OpenSSH or OpenSSL."""
    if not text.strip():
        raise UserError("is empty", GIVE_THE_FILE)
    if text.startswith("PuTTY-User-Key-File"):
        raise UserError("is a key of PuTTY", f"run: puttygen {path} -O private-openssh -o NEW, and give the new file")
    if text.startswith("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY"):
        raise UserError("is a key of SSH Tectia", f"run: ssh-keygen -i -f {path} > NEW, and give the new file")
    if "PRIVATE KEY-----" not in text:
        raise UserError("is not an SSH private key", "give the private key, not the .pub file")


def _passphrase_fits(problems: Problems, path: Path, text: str, passphrase: str) -> bool:
    """Return True if the key can be opened, as far as is known; otherwise record a problem, or raise UserError."""
    cipher = _openssh_cipher(text)
    encrypted = "ENCRYPTED" in text or cipher not in {"none", None}
    if encrypted and not passphrase:
        fix = "set it (pulumi config set --secret sshPrivateKeyPassword), or add the key to an agent and set sshAgent"
        raise UserError("has a passphrase", fix)
    if passphrase and not encrypted:
        problems.add("sshPrivateKeyPassword", "set, but the key of sshPrivateKeyPath has none", "remove it")
        return False
    if "BEGIN ENCRYPTED PRIVATE KEY" in text or cipher not in CIPHERS:
        fix = f"run: ssh-keygen -p -Z aes256-ctr -f {path}"
        raise UserError("is encrypted in a way that pulumi-command does not know", fix)
    if passphrase == ENCRYPTED:  # only Pulumi knows it
        return False
    try:
        load_private_key(text, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if passphrase:
            problems.add("sshPrivateKeyPassword", "does not open the key of sshPrivateKeyPath", "correct it")
            return False
    return True


def _refuse_private_key(path: Path, text: str, passphrase: str) -> None:
    """Raise UserError for a private key that pulumi-command, the server or `ssh` could not use."""
    try:
        key = load_private_key(text, passphrase)
        if isinstance(key, dsa.DSAPrivateKey):
            raise UserError("is a DSA key, which servers refuse", MAKE_ONE)
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        fix = f"{MAKE_ONE}; one on a token works by an agent (sshAgent)"
        raise UserError("is damaged or of an unknown kind", fix) from error
    if passphrase:  # ssh takes it from an agent
        return
    status = path.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        mode = f"{status.st_mode & 0o777:04o}"
        raise UserError(f"may be read by others (mode {mode}), so ssh refuses it", f"run: chmod 600 {path}")
    if isinstance(key, ed25519.Ed25519PrivateKey) and "BEGIN PRIVATE KEY" in text:
        fix = f"run on a machine with OpenSSH 9.6 or newer: ssh-keygen -p -N '' -f {path}"
        raise UserError("is an ed25519 key in PKCS#8, which older ssh can't read", fix)
    if "BEGIN OPENSSH PRIVATE KEY" not in text:
        return
    if "\r" in text:
        raise UserError("has Windows line endings, which ssh can't read", f"run: sed -i 's/\\r$//' {path}")
    if not path.read_bytes().startswith(b"-----BEGIN"):
        raise UserError("has something before -----BEGIN, which ssh can't read", "remove it")
    if not text.endswith("\n"):
        raise UserError("lacks the line break at its end, without which ssh can't read it", f"run: echo >> {path}")


def _openssh_cipher(text: str) -> str | None:
    """The cipher of a key in OpenSSH's own format ("none": it has no passphrase); None: of another, or damaged."""
    match = re.search(r"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END", text, re.DOTALL)
    if not match:
        return None
    try:
        blob = base64.b64decode(match.group(1))
    except binascii.Error:
        return None
    # openssh-portable PROTOCOL.key: "openssh-key-v1\0", then the cipher's name as a length-prefixed string.
    start = len(b"openssh-key-v1\0") + 4
    length = int.from_bytes(blob[start - 4 : start], "big")
    cipher = blob[start : start + length].decode("ascii", "replace")
    return cipher if re.fullmatch(r"[a-z0-9@.-]+", cipher) else None


def public_key(problems: Problems, key: SshKey) -> str:
    """The public half of an SSH key, as `TYPE BASE64`; empty where the key was refused before."""
    if {"sshPrivateKeyPath", "sshPrivateKeyPassword"} & problems.keys:
        return ""
    if not key.path:
        fix = "give the public key's file (.pub) of one key in the agent, for the VM"
        problems.add("sshPrivateKeyPath", "not set", fix)
        return ""
    text = key.path.read_text(encoding="utf-8")
    if key.agent:
        return _public_key(text)
    if key.passphrase == ENCRYPTED:
        return ENCRYPTED
    public = load_private_key(text, key.passphrase).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def agent(problems: Problems, key: SshKey, agent_socket: str) -> None:
    """Refuse an agent that does not answer: pulumi-command connects to SSH_AUTH_SOCK's whenever there is one."""
    if not agent_socket:
        if key.agent:
            fix = "start one and add the key: eval $(ssh-agent); ssh-add FILE"
            problems.add("sshAgent", "there is no agent: SSH_AUTH_SOCK is not set", fix)
        return
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(agent_socket)
        except OSError as error:
            why = "" if key.agent else ", and Pulumi's SSH connects to it although it is given a key"
            problems.found.append(
                f"SSH_AUTH_SOCK = {agent_socket!r}: no agent answers there ({error.strerror}){why}; "
                + ("start the agent" if key.agent else "run: unset SSH_AUTH_SOCK")
            )
            return
    if not key.agent or "sshPrivateKeyPath" in problems.keys:
        return
    listed = subprocess.run(
        ["ssh-add", "-L"],
        env={**os.environ, "SSH_AUTH_SOCK": agent_socket},
        capture_output=True,
        text=True,
        check=False,
    )
    held = {line.split()[1] for line in listed.stdout.splitlines() if len(line.split()) > 1 and not listed.returncode}
    if not held:
        problems.add("sshAgent", "the agent holds no key", "run: ssh-add FILE")
    elif key.path and _public_key(key.path.read_text(encoding="utf-8")).split()[1] not in held:
        problems.add("sshPrivateKeyPath", "the agent does not hold this key", "add its private key: ssh-add FILE")


@dataclass(frozen=True)
class _Line:
    """A public key in a file; `hosts` is empty where the line names none."""

    hosts: str
    type: str
    encoded: str


def host_key(problems: Problems, project_directory: Path, key: str, host: str, port: int) -> str:
    """A server's public key as `TYPE BASE64`, given as text or as a file, also one with known hosts."""
    value = problems.values[key].strip()
    try:
        return _host_key(value, project_directory, host, port)
    except UserError as error:
        problems.add(key, error.cause, error.fix)
        return ""


def _host_key(value: str, project_directory: Path, host: str, port: int) -> str:
    fix = "copy the line that `cat /etc/ssh/ssh_host_ed25519_key.pub` prints on the server's own console"
    if not value:
        raise UserError("not set", fix)
    if not KEY_TYPE.search(value):
        try:
            value = _read(value, project_directory)[1]
        except (OSError, ValueError) as error:
            raise UserError("neither a public key nor a file that can be read", fix) from error
    usable, others = _host_keys(value)
    if not usable and others:
        cause = f"of type {' and '.join(sorted(others))}, which can't be used as the host key"
        raise UserError(cause, f"give the server's ed25519 or ecdsa key: {fix}")
    if not usable:
        raise UserError("not a public key of the form 'ssh-ed25519 AAAA...'", fix)
    ours = [line for line in usable if not line.hosts or _names(line.hosts, host, port)]
    if not ours and len({line.hosts for line in usable}) == 1:  # the server under another of its names
        ours = usable
    if not ours:
        raise UserError(f"has keys of other hosts only, not of {host}", fix)
    best = min((line.type for line in ours), key=HOST_KEY_TYPES.index)
    keys = {line.encoded for line in ours if line.type == best}
    if len(keys) > 1:
        raise UserError(f"has {len(keys)} keys of type {best}", f"leave the server's own: {fix}")
    return f"{best} {keys.pop()}"


def _host_keys(text: str) -> tuple[list[_Line], set[str]]:
    """The keys that can be used, and what else there is: types of keys, and markers such as @cert-authority."""
    usable, others = [], set()
    for words in (line.split() for line in text.splitlines()):
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        before = [] if KEY_TYPE.fullmatch(words[0]) else words[:1]
        kind, encoded, *_ = *words[len(before) :], "", ""
        if not KEY_TYPE.fullmatch(kind):
            continue
        if marker or kind not in HOST_KEY_TYPES:
            others.add(marker or kind)
        elif _public_key(f"{kind} {encoded}"):
            usable.append(_Line(hosts="".join(before), type=kind, encoded=encoded))
    return usable, others


def _names(hosts: str, host: str, port: int) -> bool:
    """Return True if the first field of a line of known hosts names the host."""
    name = host if port == STANDARD_SSH_PORT else f"[{host}]:{port}"
    if hosts.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(each) for each in hosts.split("|")[2:])
        except ValueError:
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    # fnmatch would take the brackets for a set of characters.
    patterns = (each.replace("[", "[[]") for each in hosts.lower().split(","))
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)


def _public_key(text: str) -> str:
    """A public key's line as `TYPE BASE64`; empty where it is none."""
    words = text.split()
    if len(words) < 2 or not KEY_TYPE.fullmatch(words[0]):  # noqa: PLR2004
        return ""
    if words[0] not in HOST_KEY_TYPES:
        return " ".join(words[:2])
    try:
        serialization.load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return " ".join(words[:2])

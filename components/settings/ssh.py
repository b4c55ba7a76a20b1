"""What the settings of SSH keys may be."""

import base64
import binascii
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from components.settings.problems import Problems


def _read(value: str, project_directory: Path) -> tuple[Path, str]:
    """A file and its text. Raises OSError or ValueError with the reason."""
    try:
        path = project_directory / Path(value).expanduser()
        return path, path.read_text()
    except UnicodeDecodeError as error:
        raise ValueError("not a text file") from error
    except RuntimeError as error:  # expanduser: no such user
        raise ValueError("no such user") from error


def private_key(problems: Problems, project_directory: Path) -> Path:
    """The SSH private key's file, which must be readable and without a passphrase."""
    key = "sshPrivateKeyPath"
    value = problems.values[key]
    if not value:
        problems.add(key, "not set", "give the file of the SSH private key for sshUser")
        return project_directory
    try:
        path, text = _read(value, project_directory)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.add(key, f"cannot be read ({reason})", "give the file of the SSH private key for sshUser")
        return project_directory
    if "PRIVATE KEY-----" not in text:
        problems.add(key, "is not an SSH private key", "give the private key, not the .pub file")
    elif "ENCRYPTED" in text or _openssh_cipher(text) not in {"none", None}:
        problems.add(key, "has a passphrase", "use a key without one, e.g. from ssh-keygen -t ed25519 -N ''")
    return path


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


def public_key(problems: Problems, private_key: Path) -> str:
    """The public half of an SSH private key, as `TYPE BASE64`; empty where it was refused before."""
    if "sshPrivateKeyPath" in problems.keys:
        return ""
    content = private_key.read_bytes()
    load = serialization.load_ssh_private_key if b"OPENSSH" in content else serialization.load_pem_private_key
    try:
        public = load(content, None).public_key()
        return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problems.add("sshPrivateKeyPath", "is damaged or of an unknown kind", "make one: ssh-keygen -t ed25519 -N ''")
        return ""


def host_key(problems: Problems, project_directory: Path, key: str = "sshHostKey") -> str:
    """A server's public key as `TYPE BASE64`, given as text or as a file that holds it."""
    value = problems.values[key].strip()
    fix = "copy the line that `cat /etc/ssh/ssh_host_ed25519_key.pub` prints on the server's own console"
    if not value:
        problems.add(key, "not set", fix)
        return ""
    if not value.startswith(("ssh-", "ecdsa-")):
        try:
            value = _read(value, project_directory)[1].strip()
        except (OSError, ValueError):
            problems.add(key, "neither a public key nor a file that can be read", fix)
            return ""
    words = value.split()
    if len(words) < 2 or not _is_public_key(words[0], words[1]):  # noqa: PLR2004
        problems.add(key, "not a public key of the form 'ssh-ed25519 AAAA...'", fix)
        return ""
    return f"{words[0]} {words[1]}"


def _is_public_key(kind: str, encoded: str) -> bool:
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    # RFC 4253 6.6: the blob begins with the key type as a length-prefixed string.
    return blob.startswith(len(kind).to_bytes(4, "big") + kind.encode())

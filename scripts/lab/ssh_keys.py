"""Keys of the private sshd: a host key, and a client key that it accepts."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from scripts.lib.private_files import write_private

CLIENT, HOST, AUTHORIZED = "id_ed25519", "ssh_host_ed25519_key", "authorized_keys"


def write_keys(directory: Path) -> None:
    """Create missing keys and the files derived from them, quickly and without any program."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in (CLIENT, HOST):
        path = directory / name
        if not path.exists():
            write_private(path, _new_key())
        public = _public(path)
        derived = [f"{name}.pub", AUTHORIZED] if name == CLIENT else [f"{name}.pub"]
        for other in (directory / each for each in derived):
            if not other.exists() or other.read_text() != public:
                write_private(other, public)


def _new_key() -> str:
    key = ed25519.Ed25519PrivateKey.generate()
    openssh = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()).decode()


def _public(path: Path) -> str:
    key = serialization.load_ssh_private_key(path.read_bytes(), None).public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return f"{text} elastic-vllm-rehearsal\n"

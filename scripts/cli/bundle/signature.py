"""Signatures of a bundle's checksums with an SSH key: every machine with SSH has `ssh-keygen`, which checks them."""

import subprocess
import tempfile
from pathlib import Path

from components.bundle.manifest import PUBLIC_KEYS, SIGNATURE, SUMS
from scripts.lib.errors import BadInputError

NAMESPACE = "elastic-vllm-bundle"
"""Namespace that distinguishes a bundle's signature from others by the same key."""
SIGNER = "bundle"


def sign(directory: Path, private_key: Path) -> None:
    """Sign SHA256SUMS, and ask for the key's passphrase if it has one. Raises BadInputError."""
    (directory / SIGNATURE).unlink(missing_ok=True)
    command = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(private_key), "-n", NAMESPACE, str(directory / SUMS)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        error = " ".join(done.stderr.split()) or f"ssh-keygen ended with {done.returncode}"
        raise BadInputError(f"--sign-key {private_key}: {error}", "give a private key that ssh-keygen can use")


def flaw(directory: Path, public_key: str | Path) -> str:
    """Describe what is wrong with the signature; empty if it is of these checksums, by this key.

    `public_key` is `ssh-ed25519 AAAA...`, or the path of a file that holds it. Raises BadInputError.
    """
    try:
        text = (
            str(public_key) if str(public_key).startswith(PUBLIC_KEYS) else Path(public_key).read_text(encoding="utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"--key {public_key}: {error}", "give the signer's public key file") from error
    lines = [line for line in text.splitlines() if line.strip()]
    words = lines[0].split() if len(lines) == 1 else []
    if len(words) < 2 or "PRIVATE" in lines[0]:  # noqa: PLR2004 - a key's type and the key
        raise BadInputError(f"--key {public_key}: no public key", "give the signer's public key file, such as key.pub")
    if not (directory / SIGNATURE).is_file() or not (directory / SUMS).is_file():
        return f"not signed: there is no {SIGNATURE}"
    with tempfile.NamedTemporaryFile("w") as allowed, (directory / SUMS).open("rb") as signed:
        allowed.write(f'{SIGNER} namespaces="{NAMESPACE}" {words[0]} {words[1]}\n')
        allowed.flush()
        command = ["ssh-keygen", "-Y", "verify", "-f", allowed.name, "-I", SIGNER, "-n", NAMESPACE]
        done = subprocess.run(
            [*command, "-s", str(directory / SIGNATURE)], stdin=signed, capture_output=True, text=True, check=False
        )
    return "" if done.returncode == 0 else f"{SUMS} was not signed with this key, or was changed since"

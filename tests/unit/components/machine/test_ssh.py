"""The agent that holds a private key with a passphrase while the program runs, with the real ssh-agent."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.machine import ssh
from components.machine.ssh import SshKey

PASSPHRASE = "open, sesame"


@pytest.fixture
def key(tmp_path: Path) -> Iterator[SshKey]:
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", PASSPHRASE, "-f", path], check=True)
    yield SshKey(path=path, passphrase=PASSPHRASE, socket=str(tmp_path / "agent"))
    ssh.release()


def holds(key: SshKey) -> bool:
    """Return True if an agent at the key's socket holds a key."""
    environment = {"SSH_AUTH_SOCK": key.socket}
    return subprocess.run(["ssh-add", "-l"], env=environment, capture_output=True, check=False).returncode == 0


def test_a_key_is_held_until_it_is_released_for_a_process_that_holds_it_next(key: SshKey) -> None:
    ssh.hold_until_exit(key)
    assert holds(key)
    ssh.release()
    assert not holds(key)
    # Another process would wait for as long as an agent answers there.
    ssh.hold_until_exit(key)
    assert holds(key)

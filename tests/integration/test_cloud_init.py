"""The VM's first boot: cloud-init itself, from Debian's package, on a copy of this machine's files."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.machine.gpu_vm import user_data
from tests.support import machine_copy
from tests.support.machine_copy import Copy

USER = "elastic-vllm"
# Only the modules that the user-data configures: a copy must not change host name, disks and networks.
CONFIGURATION = """\
datasource_list: [NoCloud]
network: {config: disabled}
preserve_hostname: true
cloud_init_modules: [bootcmd, users-groups, ssh, set-passwords]
cloud_config_modules: []
cloud_final_modules: []
system_info: {distro: debian}
"""
FIRST_BOOT = """\
set -e
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install -y --no-install-recommends cloud-init openssh-server sudo; } >/tmp/apt 2>&1 ||
  { cat /tmp/apt; exit 1; }
cat >/etc/cloud/cloud.cfg <<'CONFIGURATION'
@CONFIGURATION@
CONFIGURATION
rm -rf /etc/cloud/cloud.cfg.d /etc/ssh/ssh_host_* /var/lib/cloud
mkdir -p /etc/cloud/cloud.cfg.d /var/lib/cloud/seed/nocloud /etc/default
echo 'instance-id: vm-1' >/var/lib/cloud/seed/nocloud/meta-data
cat >/var/lib/cloud/seed/nocloud/user-data <<'USER_DATA'
@USER_DATA@
USER_DATA
ssh-keygen -q -t ecdsa -N '' -f /etc/ssh/ssh_host_ecdsa_key  # as an image may bring along
cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data
cloud-init init --local
cloud-init init
"""


def new_key(directory: Path) -> tuple[str, str]:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", directory / "key"], check=True)
    return (directory / "key").read_text(), (directory / "key.pub").read_text().strip()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The host's private and public key."""
    return new_key(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def authorized(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_key(tmp_path_factory.mktemp("user"))[1]


@pytest.fixture(scope="module")
def booted(keys: tuple[str, str], authorized: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    script = FIRST_BOOT.replace("@CONFIGURATION@", CONFIGURATION)
    script = script.replace("@USER_DATA@", user_data(USER, authorized, *keys))
    with machine_copy.running(tmp_path_factory.mktemp("vm")) as copy:
        done = copy.run(script)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert done.stdout.startswith("Valid")
        yield copy


def test_the_host_has_the_programs_key_and_no_other(booted: Copy, keys: tuple[str, str]) -> None:
    assert booted.read("/etc/ssh/ssh_host_ed25519_key").strip() == keys[0].strip()
    assert booted.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2] == keys[1].split()[:2]
    assert booted.run("ls /etc/ssh/ssh_host_*_key").stdout.split() == ["/etc/ssh/ssh_host_ed25519_key"]


def test_the_hosts_private_key_is_for_root_alone(booted: Copy) -> None:
    assert booted.run("stat -c '%U %a' /etc/ssh/ssh_host_ed25519_key").stdout.split() == ["root", "600"]


def test_only_the_given_key_logs_the_user_in_and_sudo_makes_it_root(booted: Copy, authorized: str) -> None:
    lines = booted.run(f"cat ~{USER}/.ssh/authorized_keys").stdout.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith("#")] == [authorized.split()[:2]]
    assert booted.run(f"runuser -u {USER} -- sudo -n id -u").stdout.strip() == "0"


def test_nobody_gets_in_with_a_password(booted: Copy) -> None:
    assert booted.run(f"getent shadow {USER} | cut -d : -f 2").stdout.startswith("!")
    effective = booted.run("mkdir -p /run/sshd; /usr/sbin/sshd -T").stdout
    assert "passwordauthentication no" in effective


def test_googles_agent_makes_no_host_keys(booted: Copy) -> None:
    assert booted.read("/etc/default/instance_configs.cfg") == "[InstanceSetup]\nset_host_keys = false\n"

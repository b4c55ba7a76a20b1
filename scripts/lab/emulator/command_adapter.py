"""command:remote:Command over SSH, the host's key pinned exactly."""

import base64
import hashlib
import io
import logging
import secrets
import socket
import threading
import time
from typing import Any

import paramiko

from scripts.lab import RehearsalError
from scripts.lab.emulator.resource import Adapter, NothingDoneError, Resource

CONNECT_SECONDS = 15
KEEPALIVE_SECONDS = 15
SESSIONS = 8  # at once on one connection: sshd's own default allows ten
TAIL_LINES = 30

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # every error is raised as well

_lock = threading.Lock()
_connections: dict[tuple[str, ...], "Connection"] = {}


class Connection:
    """One SSH connection, made when it is first needed, shared by all commands to the same host as the same user."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        """`inputs`: the resource's input `connection`."""
        self.host, self.port = str(inputs["host"]), int(inputs.get("port", 22))
        self.user = str(inputs.get("user", "root"))
        self.key = str(inputs.get("privateKey", ""))
        self.host_key = str(inputs.get("hostKey", ""))
        self.dial_error_limit = int(inputs.get("dialErrorLimit", 10))
        self.sessions = threading.Semaphore(SESSIONS)
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None

    def transport(self) -> paramiko.Transport:
        """The live connection; raises NothingDoneError with cause and fix where there can be none."""
        with self._lock:
            if self._transport is None or not self._transport.is_active():
                self._transport = self._connect()
            return self._transport

    def close(self) -> None:
        """End it; commands that run on it fail."""
        if self._transport:
            self._transport.close()

    def _connect(self) -> paramiko.Transport:
        where = f"{self.user}@{self.host}:{self.port}"
        key_type, expected = parse_host_key(self.host_key)
        transport = paramiko.Transport(self._dial(where))
        transport.banner_timeout = transport.auth_timeout = CONNECT_SECONDS
        options = transport.get_security_options()
        options.key_types = ("rsa-sha2-512", "rsa-sha2-256") if key_type == "ssh-rsa" else (key_type,)
        try:
            transport.start_client(timeout=CONNECT_SECONDS)
            _refuse_other_key(where, expected, transport.get_remote_server_key().asbytes())
            transport.auth_publickey(self.user, read_private_key(self.key))
        except paramiko.AuthenticationException as error:
            transport.close()
            raise NothingDoneError(key_refused(where)) from error
        except paramiko.ssh_exception.IncompatiblePeer as error:
            transport.close()
            raise NothingDoneError(host_key_changed(where, fingerprint(expected), f"no {key_type} key")) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise NothingDoneError(
                unreachable(where, f"no SSH connection ({error or 'closed by the host'})")
            ) from error
        except BaseException:
            transport.close()
            raise
        transport.set_keepalive(KEEPALIVE_SECONDS)
        return transport

    def _dial(self, where: str) -> socket.socket:
        errors = 0
        while True:
            try:
                return socket.create_connection((self.host, self.port), timeout=CONNECT_SECONDS)
            except socket.gaierror as error:
                raise NothingDoneError(unreachable(where, "no such name")) from error
            except OSError as error:
                errors += 1
                if 0 <= self.dial_error_limit < errors:
                    cause = (error.strerror or str(error)).lower()
                    raise NothingDoneError(unreachable(where, cause)) from error
            time.sleep(1)


def _refuse_other_key(where: str, expected: bytes, found: bytes) -> None:
    if found != expected:
        raise NothingDoneError(host_key_changed(where, fingerprint(expected), fingerprint(found)))


def unreachable(where: str, cause: str) -> str:
    """The message for a host that doesn't answer."""
    return f"cannot reach {where}: {cause}: is sshd running there, is the address right (host, sshPort)?"


def key_refused(where: str) -> str:
    """The message for a host that doesn't accept the key."""
    return (
        f"{where} refuses the private key: is it the right one (sshPrivateKeyPath), is the user right (sshUser), "
        "and is its public half in that user's authorized_keys?"
    )


def host_key_changed(where: str, expected: str, found: str) -> str:
    """The message for a host that isn't the one that was expected."""
    return (
        f"{where}: the host's key has changed: expected {expected}, got {found}: someone else's machine, "
        "or reinstalled; if you trust it set sshHostKey"
    )


def fingerprint(key: bytes) -> str:
    """As ssh-keygen -l shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def parse_host_key(text: str) -> tuple[str, bytes]:
    """`ssh-ed25519 AAAA... comment` -> (type, key)."""
    try:
        key_type, encoded = text.split()[:2]
        return key_type, base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise NothingDoneError(
            "the host's key is not given as 'ssh-ed25519 AAAA...' (sshHostKey): "
            "copy the line that `ssh-keyscan -t ed25519 HOST` shows, without the host's name, once you have checked it"
        ) from error


def read_private_key(text: str) -> paramiko.PKey:
    """An unencrypted private key of any usual kind."""
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text))
        except paramiko.PasswordRequiredException:
            message = "the SSH key has a passphrase (sshPrivateKeyPath): give one without, readable by you alone"
            raise NothingDoneError(message) from None
        except (paramiko.SSHException, ValueError, IndexError):
            continue
    raise NothingDoneError("the file at sshPrivateKeyPath is no private SSH key: did you give the .pub file?")


def connection(inputs: dict[str, Any]) -> Connection:
    """The shared connection for a resource's input `connection`."""
    wanted = Connection(inputs)
    key = (wanted.host, str(wanted.port), wanted.user, wanted.key, wanted.host_key)
    with _lock:
        return _connections.setdefault(key, wanted)


def close_all() -> None:
    """End all connections."""
    with _lock:
        for each in _connections.values():
            each.close()
        _connections.clear()


def run(resource: Resource, script: str) -> dict[str, Any]:
    """Run a script on the host; returns stdout and stderr. Raises RehearsalError with their tail, never with stdin."""
    where = connection(resource.inputs["connection"])
    shown = resource.inputs.get("logging", "stdoutAndStderr")
    output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}

    def collect(name: str, read: Any) -> None:
        while data := read(65536):
            output[name].append(data)
            if name in shown.lower():
                resource.say(data.decode(errors="replace"))

    with where.sessions:
        transport = where.transport()
        try:
            channel = transport.open_session(timeout=CONNECT_SECONDS)
            channel.exec_command(script)
            readers = [
                threading.Thread(target=collect, args=("stdout", channel.recv), daemon=True),
                threading.Thread(target=collect, args=("stderr", channel.recv_stderr), daemon=True),
            ]
            for reader in readers:
                reader.start()
            _send(channel, str(resource.inputs.get("stdin", "")))
            for reader in readers:
                reader.join()
            code = channel.recv_exit_status()
            channel.close()
        except (paramiko.SSHException, OSError, EOFError) as error:
            message = f"cannot run a command as {where.user}@{where.host}:{where.port}: {error or 'connection closed'}"
            raise RehearsalError(message) from error
    if code == -1 and not transport.is_active():
        raise RehearsalError(
            f"the SSH connection to {where.user}@{where.host}:{where.port} was lost while this ran: "
            "is the host still up? Run the same again: it goes on where it was"
        )
    out, err = (b"".join(output[name]).decode(errors="replace").removesuffix("\n") for name in ("stdout", "stderr"))
    if code != 0:
        tail = "\n".join((err.strip() or out.strip()).splitlines()[-TAIL_LINES:])
        end = "was killed by a signal" if code == -1 else f"ended with exit code {code}"
        raise RehearsalError(f"the command on {where.host} {end}" + (f":\n{tail}" if tail else ", without a word"))
    return {"stdout": out, "stderr": err}


def _send(channel: paramiko.Channel, stdin: str) -> None:
    try:
        channel.sendall(stdin.encode())
        channel.shutdown_write()
    except OSError:
        pass  # it ended without reading its input: its exit code says whether that is an error


def _create(resource: Resource) -> tuple[str, dict[str, Any]]:
    script = resource.inputs.get("create")
    outputs = run(resource, script) if script else {"stdout": "", "stderr": ""}
    return f"{resource.name}{secrets.token_hex(4)}", outputs


def _update(resource: Resource) -> dict[str, Any]:
    script = resource.inputs.get("update") or resource.inputs.get("create")
    return run(resource, script) if script else resource.outputs


def _delete(resource: Resource) -> None:
    if script := resource.inputs.get("delete"):
        run(resource, script)


# As the real provider: only triggers replace, anything else runs `update`, or else `create` again.
COMMAND = Adapter(
    inputs=frozenset(
        {"connection", "create", "update", "delete", "stdin", "triggers", "logging", "addPreviousOutputInEnv"}
    ),
    create=_create,
    update=_update,
    delete=_delete,
    replaces=lambda changed: "triggers" in changed,
)

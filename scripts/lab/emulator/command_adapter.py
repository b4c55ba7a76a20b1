"""command:remote:Command over SSH, as pulumi-command does it: one connection a command, one type of host key."""

import base64
import hashlib
import io
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paramiko

from scripts.lab import RehearsalError
from scripts.lab.emulator.resource import Adapter, NothingDoneError, Resource

DIAL_SECONDS = 15  # for one connection, where the program names no other time
DELAY_SECONDS, BACKOFF, MOST_DELAY_SECONDS = 0.1, 1.5, 5.0
"""Between attempts to connect, as pulumi-command waits."""
KEEPALIVE_SECONDS = 15
TAIL_LINES = 30

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # every error is raised as well

_lock = threading.Lock()
_open: set[paramiko.Transport] = set()


@contextmanager
def connected(connection: dict[str, Any]) -> Iterator[paramiko.Transport]:
    """A connection until the block ends. Raises NothingDoneError with cause and fix where there can be none."""
    transport = _dial(connection)
    with _lock:
        _open.add(transport)
    try:
        yield transport
    finally:
        with _lock:
            _open.discard(transport)
        transport.close()


def _dial(connection: dict[str, Any]) -> paramiko.Transport:
    """Connect as often as pulumi-command would; refused keys count like any other failure."""
    keys = list(_keys(connection))
    attempts, delay = 0, DELAY_SECONDS
    while True:
        try:
            return _connect(connection, keys)
        except NothingDoneError:
            attempts += 1
            if 0 <= int(connection.get("dialErrorLimit", 10)) < attempts:
                raise
        time.sleep(delay)
        delay = min(delay * BACKOFF, MOST_DELAY_SECONDS)


def _connect(connection: dict[str, Any], keys: list[paramiko.PKey]) -> paramiko.Transport:
    address, user = (str(connection["host"]), int(connection.get("port", 22))), str(connection.get("user", "root"))
    where, seconds = shown(connection), float(connection.get("perDialTimeout", DIAL_SECONDS))
    key_type, expected = parse_host_key(str(connection.get("hostKey", "")))
    try:
        transport = paramiko.Transport(socket.create_connection(address, timeout=seconds))
    except socket.gaierror as error:
        raise NothingDoneError(unreachable(where, "no such name")) from error
    except OSError as error:
        raise NothingDoneError(unreachable(where, (error.strerror or str(error)).lower())) from error
    transport.banner_timeout = transport.auth_timeout = seconds
    try:
        transport.get_security_options().key_types = (key_type,)
        transport.start_client(timeout=seconds)
        _refuse_other_key(where, expected, transport.get_remote_server_key().asbytes())
        _authenticate(transport, user, keys)
    except paramiko.AuthenticationException as error:
        transport.close()
        raise NothingDoneError(key_refused(where)) from error
    except (paramiko.ssh_exception.IncompatiblePeer, ValueError) as error:
        transport.close()
        raise NothingDoneError(host_key_changed(where, fingerprint(expected), f"no {key_type} key")) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        raise NothingDoneError(unreachable(where, f"no SSH connection ({error or 'closed by the host'})")) from error
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(KEEPALIVE_SECONDS)
    return transport


def _refuse_other_key(where: str, expected: bytes, found: bytes) -> None:
    if found != expected:
        raise NothingDoneError(host_key_changed(where, fingerprint(expected), fingerprint(found)))


def _keys(connection: dict[str, Any]) -> Iterator[paramiko.PKey]:
    """The given key, or else those of the agent; which must answer wherever SSH_AUTH_SOCK names one."""
    path = str(connection.get("agentSocketPath") or os.environ.get("SSH_AUTH_SOCK", ""))
    if path:
        with socket.socket(socket.AF_UNIX) as trial:
            try:
                trial.connect(path)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise NothingDoneError(
                    f"dial unix {path}: connect: {why}: unset SSH_AUTH_SOCK, or start the agent"
                ) from error
    if connection.get("privateKey"):
        yield read_private_key(str(connection["privateKey"]), connection.get("privateKeyPassword"))
    elif path:
        yield from paramiko.Agent().get_keys()


def _authenticate(transport: paramiko.Transport, user: str, keys: list[paramiko.PKey]) -> None:
    """Offer one key after the other. Raises AuthenticationException if none is accepted."""
    for key in keys:
        try:
            transport.auth_publickey(user, key)
        except paramiko.BadAuthenticationType:
            raise
        except paramiko.AuthenticationException:
            continue
        return
    raise paramiko.AuthenticationException


def shown(connection: dict[str, Any]) -> str:
    """A connection as people write it."""
    return f"{connection.get('user', 'root')}@{connection['host']}:{int(connection.get('port', 22))}"


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
    """Return a key's fingerprint as ssh-keygen -l shows it."""
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


def read_private_key(text: str, passphrase: str | None = None) -> paramiko.PKey:
    """A private key of any usual kind."""
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text), passphrase)
        except paramiko.PasswordRequiredException:
            message = "the SSH key has a passphrase (sshPrivateKeyPath): set sshPrivateKeyPassword"
            raise NothingDoneError(message) from None
        except (paramiko.SSHException, ValueError, IndexError):
            continue
    raise NothingDoneError("the file at sshPrivateKeyPath is no private SSH key: did you give the .pub file?")


def close_all() -> None:
    """End all connections."""
    with _lock:
        for transport in _open:
            transport.close()


def run(resource: Resource, script: str) -> dict[str, Any]:
    """Run a script on the host; returns stdout and stderr. Raises RehearsalError with their tail, never with stdin."""
    connection = resource.inputs["connection"]
    where, logged = shown(connection), resource.inputs.get("logging", "stdoutAndStderr")
    output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}

    def collect(name: str, read: Any) -> None:
        while data := read(65536):
            output[name].append(data)
            if name in logged.lower():
                resource.say(data.decode(errors="replace"))

    with connected(connection) as transport:
        try:
            channel = transport.open_session(timeout=DIAL_SECONDS)
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
            raise RehearsalError(f"cannot run a command as {where}: {error or 'connection closed'}") from error
        cut = code == -1 and not transport.is_active()
    if cut:
        raise RehearsalError(
            f"the SSH connection to {where} was lost while this ran: "
            "is the host still up? Run the same again: it resumes"
        )
    out, err = (b"".join(output[name]).decode(errors="replace").removesuffix("\n") for name in ("stdout", "stderr"))
    if code != 0:
        tail = "\n".join((err.strip() or out.strip()).splitlines()[-TAIL_LINES:])
        end = "was killed by a signal" if code == -1 else f"ended with exit code {code}"
        raise RehearsalError(
            f"the command on {connection['host']} {end}" + (f":\n{tail}" if tail else ", without a word")
        )
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

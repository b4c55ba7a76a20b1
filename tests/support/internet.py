"""Hosts behind the proxy of behind_proxy.py, and Squid itself: `python -m tests.support.internet DIRECTORY`."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scripts.lab import hub as hub_stand_in
from tests.support.behind_proxy import (
    ACME_PORT,
    DIRECT_PORT,
    FILES,
    INSPECTING,
    INTERNET,
    MODEL,
    PASSING,
    PROXY,
    quiet,
    waited_for,
)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        pass


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what one side sends until it ends."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        target.close()


def relay(context: ssl.SSLContext, ports: dict[str, int], names: dict[int, str]) -> None:
    """Accept TLS on port 443 and pass each connection on to the service of the name that it asks for."""
    listener = socket.create_server((INTERNET, 443), backlog=64)

    def serve(plain: socket.socket) -> None:
        try:
            client = context.wrap_socket(plain, server_side=True)
        except OSError:
            return
        service = socket.create_connection(("127.0.0.1", ports[names.pop(id(client), "pypi.org")]))
        threading.Thread(target=pump, args=(service, client), daemon=True).start()
        pump(client, service)

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def main() -> None:
    """Run everything until SIGTERM."""
    directory = Path(sys.argv[1])
    names: dict[int, str] = {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "internet.pem")
    context.sni_callback = lambda connection, name, _context: names.update({id(connection): name or ""})
    with ExitStack() as closing:
        hub = closing.enter_context(hub_stand_in.running(MODEL, FILES))
        handler = partial(Quiet, directory=str(directory / "contents"))
        for address in (("127.0.0.1", 8000), (INTERNET, 80), (PROXY, DIRECT_PORT)):
            server = ThreadingHTTPServer(address, handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        ports = {"hub.example": int(hub.endpoint.rpartition(":")[2]), "cdn.example": int(hub.cdn.rpartition(":")[2])}
        hub.cdn = "https://cdn.example"
        ports |= dict.fromkeys(("pypi.org", "files.pythonhosted.org", "nvidia.example"), 8000)
        threading.Thread(target=relay, args=(context, ports, names), daemon=True).start()
        log = closing.enter_context((directory / "services.log").open("w"))
        acme = quiet(PEBBLE_VA_NOSLEEP="1", PEBBLE_WFE_NONCEREJECT="0")
        services: list[tuple[list[str | Path], Mapping[str, str]]] = [
            (["pebble", "-config", directory / "pebble.json"], acme),
            (["squid", "-N", "-f", directory / "squid.conf"], quiet()),
        ]
        for command, environment in services:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=environment, stdout=log, stderr=log
            )
            closing.callback(process.kill)
        waited_for((INTERNET, ACME_PORT))
        for port in (INSPECTING, PASSING):
            waited_for((PROXY, port))
        print("started", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()

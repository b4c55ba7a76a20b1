"""A TLS server on loopback that answers as Nginx and vLLM should, or with one fault at a time."""

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KEY = "0123456789abcdef" * 4
MODEL = "small-model"
METHODS = {"/v1/chat/completions": "POST", "/v1/models": "GET", "/healthz": "GET"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 61, "total_tokens": 70}
STREAM_EVENTS = 40
STREAM_PAUSE = 0.0012
LONG_ANSWER = 64
CUT_AFTER = 5
ARGUMENTS = {
    "arguments-not-json": '{"city": "Paris"',
    "arguments-outside-schema": '{"city": "Paris", "unit": "kelvin"}',
}


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def _builder(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
    )


def new_authority(name: str = "Test CA") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(name, name, key, 400)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def without_key_usage(authority: Authority, directory: Path, *, version: int) -> Authority:
    """The same CA as tools make it that set no `keyUsage`; of version 1: no extension at all."""
    (directory / "ca.key").write_bytes(_private(authority.key))
    (directory / "ca.cnf").write_text("[req]\ndistinguished_name=name\n[name]\n")
    files = ["-key", str(directory / "ca.key"), "-config", str(directory / "ca.cnf")]
    extensions = ("basicConstraints=critical,CA:TRUE", "subjectKeyIdentifier=hash") if version > 1 else ()
    options = [part for extension in extensions for part in ("-addext", extension)]
    made = subprocess.run(
        ["openssl", "req", "-x509", *files, "-subj", "/CN=Test CA", "-days", "400", *options],
        check=True,
        capture_output=True,
    )
    return Authority(x509.load_pem_x509_certificate(made.stdout), authority.key)


def issue(authority: Authority, path: Path, *, names: list[x509.GeneralName] | None = None, days: float = 365) -> Path:
    """Write a server's certificate and key to `path`, by default for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = names or [x509.IPAddress(ip_address("127.0.0.1"))]
    (issuer,) = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    certificate = (
        _builder("server", str(issuer.value), key, days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + _private(key))
    return path


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Gateway(ThreadingHTTPServer):
    """The server; `fault` names its fault, if any."""

    daemon_threads = True

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault = ""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # The handshake is left to the connection's thread, so that a failing one does not stop the others.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_port}/v1/chat/completions"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that refuse the certificate, as some tests intend."""


@contextmanager
def serving(certificate: Path) -> Iterator[Gateway]:
    with Gateway(certificate) as gateway:
        thread = threading.Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        try:
            yield gateway
        finally:
            gateway.shutdown()
            thread.join()


def _short_call_id(body: dict[str, Any]) -> str:
    """Return an id of a tool call that vLLM refuses for some of Mistral's tokenizers; empty if there is none."""
    ids = (call["id"] for message in body["messages"] for call in message.get("tool_calls", []))
    return next((each for each in ids if len(each) < 9), "")


class _Handler(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    @property
    def _authorized(self) -> bool:
        given, right = self.headers.get("Authorization", ""), f"Bearer {KEY}"
        match self.server.fault:
            case "no-auth":
                return True
            case "key-in-any-case":
                return given.lower() == right.lower()
            case "key-is-a-prefix":
                return given[:-1] == right[:-1]
            case "key-refused":
                return False
            case _:
                return given == right

    def _answer(self, body: dict[str, Any]) -> None:
        fault, path = self.server.fault, self.path
        opened = fault == "metrics-open" and path == "/metrics"
        wrong_method = METHODS.get(path) != self.command
        if fault == "healthz-guarded" and path == "/healthz" and not self._authorized:
            self._refuse(401, "no key")
        elif path not in METHODS and not opened:
            self._refuse(404, "no such path")
        elif wrong_method and not opened and not (fault == "get-chat" and path == "/v1/chat/completions"):
            self._refuse(405, "method not allowed")
        elif path != "/healthz" and not self._authorized:
            echo = self.headers.get("Authorization", "") if fault == "key-refused" else ""
            self._refuse(401, f"\x1b[31mwrong key {echo}")
        elif path == "/v1/models":
            listed = "other-model" if fault == "model-not-listed" else MODEL
            self._send({"object": "list", "data": [{"id": listed, "object": "model", "max_model_len": 4096}]})
        elif path == "/v1/chat/completions" and self.command == "POST":
            self._generate(body)
        else:
            self._send({"status": "ok"})

    def _generate(self, body: dict[str, Any]) -> None:
        match self.server.fault:
            case "vllm-down":
                self._refuse(503, f"the model is loading {KEY}")
            case "vllm-stuck":
                time.sleep(0.5)
            case "chat-is-html":
                self._send_bytes(200, "text/html", b"<html>hello</html>")
            case "connection-cut":
                self.close_connection = True
            case _ if body.get("model", MODEL) != MODEL:
                self._refuse(404, f"The model {body['model']} does not exist.")
            case _ if body.get("tools") == []:
                self._refuse(400, "`tools` must not be an empty array.")
            case _ if body.get("tool_choice", "none") != "none" and "tools" not in body:
                self._refuse(400, "When using `tool_choice`, `tools` must be set.")
            case "short-call-ids" if call_id := _short_call_id(body):
                self._refuse(400, f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9.")
            case _ if body.get("stream"):
                self._stream(body)
            case _:
                self._send(self._completion("tools" in body))

    def _completion(self, tools: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None if tools else self._text("Hello.")}
        if self.server.fault == "reasoning-only":
            message |= {"content": None, "reasoning": "I think."}
        if tools and self.server.fault != "no-tool-calls":
            message["tool_calls"] = [self._tool_call()]
        finish = "length" if self.server.fault == "no-tool-calls" else "stop"
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": USAGE,
        }

    def _text(self, text: str) -> str:
        return "" if self.server.fault == "empty-answer" else text

    def _tool_call(self) -> dict[str, Any]:
        fault = self.server.fault
        name = "get_time" if fault == "other-tool" else "get_weather"
        arguments = ARGUMENTS.get(fault, '{"city": "Paris", "unit": "celsius"}')
        return {
            "id": "" if fault == "call-without-id" else "call-1",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _deltas(self, tools: bool) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": ""}
        if not tools:
            fault = self.server.fault
            kind = "reasoning" if fault == "reasoning-only" else "content"
            for _ in range(1 if fault == "one-event" else STREAM_EVENTS):
                yield {kind: self._text("word ")}
        elif self.server.fault == "no-tool-calls":
            yield {"content": "It is sunny."}
        else:
            call = self._tool_call()
            arguments = call["function"].pop("arguments")
            yield {"tool_calls": [{"index": 0, **call}]}
            for start in range(0, len(arguments), 5):
                yield {"tool_calls": [{"index": 0, "function": {"arguments": arguments[start : start + 5]}}]}

    def _stream(self, body: dict[str, Any]) -> None:
        tools, usage = "tools" in body, bool(body.get("stream_options"))
        # Only the check of the stream itself, which asks for a long answer, measures times.
        pause = STREAM_PAUSE if body.get("max_tokens", 0) > LONG_ANSWER and not tools else 0
        chunk: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": delta, "finish_reason": None} for delta in self._deltas(tools)
        ]
        if self.server.fault != "no-finish-reason":
            choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        events = [json.dumps(chunk | {"choices": [choice]}) for choice in choices]
        if usage:
            events.append(json.dumps(chunk | {"choices": [], "usage": USAGE}))
        events.append("[DONE]")
        whole = len(events)
        at_once = {"buffered": whole, "buffered-at-first": whole, "buffered-4k": 17}.get(self.server.fault, 1)
        if self.server.fault == "buffered-at-first":
            self.server.fault = ""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(events), at_once):
            time.sleep(pause * at_once)
            piece = "".join(f"data: {event}\n\n" for event in events[start : start + at_once]).encode()
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if self.server.fault == "stream-cut" and start >= CUT_AFTER:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _refuse(self, status: int, message: str) -> None:
        if self.server.fault == "html-errors":
            self._send_bytes(status, "text/html", f"<html>{message}</html>".encode())
            return
        error: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        if self.server.fault == "errors-without-param":
            del error["param"]
        if self.server.fault == "errors-of-other-types":
            error["message"] = None
        self._send({"error": error}, status)

    def _send(self, document: dict[str, Any], status: int = 200) -> None:
        self._send_bytes(status, "application/json", json.dumps(document).encode())

    def _send_bytes(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

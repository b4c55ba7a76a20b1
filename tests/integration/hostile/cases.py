"""Requests as attackers write them: known attacks, by name."""

from tests.integration.hostile.twin import CURRENT, DROPPED, PREVIOUS

CHAT, MODELS = b"/v1/chat/completions", b"/v1/models"
AUTHORIZATION = b"Authorization: Bearer "
RIGHT = AUTHORIZATION + CURRENT.encode() + b"\r\n"
WRONG = AUTHORIZATION + b"0" * 64 + b"\r\n"
INNER = b"GET /metrics HTTP/1.1\r\nHost: vllm\r\n\r\n"
"""Request that a smuggler wants to reach vLLM."""
INNER_CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: vllm\r\nContent-Length: 2\r\n\r\n{}"


def request(
    method: bytes = b"POST",
    target: bytes = CHAT,
    version: bytes = b" HTTP/1.1",
    host: bytes = b"Host: x\r\n",
    key: bytes = RIGHT,
    headers: bytes = b"",
    body: bytes = b"",
) -> bytes:
    """Build one request; `headers` are whole lines, and declare the length of `body`."""
    return method + b" " + target + version + b"\r\n" + host + key + headers + b"\r\n" + body


def chunked(body: bytes, encoding: bytes = b"Transfer-Encoding: chunked\r\n", **more: bytes) -> bytes:
    """Build a request whose body consists of these chunks."""
    return request(headers=encoding, body=body, **more)


def sized(body: bytes, length: bytes | None = None, **more: bytes) -> bytes:
    """Build a request with a Content-Length, by default the body's own."""
    return request(headers=b"Content-Length: %s\r\n" % (length or b"%d" % len(body)), body=body, **more)


ONE_CHUNK = b"2\r\n{}\r\n0\r\n\r\n"
# Name -> bytes.
KNOWN: dict[str, bytes] = {
    "chat": sized(b"{}"),
    "chat in chunks": chunked(ONE_CHUNK),
    "chat with the previous key": sized(b"{}", key=AUTHORIZATION + PREVIOUS.encode() + b"\r\n"),
    "models": request(b"GET", MODELS),
    "health without a key": request(b"GET", b"/healthz", key=b""),
    "two in a row": request(b"GET", MODELS) + sized(b"{}"),
    "a dropped key": request(b"GET", MODELS, key=AUTHORIZATION + DROPPED.encode() + b"\r\n"),
    "a key in capitals": request(b"GET", MODELS, key=AUTHORIZATION + CURRENT.upper().encode() + b"\r\n"),
    "no key": request(b"GET", MODELS, key=b""),
    "a wrong key": sized(b"{}", key=WRONG),
    "half a key": request(b"GET", MODELS, key=AUTHORIZATION + CURRENT[:32].encode() + b"\r\n"),
    "a key and more": request(b"GET", MODELS, key=AUTHORIZATION + CURRENT.encode() + b"0\r\n"),
    "a key twice in one header": request(b"GET", MODELS, key=RIGHT[:-2] + b", Bearer " + CURRENT.encode() + b"\r\n"),
    "a scheme in small letters": request(b"GET", MODELS, key=RIGHT.replace(b"Bearer", b"bearer")),
    "a scheme in capitals and many spaces": request(
        b"GET", MODELS, key=RIGHT.replace(b"Bearer", b"BEARER" + b" " * 99)
    ),
    "a scheme in small letters, and a key in capitals": request(
        b"GET", MODELS, key=b"Authorization: bearer " + CURRENT.upper().encode() + b"\r\n"
    ),
    "a tab behind the scheme": request(b"GET", MODELS, key=RIGHT.replace(b"Bearer ", b"Bearer\t")),
    "a space and a tab behind the scheme": request(b"GET", MODELS, key=RIGHT.replace(b"Bearer ", b"Bearer \t")),
    "no space behind the scheme": request(b"GET", MODELS, key=RIGHT.replace(b"Bearer ", b"bearer")),
    "a scheme of another name": request(b"GET", MODELS, key=RIGHT.replace(b"Bearer", b"xbearer")),
    "spaces without a key": request(b"GET", MODELS, key=b"Authorization: bearer" + b" " * 8000 + b"x y\r\n"),
    "a key without a scheme": request(b"GET", MODELS, key=b"Authorization: " + CURRENT.encode() + b"\r\n"),
    "a key in a header of another name": request(b"GET", MODELS, key=b"X-Api-Key: " + CURRENT.encode() + b"\r\n"),
    "a key in the query": request(b"GET", MODELS + b"?api_key=" + CURRENT.encode(), key=b""),
    "wrong, then right": request(b"GET", MODELS, key=WRONG + RIGHT),
    "right, then wrong": request(b"GET", MODELS, key=RIGHT + WRONG),
    "right twice": request(b"GET", MODELS, key=RIGHT + RIGHT),
    "a key folded onto the next line": request(b"GET", MODELS, key=RIGHT.replace(b"Bearer ", b"Bearer\r\n ")),
    "a space before the colon": request(b"GET", MODELS, key=RIGHT.replace(b":", b" :")),
    "a null byte behind the key": request(b"GET", MODELS, key=RIGHT.replace(b"\r\n", b"\0\r\n")),
    "a null byte in the path": request(b"GET", MODELS + b"\0"),
    "an encoded null byte in the path": request(b"GET", MODELS + b"%00"),
    "metrics": request(b"GET", b"/metrics"),
    "a location of Nginx's own": request(b"GET", b"/_error/503"),
    "a location of Nginx's own, without a key": request(b"GET", b"/_error/401", key=b""),
    "docs": request(b"GET", b"/openapi.json"),
    "completions": sized(b"{}", target=b"/v1/completions"),
    "another method": request(b"GET", CHAT),
    "HEAD": request(b"HEAD", MODELS),
    "OPTIONS": request(b"OPTIONS", b"*"),
    "TRACE": request(b"TRACE", MODELS),
    "CONNECT": request(b"CONNECT", b"vllm:443"),
    "a method in small letters": request(b"get", MODELS),
    "a method in a header": request(b"GET", CHAT, headers=b"X-HTTP-Method-Override: POST\r\n"),
    "a path in a header": request(b"GET", MODELS, headers=b"X-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n"),
    "slashes": request(b"GET", b"//v1///models"),
    "dots": request(b"GET", b"/v1/./x/../models"),
    "dots to the metrics": request(b"GET", b"/v1/models/../../metrics"),
    "encoded dots to the metrics": request(b"GET", b"/v1/models/%2e%2e/%2e%2e/metrics"),
    "dots above the root": request(b"GET", b"/../../v1/models"),
    "encoded letters": request(b"GET", b"/%76%31/models"),
    "an encoded slash": request(b"GET", b"/v1%2fmodels"),
    "encoded twice": request(b"GET", b"/v1%252fmodels"),
    "overlong UTF-8": request(b"GET", b"/v1%c0%afmodels"),
    "a broken encoding": request(b"GET", b"/v1/models%zz"),
    "backslashes": request(b"GET", b"/v1\\models"),
    "a matrix parameter": request(b"GET", b"/v1/models;x=1"),
    "a slash at the end": request(b"GET", b"/v1/models/"),
    "more of a path": request(b"GET", b"/v1/models/m"),
    "a path in capitals": request(b"GET", b"/V1/MODELS"),
    "a fragment": request(b"GET", b"/metrics#/v1/models"),
    "a query with a path": request(b"GET", b"/v1/models?/metrics"),
    "an absolute address": request(b"GET", b"https://vllm/v1/models"),
    "an absolute address of the metrics": request(b"GET", b"http://vllm/metrics"),
    "an absolute address without a path": request(b"GET", b"http://vllm"),
    "another scheme": request(b"GET", b"file:///v1/models"),
    "no host": request(b"GET", MODELS, host=b""),
    "two hosts": request(b"GET", MODELS, host=b"Host: x\r\nHost: y\r\n"),
    "a host with a path": request(b"GET", MODELS, host=b"Host: x/../metrics\r\n"),
    "a host with a space": request(b"GET", MODELS, host=b"Host: a b\r\n"),
    "an empty host": request(b"GET", MODELS, host=b"Host:\r\n"),
    "a long host": request(b"GET", MODELS, host=b"Host: " + b"x" * 3000 + b"\r\n"),
    "lengths that differ": request(headers=b"Content-Length: 2\r\nContent-Length: 40\r\n", body=b"{}" + INNER),
    "a length twice": request(headers=b"Content-Length: 2\r\nContent-Length: 2\r\n", body=b"{}"),
    "a length in a list": sized(b"{}", b"2, 2"),
    "a length with a sign": sized(b"{}", b"+2"),
    "a negative length": sized(b"{}", b"-1"),
    "a length in hexadecimal": sized(b"{}", b"0x2"),
    "a length beyond all numbers": sized(b"{}", b"9" * 40),
    "a length that is too large": sized(b"{}", b"300"),
    "a length that is too small": sized(b"{}" + INNER, b"2"),
    "a length and chunks": request(
        headers=b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", body=ONE_CHUNK + INNER
    ),
    "chunks and a length": request(
        headers=b"Transfer-Encoding: chunked\r\nContent-Length: 99\r\n", body=ONE_CHUNK + INNER
    ),
    "chunks and something else": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding: chunked, identity\r\n"),
    "something else and chunks": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding: gzip, chunked\r\n"),
    "chunks twice": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "chunks in disguise": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding: xchunked\r\n"),
    "chunks with a vertical tab": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding: \x0bchunked\r\n"),
    "chunks behind a space": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding : chunked\r\nContent-Length: 2\r\n"),
    "chunks on the next line": chunked(ONE_CHUNK + INNER, b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 2\r\n"),
    "chunks with an underscore": chunked(ONE_CHUNK + INNER, b"Transfer_Encoding: chunked\r\nContent-Length: 2\r\n"),
    "chunks in HTTP/1.0": chunked(ONE_CHUNK + INNER, version=b" HTTP/1.0"),
    "a chunk with a comment": chunked(b'2;x="y"\r\n{}\r\n0\r\n\r\n'),
    "a chunk with a comment that has a line": chunked(b"2;x\n{}\r\n0\r\n\r\n" + INNER),
    "a chunk of a size beyond all numbers": chunked(b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk of a negative size": chunked(b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is too short": chunked(b"20\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is too long": chunked(b"1\r\n{}\r\n0\r\n\r\n"),
    "chunks with bare line feeds": chunked(b"2\n{}\n0\n\n" + INNER),
    "chunks without an end": chunked(b"2\r\n{}\r\n"),
    "a trailer with a key": chunked(b"2\r\n{}\r\n0\r\n" + RIGHT + b"\r\n", key=b""),
    "a request in the body": sized(INNER_CHAT),
    "a request behind a refused one": sized(b"{}", key=b"") + INNER_CHAT,
    "a request in the body of a refused one": sized(INNER_CHAT, key=WRONG),
    "HTTP/1.0": request(b"GET", MODELS, b" HTTP/1.0"),
    "HTTP/1.0 without a host": request(b"GET", MODELS, b" HTTP/1.0", host=b""),
    "HTTP/0.9": b"GET /v1/models\r\n",
    "HTTP/0.9 with headers": b"GET /v1/models\r\n" + RIGHT + b"\r\n",
    "HTTP/0.9 behind HEAD": request(b"HEAD", CHAT) + b"GET /v1/models\r\n" + RIGHT + b"\r\n",
    "a POST in HTTP/0.9 behind HEAD": request(b"HEAD", CHAT) + b"POST /v1/chat/completions\r\n" + RIGHT + b"\r\n",
    "HTTP/1.2": request(b"GET", MODELS, b" HTTP/1.2"),
    "HTTP/2 as a version": request(b"GET", MODELS, b" HTTP/2.0"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "an upgrade to HTTP/2": request(
        b"GET",
        MODELS,
        headers=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ),
    "an upgrade to WebSocket": request(
        b"GET", b"/v1/realtime", headers=b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    ),
    "a connection that drops the key": request(b"GET", MODELS, headers=b"Connection: close, Authorization\r\n"),
    "a body on request": request(headers=b"Expect: 100-continue\r\nContent-Length: 2\r\n", body=b"{}"),
    "an expectation of something": request(headers=b"Expect: a-miracle\r\nContent-Length: 2\r\n", body=b"{}"),
    "a long header": request(b"GET", MODELS, headers=b"X: " + b"x" * 9000 + b"\r\n"),
    "many headers": request(b"GET", MODELS, headers=b"".join(b"X-%d: %s\r\n" % (n, b"x" * 900) for n in range(60))),
    "a long address": request(b"GET", MODELS + b"?" + b"x" * 9000),
    "a long method": request(b"A" * 9000, MODELS),
    "a body over the limit": sized(b" " * (2**20 + 1)),
    "a body over the limit, in chunks": chunked((b"10000\r\n" + b" " * 65536 + b"\r\n") * 20 + b"0\r\n\r\n"),
    "a header without a colon": request(b"GET", MODELS, headers=b"nonsense\r\n"),
    "a header without a name": request(b"GET", MODELS, headers=b": x\r\n"),
    "a header in front of the first line": b"X: y\r\n" + request(b"GET", MODELS),
    "empty lines in front": b"\r\n\r\n" + request(b"GET", MODELS),
    "bare line feeds": request(b"GET", MODELS).replace(b"\r\n", b"\n"),
    "bare carriage returns": request(b"GET", MODELS).replace(b"\r\n", b"\r"),
    "a carriage return in a header": request(b"GET", MODELS, headers=b"X: a\rAuthorization: b\r\n"),
    "two spaces in the first line": request(b"GET", b" " + MODELS),
    "a tab in the first line": request(b"GET", b"\t" + MODELS),
    "bytes that are no text": b"\xff\xfe\0\1" * 20 + b"\r\n\r\n",
    "TLS in TLS": b"\x16\x03\x01\x02\0\1\0\1\xfc\x03\x03" + b"\0" * 40,
    "nothing": b"",
}

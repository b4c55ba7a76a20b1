"""Requests as attackers write them: tricks with every part of a request, combined by Hypothesis."""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.integration.hostile.cases import (
    AUTHORIZATION,
    CHAT,
    INNER,
    INNER_CHAT,
    MODELS,
    RIGHT,
    WRONG,
    request,
    sized,
)
from tests.integration.hostile.twin import CURRENT, DROPPED, PREVIOUS

# Other paths that vLLM 0.32 serves (facts of its OpenAPI), and Nginx's internal ones.
OTHERS = [
    *(b"/tokenize", b"/detokenize", b"/invocations", b"/v1/completions", b"/v1/responses", b"/v1/messages"),
    *(b"/v1/embeddings", b"/pooling", b"/score", b"/rerank", b"/generative_scoring", b"/scale_elastic_ep"),
    *(b"/inference/v1/generate", b"/metrics", b"/health", b"/ping", b"/version", b"/load", b"/docs", b"/openapi.json"),
    *(
        b"/",
        b"/stub_status",
        b"/_error/401",
        b"/_error/503",
        b"/v1",
        b"/v1/models/m",
        b"/nginx_status",
        b"/.git/config",
    ),
]


def _encoded(target: bytes, at: int, small: bool) -> bytes:
    at %= len(target)
    code = b"%%%02x" % target[at] if small else b"%%%02X" % target[at]
    return target[:at] + code + target[at + 1 :]


PATH_TRICKS = [
    lambda target, at: b"/" + target,
    lambda target, at: target.replace(b"/", b"//", 1 + at % 3),
    lambda target, at: b"/." + target,
    lambda target, at: b"/x/.." + target,
    lambda target, at: target + b"/../" + target.rpartition(b"/")[2],
    lambda target, at: target + b"/../../metrics",
    lambda target, at: target + b"/%2e%2e/%2E./metrics",
    lambda target, at: b"/metrics/.." + target,
    lambda target, at: _encoded(target, at, small=True),
    lambda target, at: _encoded(target, at, small=False),
    lambda target, at: target.replace(b"/", b"%2f"),
    lambda target, at: target.replace(b"/", b"%2F", 1),
    lambda target, at: target.replace(b"%", b"%25"),
    lambda target, at: target.replace(b"/", b"%252f"),
    lambda target, at: target.replace(b"/", b"\\"),
    lambda target, at: target.replace(b"/", b"%5c"),
    lambda target, at: target.replace(b"/", b"%c0%af"),
    lambda target, at: target.swapcase(),
    lambda target, at: target[: at % (len(target) or 1)] + target[at % (len(target) or 1) :].upper(),
    lambda target, at: target + b"/",
    lambda target, at: target + b"/.",
    lambda target, at: target + b".",
    lambda target, at: target + b"%20",
    lambda target, at: target + b"%00",
    lambda target, at: target + b";a=b",
    lambda target, at: target + b"?a=b",
    lambda target, at: target + b"%3fa=b",
    lambda target, at: target + b"#a",
    lambda target, at: target + b"%23a",
    lambda target, at: b"/metrics?" + target,
    lambda target, at: b"/metrics#" + target,
    lambda target, at: b"http://x" + target,
    lambda target, at: b"HTTPS://vllm:8000" + target,
    lambda target, at: b"http://x@vllm" + target,
    lambda target, at: b"http:" + target,
    lambda target, at: b"//vllm" + target,
    lambda target, at: target[1:],
    lambda target, at: target + b"\xe9\x80",
    lambda target, at: target.replace(b"/", b"/\0", 1),
    lambda target, at: target + b"\t",
]
NUMBER = st.integers(0, 400)


@st.composite
def targets(draw: st.DrawFn) -> bytes:
    """Draw a path with up to three tricks."""
    target = draw(st.sampled_from([CHAT, MODELS, b"/healthz"] * 8 + OTHERS))
    for trick in draw(st.lists(st.sampled_from(PATH_TRICKS), max_size=3)):
        target = trick(target, draw(NUMBER)) or b"/"
    return target


BEARERS = [
    *(CURRENT, PREVIOUS, DROPPED, "0" * 64, CURRENT.upper(), PREVIOUS.title(), CURRENT[:-1], CURRENT + "0", ""),
    *(
        f"{CURRENT} {CURRENT}",
        f"{CURRENT},",
        f"\t{CURRENT}",
        f"{CURRENT}\t",
        f"{CURRENT} ",
        f" {CURRENT}",
        f"{CURRENT}\x0b",
    ),
]
AUTHORIZATIONS: SearchStrategy[bytes] = st.one_of(
    st.just(RIGHT),
    st.just(b""),
    st.sampled_from(BEARERS).map(lambda key: AUTHORIZATION + key.encode() + b"\r\n"),
    st.sampled_from(
        [b"authorization", b"AUTHORIZATION", b"Authorization ", b"Proxy-Authorization", b"X-Authorization"]
    ).map(lambda name: name + b": Bearer " + CURRENT.encode() + b"\r\n"),
    st.sampled_from(
        [
            b"bearer ",
            b"BEARER  ",
            b"bEaReR   ",
            b"bearer \t",
            b"Bearer Bearer ",
            b"Basic ",
            b"Bearer\t",
            b"Bearer",
            b"Bearer: ",
            b"Token ",
            b"",
        ]
    ).map(lambda scheme: b"Authorization: " + scheme + CURRENT.encode() + b"\r\n"),
    st.sampled_from(
        [WRONG + RIGHT, RIGHT + WRONG, RIGHT + RIGHT, RIGHT.replace(b"Bearer ", b"Bearer\r\n\t"), b" " + RIGHT]
    ),
)
HOSTS: SearchStrategy[bytes] = st.one_of(
    st.just(b"Host: x\r\n"),
    st.sampled_from(
        [
            *(b"", b"Host:\r\n", b"Host: vllm\r\n", b"Host: x:443\r\n", b"Host: x:99999\r\n", b"Host: a b\r\n"),
            *(
                b"Host: x/y\r\n",
                b"Host: [::1]\r\n",
                b"Host: [\r\n",
                b"Host: x\r\nHost: x\r\n",
                b"Host: x\r\nhost: y\r\n",
            ),
            *(b"Host: %\r\n", b"Host: x.\r\n", b"Host: x@y\r\n", b"Host: ..\r\n", b"Host: \xff\r\n", b"HOST: x\r\n"),
            b"Host : x\r\n",
        ]
    ),
)
BODIES = [
    b"",
    b"{}",
    b'{"model":"m"}',
    INNER,
    INNER_CHAT,
    sized(b"{}", key=b""),
    sized(b"{}", key=WRONG),
    b"0\r\n\r\n",
    b" " * 5000,
]
LENGTHS = [
    b"0",
    b"1",
    b"2",
    b"5",
    b"400",
    b"-1",
    b"+2",
    b"2 ",
    b"\t2",
    b"0x2",
    b"2,2",
    b"2 2",
    b"1e1",
    b"",
    b"9" * 30,
    b"2\x0b",
    b"02",
]
ENCODINGS = [
    *(b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"chunked ", b"\x0bchunked", b"chunked, identity", b"identity"),
    *(
        b"gzip, chunked",
        b"chunked, chunked",
        b"xchunked",
        b"chunkedx",
        b"chunked;q=1",
        b"\r\n chunked",
        b'"chunked"',
        b"",
    ),
]
ENCODING_NAMES = [
    b"Transfer-Encoding",
    b"transfer-encoding",
    b"Transfer-Encoding ",
    b"Transfer_Encoding",
    b"X-Transfer-Encoding",
    b"\tTransfer-Encoding",
]
CHUNKS = [
    *(b"%x\r\n%s\r\n0\r\n\r\n", b"%X\r\n%s\r\n0\r\n\r\n", b"%04x\r\n%s\r\n0\r\n\r\n", b"%x;a=b\r\n%s\r\n0\r\n\r\n"),
    *(
        b"%x \r\n%s\r\n0\r\n\r\n",
        b" %x\r\n%s\r\n0\r\n\r\n",
        b"%x\n%s\n0\n\n",
        b"%x\r\n%s0\r\n\r\n",
        b"-%x\r\n%s\r\n0\r\n\r\n",
    ),
    *(b"0x%x\r\n%s\r\n0\r\n\r\n", b"%x\r\n%s\r\n0\r\n", b"%x\r\n%s\r\n", b"%x\r\n%s\r\n0\r\nX: y\r\n\r\n"),
    *(b"%x\r\n%s\r\n0\r\n" + RIGHT + b"\r\n", b"%x\r\n%s\r\n00\r\n\r\n", b"ffffffffffffffff%x\r\n%s\r\n0\r\n\r\n"),
    b"%x;\n%s\r\n0\r\n\r\n",
]


@st.composite
def framings(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw header lines that declare the body's length, truly or not, and a body."""
    body = draw(st.sampled_from(BODIES))
    kind = draw(
        st.sampled_from(["none", "length", "length", "chunks", "chunks", "wrong length", "wrong chunks", "both"])
    )
    length = b"Content-Length: %d\r\n" % len(body)
    if kind == "none":
        return b"", draw(st.sampled_from([b"", b"", body]))
    if kind == "length":
        return length, body
    if kind == "wrong length":
        lines = draw(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=2))
        return b"".join(b"Content-Length: " + each + b"\r\n" for each in lines), body
    pieces = draw(st.sampled_from([CHUNKS[0], *CHUNKS])) % (len(body), body)
    if kind == "chunks":
        return b"Transfer-Encoding: chunked\r\n", pieces
    names = draw(st.lists(st.sampled_from(ENCODING_NAMES), min_size=1, max_size=2))
    lines = [name + b": " + draw(st.sampled_from(ENCODINGS)) + b"\r\n" for name in names]
    if kind == "both":
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from([length, b"Content-Length: 2\r\n"])))
    return b"".join(lines), pieces


EXTRAS: SearchStrategy[bytes] = st.lists(
    st.sampled_from(
        [
            *(
                b"X: y\r\n",
                b"X-Original-URL: /metrics\r\n",
                b"X-HTTP-Method-Override: GET\r\n",
                b"Forwarded: host=y\r\n",
            ),
            *(b"X-Forwarded-Host: y\r\n", b"X-Forwarded-Prefix: /metrics\r\n", b"Connection: Authorization\r\n"),
            *(b"Connection: close\r\n", b"Connection: keep-alive, Host\r\n", b"Upgrade: h2c\r\n", b"TE: trailers\r\n"),
            *(b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"nonsense\r\n", b": y\r\n", b"X\0: y\r\n", b"X: \0\r\n"),
            *(
                b"X: a\r\n b\r\n",
                b"X: a\rb\r\n",
                b"X: \xff\r\n",
                b"X_Y: z\r\n",
                b"X Y: z\r\n",
                b"X: " + b"x" * 8300 + b"\r\n",
            ),
            *(
                b"X: " + b"x" * 7000 + b"\r\n",
                b"\r\n",
                b"Trailer: Authorization\r\n",
                b"Range: bytes=0-1\r\n",
                b"Host: z\r\n",
            ),
            b"If-Modified-Since: Sat, 29 Oct 2026 19:43:31 GMT\r\n",
        ]
    ),
    max_size=2,
).map(b"".join)
VERSIONS = (
    [b" HTTP/1.1"] * 8
    + [b" HTTP/1.0", b" HTTP/1.0", b"", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/0.9", b" http/1.1"]
    + [
        *(b" HTTP/1.1 x", b" HTTP/1.10", b" HTTP/11", b" HTTP/1.", b"\tHTTP/1.1", b"  HTTP/1.1"),
    ]
)
METHODS = (
    [b"GET", b"POST"] * 6
    + [b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND"]
    + [
        *(b"get", b"GETX", b"POST ", b"\tGET", b"P\0ST", b"MKCOL", b"GET\r\n", b"X" * 30),
    ]
)


@st.composite
def one(draw: st.DrawFn) -> bytes:
    """Draw one request."""
    lines, body = draw(framings())
    return request(
        draw(st.sampled_from(METHODS)),
        draw(targets()),
        draw(st.sampled_from(VERSIONS)),
        draw(HOSTS),
        draw(AUTHORIZATIONS),
        draw(EXTRAS) + lines,
        body,
    )


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Draw one or two requests on a connection, sometimes with one byte changed."""
    payload = b"".join(draw(st.lists(one(), min_size=1, max_size=2)))
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, max(0, min(len(payload), 400) - 1)))
        new = draw(
            st.sampled_from(
                [b"", b"\0", b"\r", b"\n", b" ", b"\t", b"\x7f", b"\xff", b":", b"/", b"%", b"\r\n", b"\r\n\r\n"]
            )
        )
        payload = payload[:at] + new + payload[at + draw(st.integers(0, 1)) :]
    return payload

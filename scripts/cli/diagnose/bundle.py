"""A support archive without secrets."""

import base64
import io
import json
import os
import re
import tarfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

REDACTED = "<redacted>"
SHORTEST = 8
"""A shorter secret could not be told from ordinary words."""
PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?i)(?<=bearer )[^\s\"'<]+"),
    re.compile(r"(?i)(?<=apikey )[^\s\"'<]+"),
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"(?i)(?<!sha256:)\b[0-9a-f]{64}\b"),
)


def leaves(value: object) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, Iterable):
        for each in value:
            yield from leaves(each)


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, in any form that they are written in, and without what looks like one."""
    for secret in sorted({form for each in secrets for form in _forms(each)}, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    for pattern in PATTERNS:
        text = pattern.sub(REDACTED, text)
    return text


def _forms(secret: str) -> Iterator[str]:
    if len(secret) < SHORTEST:
        return
    for form in (secret, secret.strip()):
        yield form
        yield json.dumps(form)[1:-1]
        yield urllib.parse.quote(form, safe="")
        yield base64.b64encode(form.encode()).decode().rstrip("=")
    # Of a text of several lines, each line is one: logs break it up.
    yield from (line for line in secret.splitlines() if len(line) > 3 * SHORTEST and not line.startswith("-----"))


def write(path: Path, files: Mapping[str, str], secrets: Iterable[str]) -> None:
    """Write the archive, for nobody else to read. Raises OSError."""
    known = list(secrets)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        os.fchmod(out.fileno(), 0o600)
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in files.items():
                data = redact(text, known).encode()
                entry = tarfile.TarInfo(f"elastic-vllm-support/{name}")
                entry.size, entry.mode = len(data), 0o600
                archive.addfile(entry, io.BytesIO(data))

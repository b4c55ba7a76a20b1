"""Texts without secrets."""

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping

REDACTED = "<redacted>"
SHORTEST = 8
"""A shorter secret could not be distinguished from ordinary words."""
PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?i)(?<=bearer )[^\s\"'<]+"),
    re.compile(r"(?i)(?<=apikey )[^\s\"'<]+"),
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"\bpul-[0-9a-f]{8,}"),
    re.compile(r"(?<=://)[^\s/@]+(?=@)"),
    re.compile(r"(?i)(?<!sha256:)\b[0-9a-f]{64}\b"),
)
SECRET_VARIABLE = re.compile(r"TOKEN|PASSPHRASE$|PASSWORD|SECRET|_KEY$")


def leaves(value: object) -> Iterator[str]:
    """Yield all texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, Iterable):
        for each in value:
            yield from leaves(each)


def environment_secrets() -> list[str]:
    """Return the values of this process's environment variables whose names mark them as secret."""
    return [value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)]


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return the text without these secrets, in any encoding, and without anything that looks like one."""
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

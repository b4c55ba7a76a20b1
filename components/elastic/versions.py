"""Versions of Kibana: which of the OpenAI connector's fields each one accepts.

Kibana refuses a connector with a field that it does not know. The versions are those of the pull requests in
elastic/kibana that added the fields: #194831 (provider Other), #215624 and #219984 (client certificates and
verificationMode), #228371 and #232097 (context window, native function calling).
"""

from collections.abc import Mapping

Version = tuple[int, int]
"""Major and minor."""
NEWEST: Version = (99, 0)
"""Serverless, and a Kibana whose version is not known: every field."""
SERVERLESS = "serverless"
OTHER_PROVIDER: Version = (8, 16)
"""First version whose OpenAI connector has the provider Other."""
SINCE: Mapping[str, tuple[Version, ...]] = {
    "verificationMode": ((8, 19), (9, 1)),
    "certificateData": ((8, 19), (9, 1)),
    "contextWindowLength": ((9, 2),),
    "enableNativeFunctionCalling": ((9, 2),),
}
"""Field of the connector -> first version of each major line that accepts it."""


def parse(text: str) -> Version:
    """Major and minor of `9.1`, `9.1.3` or `9.2.0-SNAPSHOT`; NEWEST for `serverless` and for an empty text."""
    if text in {"", SERVERLESS}:
        return NEWEST
    major, minor, *_ = text.split(".")
    return int(major), int(minor)


def accepts(field: str, version: Version) -> bool:
    """True if the connector of this version of Kibana has the field."""
    lines = SINCE[field]
    return any(version[0] == first[0] and version >= first for first in lines) or version[0] > lines[-1][0]

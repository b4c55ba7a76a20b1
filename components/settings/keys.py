"""The keys that the endpoint accepts: the connector's own, and others for further Elastic deployments."""

import json
import re
from collections.abc import Mapping

from components.settings.problems import Problems

DEFAULT = "default"
"""The connector's own key."""
NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
MOST_VERSION = 999_999
FIX = "write the stack's file as in keys: {default: [1], siem: [2, 1]}, where version 1 of siem still works"


def key_versions(problems: Problems) -> Mapping[str, tuple[int, ...]]:
    """Name of a key -> its accepted versions, the current one first; the default key is always there."""
    versions: dict[str, tuple[int, ...]] = {DEFAULT: (1,)}
    for name, given in problems.mapping("keys", FIX).items():
        if not NAME.fullmatch(name) or re.fullmatch(r"v\d+", name):
            fix = "use up to 32 of a-z, 0-9 and '-', beginning with a letter; 'v1' is taken"
            problems.add("keys", f"{name!r} can't be a key's name", fix)
        elif not _is_versions(given):
            problems.add("keys", f"{name}: {json.dumps(given)} is no list of one or two versions, newest first", FIX)
        else:
            versions[name] = tuple(given)
    return versions


def label(name: str, version: int) -> str:
    """Name of a key's version in the access log."""
    return f"v{version}" if name == DEFAULT else f"{name}-v{version}"


def _is_versions(given: object) -> bool:
    if not isinstance(given, list) or len(given) not in {1, 2}:
        return False
    # JSON's true is 1 to Python.
    numbers = all(type(version) is int and 1 <= version <= MOST_VERSION for version in given)
    return numbers and given == sorted(set(given), reverse=True)

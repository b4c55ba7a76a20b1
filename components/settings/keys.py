"""Which keys the endpoint takes: one for each deployment of Elastic that is to have its own, each with its versions."""

import json
import re
from collections.abc import Mapping

from components.settings.problems import Problems

DEFAULT = "default"
"""The connector's own, in the settings keyVersion and acceptPreviousKey."""
NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
ENTRY = re.compile(r"(?P<name>[^=]*)=(?P<current>[1-9]\d{0,5})(,(?P<older>[1-9]\d{0,5}))?")
FIX = 'write ["siem=1"], or ["siem=2,1"] while version 1 still works'


def key_versions(problems: Problems) -> Mapping[str, tuple[int, ...]]:
    """Name of a key -> its accepted versions, the current one first; the default key's are always there."""
    version = problems.integer("keyVersion", 1, 1_000_000)
    accept_previous = problems.boolean("acceptPreviousKey")
    versions = {DEFAULT: (version, version - 1) if accept_previous and version > 1 else (version,)}
    try:
        entries = json.loads(problems.values["keys"])
    except json.JSONDecodeError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        problems.add("keys", "not a list of texts", FIX)
        return versions
    for entry in entries:
        match = ENTRY.fullmatch(entry.replace(" ", ""))
        if not match:
            problems.add("keys", f"{entry!r} is not NAME=VERSION or NAME=VERSION,OLDER", FIX)
            continue
        name, current, older = match["name"], int(match["current"]), int(match["older"] or 0)
        if not NAME.fullmatch(name) or name == DEFAULT or re.fullmatch(r"v\d+", name):
            fix = "use up to 32 of a-z, 0-9 and '-', beginning with a letter; 'default' and 'v1' are taken"
            problems.add("keys", f"{name!r} can't be a key's name", fix)
        elif name in versions:
            problems.add("keys", f"{name!r} comes twice", "give each key a name of its own")
        elif older >= current:
            problems.add("keys", f"{entry!r} has no older version behind the current one", FIX)
        versions[name] = (current, older) if older else (current,)
    return versions


def label(name: str, version: int) -> str:
    """What the access log calls a key."""
    return f"v{version}" if name == DEFAULT else f"{name}-v{version}"

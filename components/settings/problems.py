"""Checks of single settings. Each records its problem (key, value, cause, fix) and returns a stand-in."""

import ipaddress
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from components.settings.old_names import OLD_SETTINGS, OLD_VALUES, list_as_object

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
# As directory services name them, too: john.doe, DOMAIN\\user, user@domain, host$. ssh refuses a backslash at the end.
USER = re.compile(r"(?!\d+$)[A-Za-z0-9_][A-Za-z0-9_.@\\-]*(?<!\\)[$]?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
DIRECTORY = re.compile(r"(/[A-Za-z0-9._-]+)+")
URL = re.compile(r"https?://[^\s/@]+(/\S*)?")
# `localhost/...` names an image that is on the server already: no registry can answer for it, so its
# content can only be pinned there, by the image id that the containers use.
PINNED_IMAGE = re.compile(r"(?P<name>[a-z0-9./:_-]+):(?P<tag>[\w.-]+)@sha256:[0-9a-f]{64}")
LOCAL_IMAGE = re.compile(r"localhost/(?P<name>[a-z0-9./_-]+):(?P<tag>[\w.-]+)")
# Their values never appear in an error.
SECRETS = (
    "hfToken",
    "kibanaApiKey",
    "elasticsearchApiKey",
    "tlsPrivateKey",
    "sshPrivateKeyPassword",
    "downloadProxy",
)
SECRET_PARTS = {"tlsPrivateKey": "PRIVATE KEY", "downloadProxy": "@"}
"""Setting that is not always secret -> what its value holds where it is."""
ENCRYPTED = "encrypted"
"""Stands for a secret that only the Pulumi CLI can decrypt: it is there, and that is all that is known of it."""
SECRET_WORDS = re.compile(r"token|key|secret|passw", re.IGNORECASE)
"""Pattern of an unknown key that may be a misspelt secret setting, whose value no message may show."""


@dataclass(frozen=True)
class Problem:
    """A setting that is wrong."""

    key: str
    value: str
    cause: str
    fix: str


class Problems:
    """The settings' values and what was found wrong with them."""

    def __init__(
        self, values: Mapping[str, str], defaults: Mapping[str, str], undecided: frozenset[str] = frozenset()
    ) -> None:
        """Start with nothing found; `defaults` has every setting; problems with those `undecided` are not recorded."""
        self.values = values
        self.defaults = defaults
        self.known = sorted(defaults)
        self.found: list[str] = []
        self.keys: set[str] = set()
        self.undecided = undecided

    def add(self, key: str, cause: str, fix: str) -> None:
        """Record a problem with a setting as it is."""
        if key not in self.undecided:
            self.record(Problem(key, self.values.get(key, ""), cause, fix))

    def record(self, problem: Problem) -> None:
        """Record a problem; the value is shown unless it is secret or empty."""
        key, value = problem.key, problem.value
        meant = key not in self.known and SECRET_WORDS.search(key)
        secret = meant or plain(key) in map(plain, SECRETS) or "PRIVATE KEY" in value
        # A certificate would fill the screen.
        shown = "" if secret or not value or "\n" in value else f" = {value!r}"
        self.found.append(f"{key}{shown}: {problem.cause}; {problem.fix}")
        self.keys.add(key)

    def unknown_keys(self) -> None:
        """Refuse what is not a setting: a typing error would otherwise be silent."""
        old_names = {plain(name): name for name in OLD_SETTINGS}
        for key in sorted(set(self.values) - set(self.known)):
            if old_name := old_names.get(plain(key)):
                old = OLD_SETTINGS[old_name]
                self.add(key, f"{old_name} {old.became}", old.fix(self.values[key]))
                continue
            near = [known for known in self.known if plain(known) == plain(key)]
            fix = f"did you mean {near[0]}?" if near else "remove it, or see Pulumi.yaml for the settings"
            self.add(key, "no such setting", fix)

    def plain_secrets(self, keys: Collection[str]) -> None:
        """Refuse secrets in plain text; the path of a file with a private key is none, nor a proxy without a user."""
        for key in sorted(keys):
            value = self.values[key]
            if value and SECRET_PARTS.get(key, "") in value:
                self.add(key, "stored in plain text", f"encrypt it: `pulumi config set --secret {key}`")

    def given(self, key: str) -> bool:
        """True if a setting differs from its default."""
        return self.values[key] != self.defaults[key]

    def text(self, key: str, pattern: re.Pattern[str], fix: str) -> str:
        """A required text of the given form."""
        value = self.values[key]
        if not value:
            self.add(key, "not set", fix)
        elif not pattern.fullmatch(value):
            self.add(key, "invalid format", fix)
        return value

    def optional(self, key: str, pattern: re.Pattern[str], fix: str) -> str:
        """The same, or nothing."""
        return self.text(key, pattern, fix) if self.values[key] else ""

    def address(self, key: str) -> str:
        """A required name or IP address."""
        value, fix = self.values[key], "write it as in llm.example.com, 10.0.0.5 or 2001:db8::1"
        try:
            is_address = bool(ipaddress.ip_address(value))
        except ValueError:
            is_address = False
        if not value:
            self.add(key, "not set", fix)
        elif is_address and "%" in value:
            self.add(key, "an address of one link only", "use a global or unique local address")
        elif not is_address and not HOST_NAME.fullmatch(value):
            self.add(key, "not a name or IP address", fix)
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        """One of some words."""
        value = self.values[key]
        if new := OLD_VALUES.get(key, {}).get(value):
            self.add(key, f"{value} is now {new}", f"write {key}: {new.split()[0]}")
        elif value not in options:
            self.add(key, "unknown value", f"use {' or '.join(options)}")
        return value

    def integer(self, key: str, least: int, most: int) -> int:
        """A whole number between two bounds, both included."""
        value = self.values[key]
        if not re.fullmatch(r"-?\d{1,18}", value):
            self.add(key, "not a whole number", f"use {least} to {most}")
            return least
        if not least <= int(value) <= most:
            self.add(key, "out of range", f"use {least} to {most}")
            return least
        return int(value)

    def texts(self, key: str, fix: str) -> list[str]:
        """A list of texts; empty where it is anything else."""
        value = self._json(key)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            self.add(key, "not a list of texts", fix)
            return []
        return value

    def mapping(self, key: str, fix: str) -> dict[str, Any]:
        """An object with its values as they are; empty where it is anything else."""
        value = self._json(key)
        if not isinstance(value, dict):
            old = list_as_object(key, self.values[key])
            self.add(key, "not an object", f"write {key}: {old}" if old else fix)
            return {}
        return value

    def objects(self, key: str, fix: str) -> list[dict[str, Any]]:
        """A list of objects; empty where it is anything else."""
        value = self._json(key)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.add(key, "not a list of objects", fix)
            return []
        return value

    def _json(self, key: str) -> object:
        try:
            return json.loads(self.values[key])
        except json.JSONDecodeError:
            return None

    def boolean(self, key: str) -> bool:
        """`true` or `false`."""
        value = self.values[key]
        if value not in {"true", "false"}:
            self.add(key, "neither true nor false", "use true or false")
        return value == "true"


def stack_name(problems: Problems, stack: str) -> None:
    """Refuse a name that does not fit containers, a network and a directory on the server."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", stack):
        problems.found.append(
            f"stack name {stack!r}: not usable in names on the server; use up to 40 of a-z, 0-9 and '-'"
        )


def plain(key: str) -> str:
    """The setting that a misspelt key is likely to mean: letters and digits only, small."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


def images(problems: Problems) -> dict[str, str]:
    """Role -> an image that can't change under its name."""
    roles = ("vllm", "nginx", *(["dcgm"] if problems.values["dcgmImage"] else []))
    return {role: image(problems, f"{role}Image") for role in roles}


def image(problems: Problems, key: str) -> str:
    """An image that can't change under its name."""
    value = problems.values[key]
    pin = "run `scripts/elastic-vllm pin --stack STACK` on a connected machine"
    fix = f"{pin} to record {key}, or use localhost/NAME:TAG"
    if not value:
        problems.add(key, "not set", fix)
    elif not PINNED_IMAGE.fullmatch(value) and not LOCAL_IMAGE.fullmatch(value):
        problems.add(key, "not pinned as name:tag@sha256:digest", fix)
    return value

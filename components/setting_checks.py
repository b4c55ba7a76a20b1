"""What a setting may be. Each check adds its problem (key, value, cause, fix) and goes on with a stand-in."""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from components.models import GB, GIB, LEAST_SAFE_VLLM, WEIGHTS_SHARE, Catalogue, Model

ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
USER = re.compile(r"[a-z_][a-z0-9_-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
DIRECTORY = re.compile(r"(/[A-Za-z0-9._-]+)+")
URL = re.compile(r"https?://[^\s/@]+(/\S*)?")
REVISION = re.compile(r"[0-9a-f]{40}")
# `localhost/...` names an image that is on the server already: no registry can answer for it, so its
# content can only be pinned there, by the image id that the containers use.
PINNED_IMAGE = re.compile(r"(?P<name>[a-z0-9./:_-]+):(?P<tag>[\w.-]+)@sha256:[0-9a-f]{64}")
LOCAL_IMAGE = re.compile(r"localhost/(?P<name>[a-z0-9./_-]+):(?P<tag>[\w.-]+)")
# Secret settings, written as plain() does: their values never appear in an error.
SECRETS = {"hubtoken"}
SECRET_WORDS = re.compile(r"token|key|secret|passw", re.IGNORECASE)
"""In a key that is no setting: what was meant may be one."""

# vLLM arguments that the program gives itself, or that would break what the endpoint promises.
RESERVED_ARGUMENTS = {
    "--model": "model",
    "--served-model-name": "modelAlias",
    "-tp": "gpuCount",
    "--max-model-len": "contextTokens",
    "--tensor-parallel-size": "gpuCount",
    "--gpu-memory-utilization": "gpuMemoryPercent",
    "--revision": "modelRevision",
    "--config": None,
    "--host": None,
    "--port": None,
    "--uds": None,
    "--api-key": None,
    "--ssl-keyfile": None,
    "--ssl-certfile": None,
    "--root-path": None,
    "--middleware": None,
    "--enable-log-requests": None,
    "--enable-log-outputs": None,
    "--trust-request-chat-template": None,
}


class Problems:
    """The settings' values and what was found wrong with them."""

    def __init__(self, values: Mapping[str, str], known: Iterable[str]) -> None:
        """Start with nothing found; `known` are all settings that there are."""
        self.values = values
        self.known = sorted(known)
        self.found: list[str] = []
        self.keys: set[str] = set()

    def add(self, key: str, problem: str, fix: str) -> None:
        """Record a problem; the value is shown unless it is secret or empty."""
        value = self.values.get(key, "")
        meant = key not in self.known and SECRET_WORDS.search(key)
        secret = meant or plain(key) in SECRETS or "PRIVATE KEY" in value
        shown = "" if secret or not value else f" = {value!r}"
        self.found.append(f"{key}{shown}: {problem}; {fix}")
        self.keys.add(key)

    def unknown_keys(self) -> None:
        """Refuse what is not a setting: a typing error would otherwise be silent."""
        for key in sorted(set(self.values) - set(self.known)):
            near = [known for known in self.known if plain(known) == plain(key)]
            fix = f"did you mean {near[0]}?" if near else "remove it, or see Pulumi.yaml for the settings"
            self.add(key, "no such setting", fix)

    def text(self, key: str, pattern: re.Pattern[str], fix: str) -> str:
        """A required text of the given form."""
        value = self.values[key]
        if not value:
            self.add(key, "not set", fix)
        elif not pattern.fullmatch(value):
            self.add(key, "not of the expected form", fix)
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        """One of some words."""
        value = self.values[key]
        if value not in options:
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

    def boolean(self, key: str) -> bool:
        """`true` or `false`."""
        value = self.values[key]
        if value not in {"true", "false"}:
            self.add(key, "neither true nor false", "use true or false")
        return value == "true"


def stack_name(problems: Problems, stack: str) -> None:
    """Names containers, a network and a directory on the server, so it must fit all of these."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", stack):
        problems.found.append(
            f"stack name {stack!r}: not usable in names on the server; use up to 40 of a-z, 0-9 and '-'"
        )


def plain(key: str) -> str:
    """The setting that a misspelt key is likely to mean: letters and digits only, small."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _read(value: str, project_directory: Path) -> tuple[Path, str]:
    """A file and its text. Raises OSError or ValueError with the reason."""
    try:
        path = project_directory / Path(value).expanduser()
        return path, path.read_text()
    except UnicodeDecodeError as error:
        raise ValueError("not a text file") from error
    except RuntimeError as error:  # expanduser: no such user
        raise ValueError("no such user") from error


def private_key(problems: Problems, project_directory: Path) -> Path:
    """The SSH private key's file, which must be readable and without a passphrase."""
    key = "sshPrivateKeyPath"
    value = problems.values[key]
    if not value:
        problems.add(key, "not set", "give the file of the SSH private key for sshUser")
        return project_directory
    try:
        path, text = _read(value, project_directory)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.add(key, f"cannot be read ({reason})", "give the file of the SSH private key for sshUser")
        return project_directory
    if "PRIVATE KEY-----" not in text:
        problems.add(key, "is not an SSH private key", "give the private key, not the .pub file")
    elif "ENCRYPTED" in text or _openssh_cipher(text) not in {"none", None}:
        problems.add(key, "has a passphrase", "use a key without one, e.g. from ssh-keygen -t ed25519 -N ''")
    return path


def _openssh_cipher(text: str) -> str | None:
    """The cipher of a key in OpenSSH's own format ("none" if it has no passphrase), None for other formats."""
    match = re.search(r"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END", text, re.DOTALL)
    if not match:
        return None
    try:
        blob = base64.b64decode(match.group(1))
    except binascii.Error:
        return None
    # openssh-portable PROTOCOL.key: "openssh-key-v1\0", then the cipher's name as a length-prefixed string.
    start = len(b"openssh-key-v1\0") + 4
    length = int.from_bytes(blob[start - 4 : start], "big")
    return blob[start : start + length].decode("ascii", "replace")


def host_key(problems: Problems, project_directory: Path) -> str:
    """The server's public key as `TYPE BASE64`, given as text or as a file that holds it."""
    key = "sshHostKey"
    value = problems.values[key].strip()
    fix = "copy the line that `cat /etc/ssh/ssh_host_ed25519_key.pub` prints on the server's own console"
    if not value:
        problems.add(key, "not set", fix)
        return ""
    if not value.startswith(("ssh-", "ecdsa-")):
        try:
            value = _read(value, project_directory)[1].strip()
        except (OSError, ValueError):
            problems.add(key, "neither a public key nor a file that can be read", fix)
            return ""
    words = value.split()
    if len(words) < 2 or not _is_public_key(words[0], words[1]):  # noqa: PLR2004
        problems.add(key, "not a public key of the form 'ssh-ed25519 AAAA...'", fix)
        return ""
    return f"{words[0]} {words[1]}"


def _is_public_key(kind: str, encoded: str) -> bool:
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    # RFC 4253 6.6: the blob begins with the key type as a length-prefixed string.
    return blob.startswith(len(kind).to_bytes(4, "big") + kind.encode())


def image(problems: Problems, key: str) -> str:
    """An image that can't change under its name."""
    value = problems.values[key]
    fix = f"run `scripts/pin --stack STACK` on a connected machine to record {key}, or use localhost/NAME:TAG"
    if not value:
        problems.add(key, "not set", fix)
    elif not PINNED_IMAGE.fullmatch(value) and not LOCAL_IMAGE.fullmatch(value):
        problems.add(key, "not pinned as name:tag@sha256:digest", fix)
    return value


def vllm_arguments(problems: Problems) -> tuple[str, ...]:
    """vLLM arguments of the user's own, none of which may undo what the endpoint promises."""
    key = "vllmArguments"
    try:
        arguments = json.loads(problems.values[key])
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        problems.add(key, "not a list of texts", 'write ["--option", "value"]')
        return ()
    for argument in arguments:
        reserved = [name for name in RESERVED_ARGUMENTS if is_option(argument, name)]
        if reserved:
            setting = RESERVED_ARGUMENTS[reserved[0]]
            fix = f"use the setting {setting}" if setting else "remove it: the program decides this"
            problems.add(key, f"{argument} is not yours to give", fix)
    return tuple(arguments)


def is_option(argument: str, option: str) -> bool:
    """Whether vLLM could take `argument` for `option`: with `_` for `-`, cut short, or with its value behind `=`."""
    name = argument.split("=", 1)[0].replace("_", "-")
    return name == option or (len(name) > len("--") and name.startswith("--") and option.startswith(name))


def argument_value(arguments: tuple[str, ...], option: str) -> str | None:
    """The value given for `option`, behind it or behind `=`."""
    for argument, following in pairwise((*arguments, None)):
        if argument and is_option(argument, option):
            return argument.split("=", 1)[1] if "=" in argument else following
    return None


def model(problems: Problems, catalogue: Catalogue, arguments: tuple[str, ...]) -> Model:
    """A model of the catalogue, or any other with its own arguments and size."""
    name = problems.text("model", NAME, "use ORGANISATION/NAME as on the hub")
    known = catalogue.models.get(name)
    parser = argument_value(arguments, "--tool-call-parser")
    if known:
        if parser and parser != known.tool_call_parser:
            problems.add(
                "vllmArguments",
                f"the tool-call parser {parser} does not belong to {name}",
                f"remove it: the catalogue gives {known.tool_call_parser}",
            )
        return known
    family = catalogue.parsers_for(name)
    if parser and family and parser not in family:
        problems.add(
            "vllmArguments",
            f"the tool-call parser {parser} does not belong to {name}",
            f"use {' or '.join(family)}",
        )
    weights_gb = problems.integer("weightsGb", 0, 100_000)
    if not weights_gb and "model" not in problems.keys:
        near = [known for known in catalogue.models if known.lower().split("/")[-1] == name.lower().split("/")[-1]]
        fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(catalogue.models)}"
        problems.add("model", "not in the catalogue", f"{fix}; or set weightsGb (and vllmArguments) for this one")
    return Model(
        name=name,
        tool_call_parser=parser,
        weights_gb=weights_gb,
        native_function_calling=parser is not None,
        context_tokens=None,
    )


def _version(text: str) -> tuple[int, ...] | None:
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)(?![\d.]*[-.]?(a|b|rc|dev)\d)", text)
    return tuple(int(part) for part in match.groups()[:3]) if match else None


def _vllm_version(problems: Problems, model: Model) -> None:
    value = problems.values["vllmImage"]
    match = PINNED_IMAGE.fullmatch(value) or LOCAL_IMAGE.fullmatch(value)
    if not match:
        return
    version = _version(match["tag"])
    if version is None:
        problems.add("vllmImage", "its tag does not say a released version of vLLM", "tag it like v0.32.0")
        return
    least = max(LEAST_SAFE_VLLM, _version(model.least_vllm) or LEAST_SAFE_VLLM)
    if version < least:
        wanted = ".".join(str(part) for part in least)
        why = "has known vulnerabilities" if version < LEAST_SAFE_VLLM else f"can't serve {model.name}"
        problems.add("vllmImage", f"a vLLM this old {why}", f"use {wanted} or newer")


@dataclass(frozen=True)
class Gpus:
    """The GPUs of the server."""

    count: int
    memory_gib: int
    """Of one."""
    memory_percent: int
    """What vLLM may use of it."""


def gpus(problems: Problems) -> Gpus:
    """Read the GPU settings; they are checked without GPUs as well, where they have no effect."""
    count = problems.integer("gpuCount", 1, 16)
    if count & (count - 1):
        problems.add("gpuCount", "does not divide a model's attention heads", "use 1, 2, 4, 8 or 16")
    return Gpus(count, problems.integer("gpuMemoryGib", 1, 1024), problems.integer("gpuMemoryPercent", 10, 99))


def _memory(problems: Problems, model: Model, gpus: Gpus) -> None:
    if {"gpuMemoryGib", "gpuMemoryPercent", "gpuCount"} & problems.keys:
        return
    usable = gpus.count * gpus.memory_gib * gpus.memory_percent / 100
    needed = model.weights_gb * GB / GIB
    if needed > usable * WEIGHTS_SHARE:
        problems.add(
            "model",
            f"its weights take {needed:.0f} GiB, and with room for the KV cache {needed / WEIGHTS_SHARE:.0f} GiB, but "
            f"{gpus.count} x {gpus.memory_gib} GiB at {gpus.memory_percent} % are {usable:.0f} GiB",
            "take a smaller model or more GPU memory (gpuCount, gpuMemoryGib)",
        )


def contradictions(problems: Problems, model: Model, gpus: Gpus | None) -> None:
    """What is fine by itself but not together; `gpus` is None where the server has none."""
    values = problems.values
    _vllm_version(problems, model)
    if gpus and model.name.startswith("rehearsal/"):
        problems.add("model", "for rehearsals on a CPU only", "take another, or set accelerator to none")
    elif gpus and model.weights_gb:
        _memory(problems, model, gpus)
    source = values["modelSource"]
    if source == "hub" and model.name.startswith("rehearsal/"):
        problems.add("modelSource", f"{model.name} is on no hub", "use host: the rehearsal trains it on the server")
    elif source == "hub" and not REVISION.fullmatch(values["modelRevision"]):
        problems.add("modelRevision", "not a commit of 40 hexadecimal digits", "run `scripts/pin --stack STACK`")
    if source == "hub" and model.gated and not values["hubToken"]:
        problems.add(
            "hubToken",
            f"not set, but {model.name} is gated",
            "accept its licence on the hub, then `pulumi config set --secret hubToken`",
        )
    if source == "host" and values["hubToken"]:
        problems.add("hubToken", "set, but nothing is downloaded with modelSource host", "remove it")
    if source == "host" and values["modelRevision"]:
        problems.add("modelRevision", "set, but nothing is downloaded with modelSource host", "remove it")
    limit, context = model.context_tokens, values["contextTokens"]
    if limit and context.isdigit() and int(context) > limit:
        problems.add("contextTokens", f"more than the {limit} that {model.name} was made for", f"use {limit} or less")
    if values["modelAlias"] == model.name:
        problems.add("modelAlias", "the same as model", "choose a name that stays when the model changes")
    if values["keyVersion"] == "1" and values["acceptPreviousKey"] == "false":
        problems.add("acceptPreviousKey", "false, but version 1 of the key has none before it", "remove it")

"""The settings of a bundle, and what the bundle decides of a stack's other settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from components.bundle import manifest as bundle_manifest
from components.bundle.manifest import PUBLIC_KEYS, SIGNATURE, SUMS, Manifest
from components.errors import UserError
from components.settings.problems import DIRECTORY, Problem, Problems

UNSIGNED = "unsigned"
FOR_SERVERS = "rebuild it from a stack with target existing"
DECIDED_BY_BUNDLE = {"model": ("weights", "model"), "modelRevision": ("weights", "revision")} | {
    f"{role}Image": (f"image-{role}", "reference") for role in ("vllm", "nginx", "dcgm")
}
"""Setting -> the part of a bundle that decides it, and the fact about that part."""


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """Settings that a stack's bundle decides, if it has one."""

    manifest: Manifest | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    """Settings that the bundle decides."""
    undecided: frozenset[str] = frozenset()
    """Settings that it would decide, if it could be read."""
    problems: Sequence[Problem] = ()


@dataclass(frozen=True, kw_only=True)
class BundleSettings:
    """The bundle that everything comes from."""

    directory: Path
    """On this machine."""
    on_host: str
    """The bundle's directory on the server, if a disk is plugged in there; empty to send it over SSH."""
    public_key: str | None
    """The signer's, or the path of its file; None to accept an unsigned bundle."""
    manifest: Manifest
    manifest_sha256: str

    @property
    def images(self) -> dict[str, str]:
        """Role -> the name that the image has on the server."""
        return {
            name.removeprefix("image-"): part.about["name"]
            for name, part in self.manifest.parts.items()
            if name.startswith("image-")
        }

    @property
    def weights_directory_name(self) -> str | None:
        """Name of the model's directory on the server; None if the bundle has no weights."""
        weights = self.manifest.parts.get("weights")
        return PurePosixPath(weights.files[0].path).parts[1] if weights else None

    @property
    def packed_mb(self) -> int:
        """Size of images and packages on the server's disk, in 10^6 bytes."""
        return (
            sum(self._bytes(name) for name in self.manifest.parts if name.startswith(("image-", "packages"))) // 10**6
        )

    @property
    def weights_gb(self) -> float:
        """Size of the weights in 10^9 bytes; 0 if the bundle has none."""
        return self._bytes("weights") / 10**9 if "weights" in self.manifest.parts else 0

    def _bytes(self, name: str) -> int:
        return sum(file.bytes for file in self.manifest.parts[name].files)


def read_bundle(given: Mapping[str, str], defaults: Mapping[str, str], project_directory: Path) -> BundleContents:
    """The bundle's manifest, and what it decides: so a bundle is changed by one setting, and back."""
    if not given["bundle"]:
        return BundleContents()
    try:
        manifest = bundle_manifest.read(_path(given["bundle"], project_directory))
    except UserError as error:
        wrong = Problem("bundle", given["bundle"], error.cause, error.fix)
        return BundleContents(undecided=frozenset(DECIDED_BY_BUNDLE), problems=(wrong,))
    if "image-weights" in manifest.parts:
        wrong = Problem("bundle", given["bundle"], "it is for a cluster: its weights are an image", FOR_SERVERS)
        return BundleContents(undecided=frozenset(DECIDED_BY_BUNDLE), problems=(wrong,))
    decided, problems = {}, []
    for key, (name, what) in DECIDED_BY_BUNDLE.items():
        if part := manifest.parts.get(name):
            decided[key] = part.about[what]
            if given[key] not in {defaults[key], decided[key]}:
                fix = f"remove it, or carry a bundle with this {key}"
                problems.append(Problem(key, given[key], f"the bundle has {decided[key]}", fix))
    problems += [
        Problem("bundle", given["bundle"], f"it has no image for {role}", "rebuild it with scripts/elastic-vllm bundle")
        for role in ("vllm", "nginx")
        if f"image-{role}" not in manifest.parts
    ]
    return BundleContents(manifest=manifest, values=decided, problems=tuple(problems))


def bundle_settings(problems: Problems, manifest: Manifest | None, project_directory: Path) -> BundleSettings | None:
    """Check them; None where everything comes from the network."""
    values = problems.values
    if not values["bundle"]:
        return None
    on_host = values["bundleOnHost"]
    if on_host and not DIRECTORY.fullmatch(on_host):
        problems.add("bundleOnHost", "invalid format", "give an absolute path without spaces")
    public_key = _key(problems, project_directory)
    if manifest is None:
        return None
    directory = _path(values["bundle"], project_directory)
    for name in (SUMS, *([SIGNATURE] if public_key else [])):
        if not (directory / name).is_file():
            problems.add("bundle", f"there is no {name} in it", "rebuild it, or carry all of it over")
    return BundleSettings(
        directory=directory,
        on_host=on_host,
        public_key=public_key,
        manifest=manifest,
        manifest_sha256=bundle_manifest.sha256(directory / bundle_manifest.MANIFEST),
    )


def _key(problems: Problems, project_directory: Path) -> str | None:
    value = problems.values["bundleKey"].strip()
    fix = f"give the signer's public key ('ssh-ed25519 AAAA...') or its file, or {UNSIGNED!r} for an unsigned bundle"
    if value == UNSIGNED:
        return None
    if value.startswith(PUBLIC_KEYS):
        if len(value.split()) < 2:  # noqa: PLR2004 - its type and the key
            problems.add("bundleKey", "not a public key of the form 'ssh-ed25519 AAAA...'", fix)
        return value
    if not value:
        problems.add("bundleKey", "not set", fix)
    elif not _path(value, project_directory).is_file():
        problems.add("bundleKey", "neither a public key nor a file that can be read", fix)
    return str(_path(value, project_directory))


def _path(value: str, project_directory: Path) -> Path:
    return project_directory / Path(value).expanduser()

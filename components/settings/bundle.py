"""A bundle in place of the network: its settings, and what it says about the stack that it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.bundle import manifest as bundle_manifest
from components.bundle.manifest import SIGNATURE, SUMS, Manifest
from components.errors import UserError
from components.settings.problems import DIRECTORY, Problems

UNSIGNED = "unsigned"
ONLY_WITH_BUNDLE = ("bundleKey", "bundleOnHost")
SAID_BY_BUNDLE = {"model": ("weights", "model"), "modelRevision": ("weights", "revision")} | {
    f"{role}Image": (f"image-{role}", "reference") for role in ("vllm", "nginx", "dcgm")
}
"""Setting -> the part of a bundle, and what is known of that, which decides it."""


@dataclass(frozen=True, kw_only=True)
class BundleSettings:
    """The bundle that everything comes from."""

    directory: Path
    """On this machine."""
    on_host: str
    """Its directory on the server, where its disk is plugged in there; empty: it travels over SSH."""
    public_key: Path | None
    """The signer's; None: one that nobody vouches for will do."""
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
        """Of the model's directory on the server; None: the bundle has no weights."""
        weights = self.manifest.parts.get("weights")
        return PurePosixPath(weights.files[0].path).parts[1] if weights else None

    @property
    def packed_mb(self) -> int:
        """What images and packages take on the server's disk, in 10^6 bytes."""
        return (
            sum(self._bytes(name) for name in self.manifest.parts if name.startswith(("image-", "packages"))) // 10**6
        )

    @property
    def weights_gb(self) -> float:
        """Of the weights, in 10^9 bytes; 0 where the bundle has none."""
        return self._bytes("weights") / 10**9 if "weights" in self.manifest.parts else 0

    def _bytes(self, name: str) -> int:
        return sum(file.bytes for file in self.manifest.parts[name].files)


def said_by_bundle(
    values: Mapping[str, str], defaults: Mapping[str, str], project_directory: Path
) -> tuple[dict[str, str], Manifest | None, list[tuple[str, str, str]]]:
    """What the bundle decides of the settings, its manifest, and problems (key, cause, fix).

    So a bundle is changed by one setting, and back. What is set to something else beside it is a problem.
    """
    if not values["bundle"]:
        return {}, None, []
    directory = _path(values["bundle"], project_directory)
    try:
        manifest = bundle_manifest.read(directory)
    except UserError as error:
        return {}, None, [("bundle", error.cause, error.fix)]
    found, problems = {}, []
    for key, (name, what) in SAID_BY_BUNDLE.items():
        part = manifest.parts.get(name)
        said = part.about[what] if part else ""
        given = values.get(key, "")
        if part and given not in {defaults[key], said}:
            problems.append((key, f"the bundle has {said}", f"remove it, or carry a bundle with this {key}"))
        if part:
            found[key] = said
    for role in ("vllm", "nginx"):
        if f"image-{role}" not in manifest.parts:
            problems.append(("bundle", f"it has no image for {role}", "rebuild it with scripts/elastic-vllm bundle"))
    return found, manifest, problems


def bundle_settings(
    problems: Problems, manifest: Manifest | None, project_directory: Path, *, gcp: bool
) -> BundleSettings | None:
    """Check them; None where everything comes from the network."""
    values = problems.values
    if not values["bundle"]:
        for key in filter(problems.given, ONLY_WITH_BUNDLE):
            problems.add(key, "set, but bundle is not", "set bundle to the bundle's directory, or remove it")
        return None
    if gcp:
        problems.add("bundle", "set, but target is gcp", "set target to existing, or remove it")
    if values["tls"] == "letsencrypt":
        problems.add("tls", "nobody can be asked for a certificate without a network", "use private-ca or provided")
    if values["hfToken"]:
        problems.add("hfToken", "set, but nothing is downloaded with a bundle", "remove it")
    if manifest and "weights" not in manifest.parts and values["modelSource"] != "host":
        problems.add("bundle", "it has no weights", "set modelSource to host if they are on the server already")
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


def _key(problems: Problems, project_directory: Path) -> Path | None:
    value = problems.values["bundleKey"]
    fix = f"give the file of the signer's public key, or {UNSIGNED!r} to accept an unsigned bundle"
    if value == UNSIGNED:
        return None
    if not value:
        problems.add("bundleKey", "not set", fix)
    elif not _path(value, project_directory).is_file():
        problems.add("bundleKey", "no such file", fix)
    return _path(value, project_directory)


def _path(value: str, project_directory: Path) -> Path:
    return project_directory / Path(value).expanduser()

"""Software bill of materials of a bundle: CycloneDX 1.6, for the site's own tools."""

import json
import uuid
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.bundle.manifest import File, Manifest

Component = dict[str, Any]
LONGEST_NAME = 80
"""Length limit of a licence's name: older packages give the licence's whole text."""


def text(directory: Path, manifest: Manifest) -> str:
    """Return the document as JSON: this project, container images, the model, Pulumi, each Python and Debian package.

    Only the images' own SBOMs list their contents. The same bundle always gives the same text.
    """
    components = [each for name in manifest.parts for each in _components(directory, manifest, name)]
    seed = json.dumps(components, sort_keys=True)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, f"{manifest.commit} {seed}").urn,
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "elastic-vllm", "version": manifest.commit}},
        "components": components,
    }
    return json.dumps(document, indent=1) + "\n"


def _components(directory: Path, manifest: Manifest, name: str) -> list[Component]:
    part = manifest.parts[name]
    known = [{"license": {"name": part.licence}}] if part.licence else []
    licences = {"licenses": known} if known else {}
    if name == "wheels":
        return [_wheel(directory / file.path, file) for file in part.files]
    if name == "packages":
        return [_debian(file, part.about["distribution"]) for file in part.files]
    if name == "pulumi":
        purls = {repository: f"pkg:github/pulumi/{repository}@v{version}" for repository, version in part.about.items()}
        return [
            {
                "type": "application",
                "bom-ref": purl,
                "name": repository,
                "version": part.about[repository],
                "purl": purl,
                **licences,
            }
            for repository, purl in purls.items()
        ]
    if name in {"weights", "image-weights"} and "revision" in part.about:
        about = {"type": "machine-learning-model", "name": part.about["model"], "version": part.about["revision"]}
        return [{**about, "bom-ref": name, **licences}]
    if name.startswith("image-"):
        about = {"type": "container", "name": part.about["reference"], "version": part.source}
        return [{**about, "bom-ref": name}]
    return []


def _debian(file: File, distribution: str) -> Component:
    """Return a Debian package's entry from its file name, which omits the version's epoch."""
    name, version, architecture = file.path.rpartition("/")[2].removesuffix(".deb").split("_")
    kind, _, release = distribution.partition(" ")
    purl = f"pkg:deb/{kind}/{quote(name)}@{quote(version)}?arch={architecture}&distro={kind}-{release}"
    return _library(name, version, purl, file)


def _wheel(path: Path, file: File) -> Component:
    """Return a wheel's entry from its metadata, or from its name if a delta leaves it out."""
    name, version = path.name.split("-")[:2]
    licences: list[dict[str, Any]] = []
    if file.carried:
        with zipfile.ZipFile(path) as archive:
            metadata = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
            headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8", "replace"))
        name, version = headers["Name"], headers["Version"]
        if expression := headers["License-Expression"]:
            licences = [{"expression": expression}]
        elif (given := (headers["License"] or "").strip()) and len(given) <= LONGEST_NAME and "\n" not in given:
            licences = [{"license": {"name": given}}]
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return {**_library(name, version, purl, file), **({"licenses": licences} if licences else {})}


def _library(name: str, version: str, purl: str, file: File) -> Component:
    hashes = [{"alg": "SHA-256", "content": file.sha256}]
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "hashes": hashes}

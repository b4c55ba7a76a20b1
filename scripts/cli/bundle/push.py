"""Push a bundle's images to a registry, and print the settings of a stack that uses them.

This module needs Python's own library and skopeo: the machine that reaches the registry may have nothing else.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.bundle import manifest
from components.bundle.manifest import MANIFEST, File, Manifest
from components.errors import UserError
from scripts.cli.bundle import archives, images, verify
from scripts.lib.errors import BadInputError, ExitCode, report
from scripts.lib.progress import Display, Task

ROLES = ("nginx", "vllm", "weights")
"""From the smallest to the largest, so that a registry that takes none is found out early."""
REGISTRY = re.compile(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPES = {archives.GZIP: "+gzip", archives.ZSTD: "+zstd"}
"""Beginning of a compressed layer -> suffix of its type."""
NOT_ALLOWED = r"unauthorized|authentication required|is denied|denied:|status(:| code) 40[13]"
REASONS: Sequence[tuple[str, str, str]] = (
    (
        r"x509:|certificate",
        "the certificate of {host} is not trusted",
        "give the CA that signed it (--ca FILE), and {host} as its certificate names it",
    ),
    (
        NOT_ALLOWED,
        "{host} does not let you push to {registry}",
        "log in with a user that may (`skopeo login {host}`, or docker or podman), and create the project there if the "
        "registry wants that",
    ),
    (
        r"writing blob.*(connection reset|broken pipe|EOF)",
        "{host} broke off an upload",
        "run the same again, it resumes; if it breaks off again, see the registry's log: its disk may be full, or a"
        " proxy before it limits the size of a layer",
    ),
    (
        r"no such host|connection refused|i/o timeout|no route to host|network is unreachable|connection reset",
        "no registry answers at {host}",
        "correct --registry, or the network in between",
    ),
    (
        r"server gave HTTP response to HTTPS client",
        "{host} speaks HTTP without TLS",
        "give its port for HTTPS, or declare it as insecure in /etc/containers/registries.conf",
    ),
    (
        r"Request Entity Too Large|status(:| code) 413",
        "a proxy before {host} limits the size of a layer",
        "have the limit lifted (Nginx: client_max_body_size 0), and run the same again",
    ),
    (
        r"no space left|unknown error|Internal Server Error|status(:| code) 5\d\d|insufficient storage",
        "{host} can't store it",
        "see the registry's log: its disk may be full; then run the same again, it resumes",
    ),
)
"""Words of skopeo's error, the cause and the fix."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of a bundle, and its name in a registry."""

    role: str
    name: str
    """With the tag, without the digest."""
    files: Sequence[File]


def pushed(bundle: Manifest, registry: str) -> list[Image]:
    """Return the images of a bundle, by their names in the registry. Raises BadInputError for a server's bundle."""
    if "weights" in bundle.parts:
        raise BadInputError("it is for a server: its weights are files", "build it from a stack with target kubernetes")
    found = []
    for role in ROLES:
        if part := bundle.parts.get(f"image-{role}"):
            # The tag names the content: a registry may delete an image whose tag was given to another one.
            tag, _, short = part.about["name"].rpartition(":")[2].rpartition("-")
            found.append(Image(role=role, name=f"{registry}/{role}:{tag}-id.{short}", files=part.files))
    return found


def located(files: Sequence[File], directories: Sequence[Path], bundle: Manifest) -> dict[str, Path]:
    """Map each file's name in its image to its place, in the bundle or in one before it. Raises BadInputError."""
    earlier = {file.sha256: place / file.path for place in directories[1:] for file in manifest.read(place).carried}
    found = {}
    for file in files:
        path = directories[0] / file.path if file.carried else earlier.get(file.sha256)
        if path is None:
            fix = f"give the bundle before it too: --base DIR, whose {MANIFEST} has SHA-256 {bundle.since}"
            raise BadInputError(f"this delta leaves out {file.path}", fix)
        found["/".join(file.path.split("/")[2:])] = path
    return found


@contextmanager
def layout(files: Mapping[str, Path]) -> Iterator[tuple[Path, str]]:
    """Lay an image out as OCI's specification says, by links, until the block ends; the other value is its digest."""
    (image,) = json.loads(files[images.LOAD].read_text(encoding="utf-8"))

    def descriptor(blob: str, kind: str) -> dict[str, object]:
        return {"mediaType": kind, "digest": f"sha256:{Path(blob).name}", "size": files[blob].stat().st_size}

    text = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(image["Config"], "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(layer, _layer_type(files[layer])) for layer in image["Layers"]],
        }
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    entry = {"mediaType": MANIFEST_TYPE, "digest": f"sha256:{digest}", "size": len(text.encode())}
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-push-") as directory:
        place = Path(directory)
        (place / images.BLOBS).mkdir(parents=True)
        (place / images.BLOBS / digest).write_text(text, encoding="utf-8")
        (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        for blob in {image["Config"], *image["Layers"]}:
            (place / blob).symlink_to(files[blob].resolve())
        yield place, f"sha256:{digest}"


def _layer_type(layer: Path) -> str:
    with layer.open("rb") as file:
        start = file.read(4)
    suffix = next((suffix for magic, suffix in LAYER_TYPES.items() if start.startswith(magic)), "")
    return f"application/vnd.oci.image.layer.v1.tar{suffix}"


class Registry:
    """A registry that images are pushed to."""

    def __init__(self, registry: str, ca: Path | None) -> None:
        """Take HOST[:PORT][/PREFIX], and the CA of its certificate if the system does not know it."""
        self.registry, self.host = registry, registry.partition("/")[0]
        self._ca = ca

    def ask(self, image: Image) -> None:
        """Ask for an image, to see that the registry answers at all. Raises UserError."""
        with self._options("") as options:
            code, output = images.run_skopeo(["inspect", "--raw", *options, f"docker://{image.name}"], lambda _: None)
        # Some registries show nobody what is not there yet.
        if code and not re.search("|".join((*images.UNKNOWN, NOT_ALLOWED)), output, re.IGNORECASE):
            raise self._error(image.name, output)

    def push(self, image: Image, files: Mapping[str, Path], task: Task) -> str:
        """Push an image without the layers that are there, and return its digest. Raises UserError."""
        total = sum(name.startswith(images.BLOBS.as_posix()) for name in files)
        seen: set[str] = set()

        def say(line: str) -> None:
            if found := re.search(r"Copying (?:blob|config) (?:sha256:)?([0-9a-f]+)", line):
                seen.add(found[1])
                task.say(f"blob {len(seen)} of {total}")

        with layout(files) as (place, digest), self._options("dest-") as options:
            # skopeo would compress layers: weights can't be, and the digest would depend on its version.
            command = ["copy", "--preserve-digests", *options, f"oci:{place}", f"docker://{image.name}"]
            code, output = images.run_skopeo(command, say)
        if code:
            raise self._error(image.name, output)
        return digest

    @contextmanager
    def _options(self, prefix: str) -> Iterator[list[str]]:
        plain = images.plain(self.host, f"--{prefix}tls-verify=false")
        if not self._ca:
            yield plain
            return
        with tempfile.TemporaryDirectory(prefix="elastic-vllm-ca-") as directory:
            (Path(directory) / "ca.crt").write_bytes(self._ca.read_bytes())
            yield [*plain, f"--{prefix}cert-dir={directory}"]

    def _error(self, name: str, output: str) -> UserError:
        lines = output.strip().splitlines() or [""]
        message = re.search(r'msg="(.*)"', lines[-1])
        last = re.sub(r"\?_state=[^\s\"]*", "", message[1].replace('\\"', '"') if message else lines[-1])[-400:]
        if "unknown flag" in output:
            return UserError(f"this skopeo is too old: {last}", "install a newer one, such as Debian 12's (1.9.3)")
        for words, cause, fix in REASONS:
            if re.search(words, output, re.IGNORECASE):
                known = {"host": self.host, "registry": self.registry}
                return UserError(f"{cause.format(**known)}: {last}", fix.format(**known))
        return UserError(f"{name} can't be pushed: {last}", "see skopeo's message")


def settings(bundle: Manifest, references: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the stack's file that name the images, and what must not be there besides."""
    weights = bundle.parts.get("image-weights")
    yield "config:"
    if weights and "model" in weights.about:
        yield f"  elastic-vllm:model: {weights.about['model']}"
    for role in sorted(references):
        yield f"  elastic-vllm:{role}Image: {references[role]}"
    yield "  # elastic-vllm:imagePullSecret: NAME, if the nodes must log in to pull"
    if weights:
        yield "  # without modelRevision, hfToken, weightsClaim and weightsStorageClass: nothing is downloaded"


def main(arguments: Sequence[str] | None = None) -> None:
    """Push, and end with an exit status of scripts/lib/errors.py."""
    parser = argparse.ArgumentParser(
        prog="scripts/elastic-vllm bundle push",
        description="Check the bundle of a cluster's stack, push its images to a registry, and print the settings that"
        " name them there. Needs Python and skopeo. Layers that the registry has are not sent again: if it is"
        " interrupted, run it again and it resumes. Logins of skopeo, podman and docker are used.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the bundle")
    parser.add_argument("--registry", metavar="HOST[:PORT][/PREFIX]", required=True, help="where the images go")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--key", help="the signer's public key, or its file, as for `bundle verify`")
    trust.add_argument("--unsigned", action="store_true", help="accept a bundle without a signature")
    parser.add_argument("--ca", metavar="FILE", type=Path, help="CA of the registry's certificate, in PEM")
    parser.add_argument(
        "--base", metavar="DIR", type=Path, action="append", default=[], help="for a delta: a bundle before it"
    )
    given = parser.parse_args(arguments)
    try:
        for line in push(given):
            print(line)
    except UserError as error:
        sys.exit(report(error))
    except OSError as error:
        sys.exit(report(UserError(f"it can't be pushed: {error}", "correct that, and run the same again")))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


def push(given: argparse.Namespace) -> list[str]:
    """Push what the arguments say, and return the settings. Raises UserError or OSError."""
    if not REGISTRY.fullmatch(given.registry):
        raise BadInputError(
            f"--registry {given.registry}: no HOST[:PORT][/PREFIX]",
            "write it as in registry.example.com/elastic-vllm: in lower case, without https:// and without a tag",
        )
    if given.ca and "BEGIN CERTIFICATE" not in given.ca.read_text(encoding="utf-8", errors="replace"):
        raise BadInputError(f"--ca {given.ca}: no certificate in PEM", "give the file of the CA's certificate")
    directories = [given.directory, *given.base]
    bundle, registry = manifest.read(given.directory), Registry(given.registry, given.ca)
    found = pushed(bundle, given.registry)
    # Before the minutes that the bundle's check takes.
    registry.ask(found[0])
    for place in directories:
        for problem in verify.problems(place, None if given.unsigned else given.key):
            fix = (
                "see with `scripts/elastic-vllm bundle verify` what else is wrong, and carry it over or build it again"
            )
            raise UserError(f"{place}: {problem}", fix)
    references = {}
    with Display(results_on_stdout=True) as display:
        for image in found:
            with display.task(image.role, image.name) as task:
                files = located(image.files, directories, bundle)
                references[image.role] = f"{image.name}@{registry.push(image, files, task)}"
    return list(settings(bundle, references))


if __name__ == "__main__":
    main()

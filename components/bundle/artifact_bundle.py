"""Files of a bundle, brought to a host that may not fetch anything."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pulumi
from pulumi_command import local

from components import render
from components.bundle.manifest import File
from components.machine.host import CLOSING_WORD, STORE, Host
from components.settings.bundle import BundleSettings


@dataclass(frozen=True, kw_only=True)
class ArtifactBundleArgs:
    """The bundle, and the destinations of its parts."""

    host: Host
    bundle: BundleSettings
    weights_path: str


class ArtifactBundle(pulumi.ComponentResource):
    """The bundle was checked as a whole, and its packages, images and weights are on the host, each file checked there.

    Nothing is sent to the host before the check. Files that are there already, from this or an earlier bundle, are not
    sent again, and interrupted transfers resume. The container runtime installs packages and loads images.
    """

    host: Host
    """The host, which installs packages only from the bundle."""
    image_directories: Mapping[str, str]
    """Role -> directory on the host with the image's files."""
    brought: Mapping[str, pulumi.Resource]
    """Part of the bundle (packages, image-ROLE, weights) -> resource that completes once it is on the host."""

    def __init__(self, name: str, args: ArtifactBundleArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ArtifactBundle", name, None, opts)
        self._bundle, self._target = args.bundle, args.host
        self._checked = local.Command(
            f"{name}-check",
            create=shlex.join(_verify(args.bundle)),
            triggers=[args.bundle.manifest_sha256],
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self),
        )
        store, images = f"{STORE}/{pulumi.get_stack()}", args.bundle.images
        self.image_directories = {
            role: f"{store}/{image.rpartition('/')[2].replace(':', '-')}" for role, image in images.items()
        }
        # Even if the bundle has none: the host must not ask anywhere else.
        self.host = replace(args.host, packages=f"{store}/packages")
        destinations = {
            "packages": self.host.packages,
            **{f"image-{role}": directory for role, directory in self.image_directories.items()},
            "weights": args.weights_path,
        }
        self.brought = {
            part: self._bring(f"{name}-{part}", part, destination, images.get(part.removeprefix("image-"), ""))
            for part, destination in destinations.items()
            if part in args.bundle.manifest.parts
        }
        self.register_outputs({"packages": self.host.packages, "imageDirectories": self.image_directories})

    def _bring(self, name: str, part: str, destination: str, image: str) -> pulumi.Resource:
        """Bring a part's files to the host, unless the engine has the image already."""
        bundle, host = self._bundle, self._target
        files = bundle.manifest.parts[part].files
        directory = _common_directory(files)
        names = [file.path.removeprefix(f"{directory}/") for file in files]
        script = render.script(
            "bundle/receive-files.sh",
            engine=host.engine,
            destination=destination,
            alike=f"{STORE}/*/*" if destination.startswith(STORE) else f"{destination.rpartition('/')[0]}/*",
            source=bundle.on_host,
            part=directory,
            image=image,
        )
        if bundle.on_host:
            listing = "".join(
                f"{file.sha256} {file.bytes} {'yes' if file.carried else 'no'} {short}\n"
                for file, short in zip(files, names, strict=True)
            )
            return host.command(f"{name}-from-disk", script, data=listing, parent=self, depends_on=[self._checked])
        order = {
            "closing_word": CLOSING_WORD,
            "title": part,
            "directory": str(bundle.directory / directory),
            "files": [
                {"path": short, "sha256": file.sha256, "bytes": file.bytes, "carried": file.carried}
                for file, short in zip(files, names, strict=True)
            ],
        }
        stdin = pulumi.Output.all(ssh=host.ssh_command(), script=host.standard_input(script)).apply(
            lambda known: json.dumps({**known, **order})
        )
        return local.Command(
            name,
            create="python3 components/files/bundle/transfer.py",
            stdin=stdin,
            triggers=[host.identity],
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*host.ready, self._checked]),
        )


def _verify(bundle: BundleSettings) -> list[str]:
    """Return the command that checks the bundle, with its files only if they are on this machine."""
    trust = ["--key", bundle.public_key] if bundle.public_key else ["--unsigned"]
    where = ["--listing"] if bundle.on_host else []
    return ["scripts/elastic-vllm", "bundle", "verify", str(bundle.directory), *trust, *where]


def _common_directory(files: Sequence[File]) -> str:
    """Return the directory of a part: `packages`, `images/ROLE-ID` or `weights/NAME`."""
    first = files[0].path.split("/")
    return "/".join(first[:1] if first[0] == "packages" else first[:2])

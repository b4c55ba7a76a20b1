"""A server that exists already, set up by someone else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pulumi

from components import render
from components.machine.host import STORE, Host
from components.settings.downloads import DownloadSettings

# vLLM's GPU image: 12 GB packed and 28 GB unpacked, both on disk while it is pulled.
IMAGES_GB = 40


@dataclass(frozen=True, kw_only=True)
class ExistingHostArgs:
    """Requirements of the endpoint on the server."""

    host: Host
    https_port: int
    ipv6: bool
    weights_path: str
    weights_gb: float
    """Disk that the weights need if they are not there yet, in 10^9 bytes."""
    weights_on_host: bool
    """True if the weights must be there already."""
    weights_formats: Mapping[str, str]
    """vLLM's arguments that decide which files it loads (`weights_formats` in components/serving)."""
    images: Mapping[str, str]
    """Role -> image reference; one that begins with `localhost/` must be there already, unless a bundle brings it."""
    bundled_images_mb: int | None
    """Size of a bundle's images and packages, packed; None if images come from their registries."""
    downloads: DownloadSettings
    after: Sequence[pulumi.Resource] = ()
    """Checks that must succeed before the server is looked at."""


class ExistingHost(pulumi.ComponentResource):
    """An existing server can run the endpoint: it is reachable, its key is verified, rights, port and disk suffice.

    This component changes nothing on the server before that is checked, and then only writes down how to fetch what the
    others need: directly or through a proxy. Everything else on it depends on this. The server's owner is responsible
    for drivers and the operating system, and for how Docker reaches its registries.
    """

    host: Host
    address: pulumi.Input[str]
    """Address that clients connect to."""

    def __init__(self, name: str, args: ExistingHostArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ExistingHost", name, None, opts)
        reached = args.host.reached(f"{name}-ssh", parent=self, depends_on=args.after)
        check = args.host.command(
            f"{name}-check",
            render.script(
                "weights/check-weights.sh",
                "containers/check-engine.sh",
                "host/check-host.sh",
                engine=args.host.engine,
                login=args.host.user,
                prefix=args.host.prefix,
                port=args.https_port,
                ipv6="yes" if args.ipv6 else "no",
                weights=args.weights_path,
                weights_gb=max(1, round(args.weights_gb)),
                weights_on_host="yes" if args.weights_on_host else "no",
                **args.weights_formats,
                images=" ".join(args.images.values()),
                images_gb=IMAGES_GB,
                bundled_images_mb="" if args.bundled_images_mb is None else args.bundled_images_mb,
                store=STORE,
                proxied_images=" ".join(
                    image for image in args.images.values() if not args.downloads.reaches_directly(registry(image))
                ),
            ),
            parent=self,
            depends_on=[reached],
        )
        self.host = replace(args.host, ready=[check])
        if args.bundled_images_mb is None:
            directory = f"{args.host.directory}/downloads"
            # A separate command, so that another proxy or password runs none of those that have fetched something
            # again; and there without a proxy, too, since what a removed resource cleans up would be gone too late.
            way_out = args.host.command(
                f"{name}-downloads",
                render.script(
                    "host/configure-downloads.sh",
                    downloads=directory,
                    exceptions=",".join(args.downloads.exceptions),
                    ca=args.downloads.ca,
                ),
                data=args.downloads.proxy,
                cleanup=render.script("host/remove-downloads.sh", downloads=directory),
                parent=self,
                depends_on=[check],
            )
            self.host = replace(self.host, ready=[way_out], downloads=directory)
        self.address = args.host.address
        self.register_outputs({"address": self.address})


def registry(image: str) -> str:
    """Return the host that an image comes from, without its port; Docker's own for a name without a host."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first.partition(":")[0]
    return "docker.io"

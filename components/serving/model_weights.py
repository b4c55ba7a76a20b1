"""The model's weights in a directory on the host."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from components import render
from components.catalogue.models import Model
from components.machine.host import Host
from components.settings.model import argument_value

DOWNLOAD_UID = 10003
"""User that downloads: different from those of vLLM and Nginx, and used by no container."""


def weights_formats(model: Model, extra_args: tuple[str, ...]) -> dict[str, str]:
    """vLLM's arguments that decide which files it loads, by variable of check-weights.sh; without those left to it."""
    options = ("--load-format", "--config-format", "--tokenizer-mode")
    given = {option: argument_value((*extra_args, *model.vllm_extra_args), option) for option in options}
    return {option[2:].replace("-", "_"): value for option, value in given.items() if value}


@dataclass(frozen=True, kw_only=True)
class ModelWeightsArgs:
    """Which weights, from where, to where."""

    host: Host
    model: Model
    source: str
    """`hub`: downloaded; `host`: already there; `bundle`: brought there."""
    brought: pulumi.Resource | None
    """Resource that brings them there."""
    path: str
    """The model's directory on the host."""
    formats: Mapping[str, str]
    """Formats of the files (`weights_formats`)."""
    hf_endpoint: str
    revision: str
    hf_token: pulumi.Input[str]
    """Secret; empty where none is needed."""


class ModelWeights(pulumi.ComponentResource):
    """The weights are on the host: complete, of the pinned revision, readable by the server.

    A download resumes, and each file is checked against the hub's checksums; it needs no container, so it runs while
    images are pulled. Weights of other models are left alone, and so are these when the stack is destroyed. vLLM
    downloads nothing later.
    """

    path: str
    resource: pulumi.Resource

    def __init__(self, name: str, args: ModelWeightsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ModelWeights", name, None, opts)
        if args.source == "hub":
            self.resource = args.host.command(
                f"{name}-download",
                render.script(
                    "host/install-python-client.sh",
                    "weights/download-weights.sh",
                    prefix=args.host.prefix,
                    weights=args.path,
                    model=args.model.name,
                    revision=args.revision,
                    endpoint=args.hf_endpoint,
                    unneeded=json.dumps(list(args.model.unneeded_files)),
                    downloader=(render.FILES / "weights/download_weights.py").read_text(encoding="utf-8"),
                    requirements=(render.FILES / "weights/hub-client.txt").read_text(encoding="utf-8").strip(),
                    download_uid=DOWNLOAD_UID,
                ),
                data=args.hf_token,
                parent=self,
            )
        else:
            self.resource = args.host.command(
                f"{name}-check",
                render.script("weights/check-weights.sh", weights=args.path, **args.formats)
                + 'check_weights "$WEIGHTS"\n',
                parent=self,
                depends_on=[args.brought] if args.brought else [],
            )
        self.path = args.path
        self.register_outputs({"path": self.path})

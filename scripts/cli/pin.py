"""Pin a stack's images by digest, its model by commit and its VM's image by name, and record them in the stack's file.

The command runs on a connected machine: it asks the images' registries, the hub and Google Cloud.
"""

import re
from collections.abc import MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import httpx2
import requests
import typer
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from rich.console import Console
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from components.errors import UserError
from components.settings.stack import defaults
from scripts.lib.errors import BadInputError
from scripts.lib.google import Google, NoAnswerError, RefusedError, find_identity
from scripts.lib.stack_file import PREFIX, StackFile

ROOT = Path(__file__).resolve().parents[2]
RECOMMENDED = {
    "vllmImage": "docker.io/vllm/vllm-openai:v0.32.0",
    "nginxImage": "docker.io/library/nginx:1.30.6",
}
"""Tags to pin if a stack names none."""
# Public image families of Ubuntu 24.04, with their projects: with NVIDIA's driver 580 inside, and plain.
VM_IMAGES = {
    "accelerator": ("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580"),
    "plain": ("ubuntu-os-cloud", "ubuntu-2404-lts-amd64"),
}
GOOGLE_BASE = ""
NAME_AND_TAG = re.compile(r"[a-z0-9][a-z0-9._:-]*(/[a-z0-9._-]+)+:[\w.-]+")
DOCKER_HUB = "registry-1.docker.io"
# The index of a multi-platform image first: its digest serves every platform.
MANIFEST_TYPES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
console = Console(highlight=False, soft_wrap=True)


def image_digest(reference: str) -> str:
    """Return the digest (`sha256:...`) that the registry reports for `HOST/NAME:TAG` now.

    Raises OSError (as all errors of requests are), KeyError or ValueError if the registry gives no valid answer.
    """
    name, tag = reference.rsplit(":", 1)
    host, repository = name.split("/", 1)
    # A registry on this machine needs no TLS, as for Docker itself.
    scheme = "http" if host.split(":")[0] in {"localhost", "127.0.0.1"} else "https"
    url = f"{scheme}://{DOCKER_HUB if host == 'docker.io' else host}/v2/{repository}/manifests/{tag}"
    headers = {"Accept": MANIFEST_TYPES}
    answer = requests.head(url, headers=headers, timeout=30)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        # Public registries demand a token too, which anyone gets: distribution.github.io/distribution/spec/auth/token
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', answer.headers.get("WWW-Authenticate", "")))
        token = requests.get(challenge.pop("realm"), params=challenge, timeout=30).json()["token"]
        answer = requests.head(url, headers={**headers, "Authorization": f"Bearer {token}"}, timeout=30)
    answer.raise_for_status()
    return answer.headers["Docker-Content-Digest"]


def with_registry(reference: str) -> str:
    """Return the reference with its registry, as Docker completes it, and without a digest."""
    reference = reference.partition("@")[0]
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return reference
    return f"docker.io/{reference}" if slash else f"docker.io/library/{reference}"


def main(
    stack: Annotated[str, typer.Option(help="The stack whose file in stacks/ is completed.")],
    vllm: Annotated[str, typer.Option(help="Use this vLLM image (NAME:TAG) instead of the recorded one.")] = "",
    nginx: Annotated[str, typer.Option(help="Use this Nginx image (NAME:TAG) instead of the recorded one.")] = "",
    os_image: Annotated[
        str | None,
        typer.Option(
            "--os",
            metavar="accelerator|plain",
            help="target gcp: VM image with NVIDIA's driver or without. Default: as recorded, or accelerator.",
        ),
    ] = None,
    new_vm: Annotated[
        bool, typer.Option("--new-vm", help="Use the newest VM image even if another is recorded: replaces the VM.")
    ] = False,
) -> None:
    """Record the current digests of the stack's image tags, and the current commit of its model.

    Images on localhost/ are left alone: they are on the server already. A private or gated model needs the
    hub's token in the environment variable HF_TOKEN. For target gcp the newest image of --os is recorded as
    vmImage too, unless one is recorded already; that takes credentials as preflight does.
    """
    file = StackFile(ROOT, stack)
    config = file.config
    for key, given in (("vllmImage", vllm), ("nginxImage", nginx)):
        reference = with_registry(given or _setting(config, key))
        if reference.startswith("localhost/"):
            continue
        if not NAME_AND_TAG.fullmatch(reference):
            raise BadInputError(
                f"{key} = {reference!r} is no image's name with a tag", "give NAME:TAG, e.g. " + RECOMMENDED[key]
            )
        console.print(f"asking {reference.split('/')[0]} for {reference}")
        try:
            config[PREFIX + key] = f"{reference}@{image_digest(reference)}"
        except (OSError, KeyError, ValueError) as error:
            fix = f"check the image's name ({key}) and this machine's network"
            raise UserError(f"no answer for {reference}: {error}", fix) from error
        console.print(f"  {config[PREFIX + key]}")
    in_the_cluster = any(_setting(config, key) for key in ("weightsClaim", "weightsImage"))
    if _setting(config, "modelSource") == "hub" and not in_the_cluster:
        # Quoted: one of digits alone would be a number in YAML.
        config[PREFIX + "modelRevision"] = DoubleQuotedScalarString(
            commit(_setting(config, "model"), _setting(config, "hfEndpoint"))
        )
        console.print(f"  {config[PREFIX + 'modelRevision']}")
    if _setting(config, "target") == "gcp":
        _pin_vm_image(config, os_image, take_newest=new_vm)
    file.save()
    console.print(f"recorded in {file.name}")


def commit(model: str, endpoint: str) -> str:
    """Return the commit that the hub's main branch of `model` points to now."""
    console.print(f"asking the hub for {model}")
    try:
        return str(HfApi(endpoint=endpoint).model_info(model, timeout=30).sha)
    except HfHubHTTPError as error:
        answer = error.response.status_code
        fix = "check the model's name; for gated models set HF_TOKEN"
        raise UserError(f"the hub refused {model}: {answer}", fix) from error
    except HFValidationError as error:
        raise BadInputError(f"model = {model!r} is no name on the hub", "give ORGANISATION/NAME") from error
    except (OSError, httpx2.HTTPError) as error:
        raise UserError(f"the hub does not answer: {error}", "check hfEndpoint and this machine's network") from error


def _pin_vm_image(config: MutableMapping[str, Any], os_image: str | None, *, take_newest: bool) -> None:
    recorded = str(config.get(PREFIX + "vmImage") or "")
    same_kind = [kind for kind, (project, _) in VM_IMAGES.items() if recorded.startswith(f"projects/{project}/")]
    newest = vm_image(os_image or next(iter(same_kind), "accelerator"))
    if recorded and recorded != newest and not take_newest:
        console.print(f"  kept {recorded}; the newest is {newest}: --new-vm takes it, and replaces the VM")
        return
    config[PREFIX + "vmImage"] = newest
    console.print(f"  {newest}")


def vm_image(os_image: str) -> str:
    """Return the newest image of the family that `os_image` stands for: projects/PROJECT/global/images/NAME."""
    if os_image not in VM_IMAGES:
        raise BadInputError(f"--os {os_image} is unknown", f"use {' or '.join(VM_IMAGES)}")
    project, family = VM_IMAGES[os_image]
    console.print(f"asking Google Cloud for the newest image of {family}")
    try:
        google = Google(find_identity(), GOOGLE_BASE)
        found = google.find(project, f"global/images/family/{family}")
    except (RefusedError, NoAnswerError) as error:
        fix = "log in (gcloud auth application-default login), or set vmImage"
        raise UserError(f"Google Cloud does not list its images: {error}", fix) from error
    if not found:
        raise UserError(f"{project} has no image of family {family}", "choose the other kind with --os, or set vmImage")
    return f"projects/{project}/global/images/{found['name']}"


def _setting(config: MutableMapping[str, Any], key: str) -> str:
    usual = RECOMMENDED.get(key) or defaults()[key]
    value = config.get(PREFIX + key) or usual
    if not isinstance(value, str):
        raise BadInputError(f"{key} = {value!r} is no text", f"write it as text, e.g. {usual}")
    return value

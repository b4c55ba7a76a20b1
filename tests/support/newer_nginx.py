"""Nginx from Debian's next release: 1.27.4 or newer, which leaves idle connections open during a reload."""

import docker

from components.errors import UserError
from scripts.lab import images
from scripts.lab.base_system import distribution

IMAGE = f"localhost/elastic-vllm/nginx:{images.NEWER_SUITE}"


def image() -> str:
    """Return the image's name and build it if missing; empty where it can't be built, as on Ubuntu."""
    if distribution()[0] != "debian":
        return ""
    try:
        # One process builds it: another image of that name would replace the containers of the first.
        images.ensure_nginx_image(docker.from_env(timeout=120), IMAGE, print)
    except UserError as error:
        print(f"no newer Nginx: {error}")
        return ""
    return IMAGE

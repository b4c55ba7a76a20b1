"""The tiny models that a rehearsal serves, trained once on this machine (see tiny_model.py)."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import docker
from docker.errors import DockerException
from docker.types import Mount

from components.errors import UserError

SCRIPT = Path(__file__).parent / "tiny_model.py"
MODELS = Path("/var/lib/elastic-vllm/models")
"""Default directory of trained models."""
MARKER = ".recipe"  # in the model's directory: the hash of what made it
LABEL = "elastic-vllm.training"  # on the container: the directory it trains into


def recipe_of(name: str) -> str:
    """Return 64 hexadecimal digits that change with the inputs of the tiny model `name`."""
    return hashlib.sha256(f"{name}\0".encode() + SCRIPT.read_bytes()).hexdigest()


def ensure_tiny_model(
    client: docker.DockerClient, image: str, name: str, directory: Path, say: Callable[[str], None]
) -> None:
    """Make sure that `directory` holds the tiny model `name`, trained by this version of the script in `image`.

    `image` is the vLLM image by name or id; `name` a key of tiny_model.VARIANTS, such as "rehearsal/tiny". Returns
    at once if it is there, otherwise takes about a minute of one core. Files are readable by any user.
    Raises UserError with the script's last lines.
    """
    recipe = recipe_of(name)
    marker = directory / MARKER
    if marker.is_file() and marker.read_text() == recipe and (directory / "config.json").is_file():
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # The mark last: a directory without it is not a finished model of this recipe.
        marker.unlink(missing_ok=True)
        for left in client.containers.list(all=True, filters={"label": f"{LABEL}={directory}"}):
            left.remove(force=True)
        say(f"training the tiny model {name}")
        _train(client, image, name, directory, say)
        marker.write_text(recipe)
        marker.chmod(0o644)
    except (DockerException, OSError) as error:
        cause = f"the tiny model {name} can't be trained in {directory}: {error}"
        raise UserError(cause, "put that right, and run this again") from error


def _train(client: docker.DockerClient, image: str, name: str, directory: Path, say: Callable[[str], None]) -> None:
    if shutil.disk_usage(directory.parent).free < 100 * 2**20:
        raise UserError(f"the tiny model needs 100 MB at {directory.parent}", "free some space, and run this again")
    container = client.containers.run(
        image,
        ["/tiny_model.py", name, f"/models/{directory.name}"],
        entrypoint=["python3", "-u"],
        detach=True,
        labels={LABEL: str(directory)},
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        cap_add=["DAC_OVERRIDE"],  # the directory may belong to the server's user
        security_opt=["no-new-privileges"],
        user="0:0",
        environment={"HOME": "/tmp", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},  # noqa: S108 - in the container
        tmpfs={"/tmp": "rw,mode=1777"},  # noqa: S108 - in the container
        mounts=[
            Mount("/tiny_model.py", str(SCRIPT), type="bind", read_only=True),
            Mount("/models", str(directory.parent.resolve()), type="bind"),
        ],
    )
    try:
        lines: list[str] = []
        for chunk in container.logs(stream=True, follow=True):
            lines += chunk.decode(errors="replace").splitlines()
            say(lines[-1] if lines else "")
        if container.wait()["StatusCode"]:
            last = "\n  ".join(lines[-8:])
            raise UserError(f"training the tiny model {name} failed in {image}:\n  {last}", "see its last lines")
    finally:
        container.remove(force=True)

"""Golden files of whole containers in Docker and Podman: their confinement can be reviewed, and changes show."""

import json
from collections.abc import Callable

import pytest
import yaml

from tests.support.program import ROOT, Program

WATCH = ROOT / "components" / "files" / "vllm" / "vllm_watch.py"
WIDE = 10**6


@pytest.mark.parametrize("runtime", ["docker", "podman"])
@pytest.mark.parametrize("base", ["gpu", "local"])
def test_containers_are_as_reviewed(
    base: str, runtime: str, program_of: Callable[..., Program], golden: Callable[[str, str], None]
) -> None:
    program = program_of(base, containerRuntime=runtime, sshUser="root")
    containers = {name: program.resources[name].inputs for name in ("nginx-container", "nginx-network")}
    if runtime == "docker":  # Podman's are in podman-run.txt
        inputs = dict(program.resources["vllm-container"].inputs)
        del inputs["command"]  # vllm-command-lines.txt
        containers["vllm-container"] = inputs
    text = yaml.safe_dump(containers, width=WIDE)
    golden(f"containers-{base}-{runtime}.yaml", text.replace(json.dumps(WATCH.read_text()), WATCH.name))

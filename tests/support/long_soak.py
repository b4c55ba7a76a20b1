"""The soak of `make prove`: half an hour on a separate stack, so that no other stack is changed or taken down.

The stack stays up for proofs that run beside it: taking it down ends Docker if no other stack is up. The caller takes
it down: `scripts/rehearse down --stack soaked`.
"""

import subprocess
import sys

import yaml

from tests.integration.conftest import ROOT, rehearse_up
from tests.support.local_sshd import free_port

STACK = "soaked"


def main() -> int:
    """Run the soak and return the exit status of scripts.maintain.soak."""
    stacks = ROOT / "stacks"
    config = yaml.safe_load((stacks / "Pulumi.local.yaml").read_text())["config"]
    own = stacks / f"Pulumi.{STACK}.yaml"
    own.write_text(yaml.safe_dump({"config": config | {"elastic-vllm:httpsPort": free_port()}}))
    try:
        rehearse_up(stack=STACK)
        return subprocess.run(
            [sys.executable, "-m", "scripts.maintain.soak", "--stack", STACK], cwd=ROOT, check=False
        ).returncode
    finally:
        own.unlink()


if __name__ == "__main__":
    sys.exit(main())

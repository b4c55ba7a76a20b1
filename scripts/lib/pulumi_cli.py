"""Questions to the Pulumi CLI; if it fails, its message is the cause."""

import re
import subprocess
from pathlib import Path

from scripts.lib.errors import BadInputError
from scripts.lib.redaction import environment_secrets, redact

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 300
LAST_LINES = 10
REHEARSED = "a stack of scripts/rehearse takes --rehearsal"
FIXES = {
    r"no stack named|no previous deployment|stack .* not found": (
        f"check the name (pulumi stack ls) and the backend (pulumi whoami -v); {REHEARSED}"
    ),
    r"passphrase": "set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE to that of the stack",
    r"PULUMI_ACCESS_TOKEN|log ?in|unauthori[sz]ed|credentials": "log in to the backend of its state: pulumi login",
}


def ask(stack: str, *arguments: str) -> str:
    """Return the output of a read-only command for a stack. Raises BadInputError if it fails for any reason."""
    command = ["pulumi", *arguments, "--stack", stack, "--non-interactive"]
    shown = " ".join(command)
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except OSError as error:
        raise BadInputError(
            f"`{shown}` can't be run: {error.strerror or error}",
            f"install the Pulumi CLI (docs/getting-started/server.md); {REHEARSED}",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BadInputError(f"`{shown}` has not ended within {SECONDS} s", "is the backend of its state up") from error
    if done.returncode:
        lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()][-LAST_LINES:]
        words = redact("\n".join(lines), environment_secrets()) or "it printed nothing"
        fix = next((fix for pattern, fix in FIXES.items() if re.search(pattern, words)), "put right what it reports")
        raise BadInputError(f"`{shown}` failed ({done.returncode}):\n{words}", fix)
    return done.stdout

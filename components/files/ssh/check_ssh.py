"""Checks that `ssh` reaches a server and that commands run there as sent: a program for bare Python.

Standard input is JSON: `ssh` (the command), `script` (its standard input), `closing_word` (all that it prints if the
script ran), `destination` (the server's name in messages). Each error has its cause and fix.
"""

import json
import re
import subprocess
import sys
from typing import Any

SECONDS = 120
SSH_FAILED = 255
"""ssh's own exit code, for the connection rather than for the command."""
CAUSES = (
    # What ssh or the login shell prints, the cause, the fix.
    (
        r"Host key verification failed",
        "shows another host key than sshHostKey",
        "reinstalled, or somebody else's machine? If you trust it, set sshHostKey",
    ),
    (
        r"Permission denied",
        "refuses the private key",
        "is it the right one (sshPrivateKeyPath), is the user right (sshUser), and is its public half in that user's "
        "authorized_keys?",
    ),
    (
        r"Too many authentication failures",
        "is offered too many keys",
        "name one of those in the agent: its .pub file as sshPrivateKeyPath",
    ),
    (r"Could not resolve|not known|failure in name resolution", "has a name that nobody knows", "correct host"),
    (
        r"knownhostscommand",
        "was not asked: ssh on this machine is too old",
        "install OpenSSH 8.5 or newer here",
    ),
    (
        r"sshd drops connections",
        "drops new connections",
        "raise MaxStartups in its sshd_config, or wait for the end of its penalties",
    ),
    (r"bash: (command )?not found|Unknown command.*bash|bash: No such file", "has no bash", "install it there"),
)


def problem(order: dict[str, Any], code: int, printed: str, errors: str) -> tuple[str, str] | None:
    """The cause and the fix; None where the script ran."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["ssh printed nothing"]
    for pattern, cause, fix in CAUSES if code else ():
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return f"{cause} ({line})", fix
    if code == SSH_FAILED:
        shown = next((line for line in lines if "port " in line), lines[-1])
        return f"can't be reached: {shown}", "is sshd running there, is the address right (host, sshPort)?"
    before, closing_word, _ = printed.partition(order["closing_word"])
    if not closing_word:
        shown = " ".join(f"{printed} {errors}".split())[-200:] or "nothing"
        return (
            f"does not run what it is sent; it answered: {shown}",
            "is there a ForceCommand in its sshd_config, command= in its authorized_keys, or a login shell that runs "
            "something else?",
        )
    if before.strip():
        shown = " ".join(before.split())[:200]
        return (
            f"prints something before each command, which Docker would take for an answer: {shown}",
            "let .bashrc and the like print in interactive shells only",
        )
    return None


def main() -> None:
    """Run ssh once; end with a message if anything is wrong."""
    order = json.load(sys.stdin)
    try:
        done = subprocess.run(
            order["ssh"],
            input=order["script"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            errors="replace",
        )
        found = problem(order, done.returncode, done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        found = f"has not answered within {SECONDS} s", "do the files of its login shell wait for something?"
    except OSError as error:
        found = f"is not asked: ssh can't be started ({error.strerror})", "install the OpenSSH client on this machine"
    if found:
        sys.exit(f"elastic-vllm: {order['destination']} {found[0]}\n  fix: {found[1]}")
    print(f"{order['destination']} answers")


if __name__ == "__main__":
    main()

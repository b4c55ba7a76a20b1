"""Resources of a stack, in one small file that a crash at any moment leaves readable."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from scripts.lab import RehearsalError
from scripts.lib.private_files import write_private

ROOT = Path("/var/lib/elastic-vllm-rehearsal")


@dataclass(kw_only=True)
class Record:
    """One existing resource: plain JSON values, secrets in clear text (only root can read the file)."""

    type: str
    name: str
    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    provider: str = ""  # the URN of the explicit provider
    dependencies: list[str] = field(default_factory=list)  # URNs
    trigger: Any = None  # the resource option replacement_trigger
    deleted_with: str = ""  # the URN of the resource that it is deleted with
    retained: bool = False  # left alone when it is deleted
    protect: bool = False  # not to be deleted
    begun: Literal["", "create", "delete"] = ""  # begun and not finished: it may or may not exist


@dataclass(kw_only=True)
class State:
    """State of one stack. `outputs`: name -> {"value", "secret"}; `kept`: remains -> command to remove them."""

    path: Path
    resources: dict[str, Record] = field(default_factory=dict)  # by URN, in order of creation
    outputs: dict[str, dict[str, Any]] | None = None
    kept: dict[str, str] = field(default_factory=dict)
    engine: Literal["", "embedded", "pulumi"] = ""  # what brought it up
    on_this_machine: bool = False  # which was set up for it, and is its host; else it has a real one
    ssh_port: int = 0  # of the private sshd; 0 without

    def save(self) -> None:
        """Replace the file atomically and durably."""
        content = asdict(self)
        del content["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self.path, json.dumps(content, indent=1))


def stack_directory(root: Path, stack: str) -> Path:
    """Return the directory of a stack's state and lock."""
    return root / "stacks" / stack


def load(root: Path, stack: str) -> State:
    """Read a stack's state; it is empty if there is none yet."""
    path = stack_directory(root, stack) / "state.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        resources = {urn: Record(**record) for urn, record in content.pop("resources").items()}
        return State(path=path, resources=resources, **content)
    except FileNotFoundError:
        return State(path=path)
    except PermissionError as error:
        raise RehearsalError(f"{path} is for root alone: run this with sudo") from error
    except (ValueError, TypeError, KeyError) as error:
        message = (
            f"{path} can't be read as a state ({error}): it was edited or written by another version; "
            "restore it, or delete it and remove the stack's containers by hand"
        )
        raise RehearsalError(message) from error


def stacks_with_state(root: Path) -> list[str]:
    """Return the names of all stacks that have a state."""
    return sorted(path.parent.name for path in root.glob("stacks/*/state.json"))


def deletion_order(resources: dict[str, Record]) -> list[str]:
    """Return the URNs so that dependents come before the resources that they depend on, the newest first."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for urn, record in resources.items():
        sorter.add(urn, *(other for other in [record.provider, *record.dependencies] if other in resources))
    return list(sorter.static_order())[::-1]


@contextmanager
def locked(root: Path, stack: str) -> Iterator[bool]:
    """Hold a stack's lock for the block; yields True if the previous run was interrupted.

    Raises RehearsalError at once if another process holds it. The kernel drops it with the process.
    """
    path = stack_directory(root, stack) / "lock"
    while True:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"stack {stack} is being changed by {file.read().strip() or 'another process'}: wait for it"
                raise RehearsalError(message) from None
            # `down` deletes the file while it holds the lock: make sure that this is not that file.
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue
            interrupted = bool(file.read().strip())
            file.truncate(0)
            file.write(f"process {os.getpid()} (since {time.strftime('%H:%M:%S')})\n")
            file.flush()
            try:
                yield interrupted
            finally:
                file.truncate(0)
            return


def is_locked(root: Path, stack: str) -> bool:
    """Return True if a process is changing the stack right now."""
    try:
        with (stack_directory(root, stack) / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False

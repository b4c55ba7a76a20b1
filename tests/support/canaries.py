"""Secrets that are known, all the forms that they could show in, and all files that could hold one."""

import base64
import json
import os
import stat
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from docker.models.containers import Container

from tests.integration.conftest import REHEARSAL, ROOT, STACK_DIRECTORY

SEARCHED = [
    *map(Path, ("/etc", "/tmp", "/run", "/dev/shm", "/var/log", "/var/tmp", "/var/cache/elastic-vllm")),
    *(REHEARSAL, STACK_DIRECTORY.parent, ROOT),
]
PRUNED = {ROOT / ".venv", ROOT / ".git"}


def in_base64(text: bytes) -> set[bytes]:
    """What of a text's base64 is the same whatever stands before and after it."""
    found = set()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        whole = encoded[-(-before * 4 // 3) : (before + len(text)) * 4 // 3]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def forms(secret: str) -> set[bytes]:
    """In clear, escaped, quoted, in base64 among other things; of several lines, each that says something."""
    lines = [line for line in secret.splitlines() if len(line) >= 20 and not line.startswith("-----")]
    found = set()
    for text in {secret.strip(), *lines}:
        found |= {text.encode(), json.dumps(text)[1:-1].encode(), urllib.parse.quote(text, safe="").encode()}
        found |= in_base64(text.encode())
    return found


def changed_files(since: float, containers: Sequence[Container], besides: Iterable[Path] = ()) -> Iterator[Path]:
    """All files that were written since then, where anything of this product could have left one."""
    layers = [Path(each.attrs["GraphDriver"]["Data"]["UpperDir"]) for each in containers]
    pruned = PRUNED | {*besides}
    for top in (*SEARCHED, *layers):
        for directory, below, names in os.walk(top):
            below[:] = [name for name in below if Path(directory, name) not in pruned]
            for name in names:
                path = Path(directory, name)
                with suppress(FileNotFoundError):  # gone meanwhile
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and max(status.st_ctime, status.st_mtime) >= since:
                        yield path

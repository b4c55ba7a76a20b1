"""Known secrets, all the forms in which they could appear, and all files that could hold one."""

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
    """Return the parts of a text's base64 that do not depend on the bytes before and after it."""
    found = set()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        whole = encoded[-(-before * 4 // 3) : (before + len(text)) * 4 // 3]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def forms(secret: str) -> set[bytes]:
    """Return the forms of a secret: plain, escaped, quoted, in base64; for several lines, each long one."""
    lines = [line for line in secret.splitlines() if len(line) >= 20 and not line.startswith("-----")]
    found = set()
    for text in {secret.strip(), *lines}:
        found |= {text.encode(), json.dumps(text)[1:-1].encode(), urllib.parse.quote(text, safe="").encode()}
        found |= in_base64(text.encode())
    return found


def changed_files(since: float, containers: Sequence[Container], besides: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield all files written since then in the places where this product could leave one."""
    layers = [Path(each.attrs["GraphDriver"]["Data"]["UpperDir"]) for each in containers]
    pruned = PRUNED | {*besides}
    for top in (*SEARCHED, *layers):
        for directory, below, names in os.walk(top):
            below[:] = [name for name in below if Path(directory, name) not in pruned]
            for name in names:
                path = Path(directory, name)
                with suppress(FileNotFoundError):  # deleted meanwhile
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and max(status.st_ctime, status.st_mtime) >= since:
                        yield path

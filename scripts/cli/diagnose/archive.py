"""A support archive without secrets."""

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from scripts.lib.redaction import redact


def write(path: Path, files: Mapping[str, str], secrets: Iterable[str]) -> None:
    """Write the archive, for nobody else to read. Raises OSError."""
    known = list(secrets)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        os.fchmod(out.fileno(), 0o600)
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in files.items():
                data = redact(text, known).encode()
                entry = tarfile.TarInfo(f"elastic-vllm-support/{name}")
                entry.size, entry.mode = len(data), 0o600
                archive.addfile(entry, io.BytesIO(data))

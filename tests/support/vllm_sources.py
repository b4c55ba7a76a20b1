"""vLLM's source distribution, for its chat templates, which are in the official image but in no wheel."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.32.0"
CACHE = Path("/var/cache/elastic-vllm") / f"vllm-{VERSION}"
WANTED = ("examples", "rust/src/chat/tests/templates")


def vllm_sources() -> Path:
    """The directory with the wanted parts, downloaded by pip unless they are there.

    pip unpacks the sources and then asks them for their requirements, which takes torch: it fails there, and
    `--no-clean` leaves what it has unpacked.
    """
    if CACHE.is_dir():
        return CACHE
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as work:
        download = [sys.executable, "-m", "pip", "download", "--no-clean", "--no-build-isolation", "--no-deps"]
        done = subprocess.run(
            [*download, "--no-binary", ":all:", "--dest", work, f"vllm=={VERSION}"],
            env={**os.environ, "TMPDIR": work},
            capture_output=True,
            text=True,
            check=False,
        )
        found = next(Path(work).glob("**/vllm_*/examples"), None)
        assert found, f"pip did not unpack the sources of vLLM {VERSION}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        parts = Path(work) / "parts"
        for wanted in WANTED:
            target = parts / wanted
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (found.parent / wanted).is_dir() else shutil.copy)(found.parent / wanted, target)
        parts.rename(CACHE)
    return CACHE

"""docs/benchmarks.md: each benchmark's results go between its two marks; everything else is written by hand."""

import os
import platform
from datetime import date
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"
DOCUMENT = DOCS / "benchmarks.md"


def write(mark: str, text: str, command: str) -> None:
    """Put a section's text into the document, with its command, machine and date."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = DOCUMENT.read_text().partition(begin)
    if not found:
        raise RuntimeError(f"{DOCUMENT} has no mark {begin}")
    DOCUMENT.write_text(
        f"{before}{begin}\n{text.strip()}\n\n`{command}`, {date.today()}, {machine()}.\n{end}{rest.partition(end)[2]}"
    )


def machine() -> str:
    """Describe this machine."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": ?")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    cpu = model.partition(":")[2].strip()
    return f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, Linux {platform.release()}, no GPU"

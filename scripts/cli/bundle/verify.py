"""Check a bundle: complete, unaltered, signed, and without entries that lead out of their archive.

This module needs Python's own library only: it runs at the site before anything of the bundle does.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.bundle import manifest
from components.bundle.manifest import MANIFEST, SIGNATURE, SUMS, File
from components.errors import UserError
from scripts.cli.bundle import archives, signature
from scripts.lib.errors import BadInputError, ExitCode, report
from scripts.lib.progress import Display


class Bytes:
    """Number of bytes read so far, and in total."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.seen, self.started, self._say = total, 0, time.monotonic(), say
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count more bytes, from any thread."""
        with self._lock:
            self.seen += count
        self._say(str(self))

    def __str__(self) -> str:
        rate = self.seen / 1e6 / max(time.monotonic() - self.started, 0.001)
        return f"{self.seen / 1e9:.1f} of {self.total / 1e9:.1f} GB, {rate:.0f} MB/s"


def problems(
    directory: Path, public_key: str | Path | None, *, listing: bool = False, compressed_layers: bool = False
) -> Iterator[str]:
    """Yield a line for each problem of a bundle; with `public_key` None, it need not be signed.

    In a delta, the carried files are checked. `listing`: check only the manifest, its checksums and their signature,
    because the files are elsewhere. `compressed_layers`: read those of images too. Raises UserError if the bundle
    can't be checked at all.
    """
    if not (directory / SUMS).is_file():
        raise UserError(f"{directory} is no finished bundle: there is no {SUMS}", "run `bundle build` again there")
    if public_key and (flaw := signature.flaw(directory, public_key)):
        # Without a valid signature nobody vouches for the rest.
        yield f"{SIGNATURE}: {flaw}"
        return
    try:
        sums = manifest.parse_sums((directory / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{SUMS}: {error}"
        return
    if not listing:
        yield from _unlisted(directory, sums)
    if MANIFEST not in sums or not _is_file(directory / MANIFEST):
        yield f"{MANIFEST}: missing"
    elif manifest.sha256(directory / MANIFEST) != sums[MANIFEST]:
        yield f"{MANIFEST}: altered"
    elif not listing:
        yield from _contents(directory, manifest.read(directory).carried, sums, compressed_layers)


def _contents(
    directory: Path, files: Sequence[File], sums: Mapping[str, str], compressed_layers: bool
) -> Iterator[str]:
    if {file.path: file.sha256 for file in files} != {path: sums[path] for path in sums if path != MANIFEST}:
        yield f"{SUMS}: it lists other files than {MANIFEST}"
        return
    good = []
    for file in files:
        path = directory / file.path
        if not _is_file(path):
            yield f"{file.path}: missing"
        elif (size := path.stat().st_size) != file.bytes:
            yield f"{file.path}: {size} bytes instead of {file.bytes}"
        else:
            good.append(file)
    # Large files first, so that none is left for a single core at the end. Python hashes without its lock.
    good.sort(key=lambda file: -file.bytes)
    with Display(results_on_stdout=True) as display, display.task("checksums") as task:
        count = Bytes(sum(file.bytes for file in good), task.say)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(
                lambda file: list(_flaws_of_content(directory, file, count, compressed_layers)), good
            ):
                yield from found
    print(f"checked {count}", flush=True)


def _flaws_of_content(directory: Path, file: File, count: Bytes, compressed_layers: bool) -> Iterator[str]:
    path = directory / file.path
    try:
        same = manifest.sha256(path, count.add) == file.sha256
    except OSError as error:  # this check must find disks that failed in transit
        yield f"{file.path}: can't be read: {error.strerror}"
        return
    if not same:
        yield f"{file.path}: altered"
        return
    for flaw in archives.flaws(path, file.path, compressed_layers=compressed_layers):
        yield f"{file.path}: {flaw}"


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _unlisted(directory: Path, sums: dict[str, str]) -> Iterator[str]:
    """Yield unlisted files, and links of any kind, because they lead elsewhere."""
    known = {*sums, SUMS, SIGNATURE}
    for place, directories, files in os.walk(directory):
        for name in sorted([*directories, *files]):
            path = Path(place) / name
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink():
                yield f"{relative}: a symbolic link, which no bundle has"
            elif not path.is_dir() and relative not in known:
                yield f"{relative}: not in {SUMS}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check a bundle, and end with an exit status of scripts/lib/errors.py."""
    parser = argparse.ArgumentParser(
        prog="scripts/elastic-vllm bundle verify",
        description="Check a bundle: complete, unaltered and signed, with nothing else in it. Needs Python alone.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the bundle")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument(
        "--key", help="the signer's public key ('ssh-ed25519 AAAA...'), or the file that holds it, which travels apart"
    )
    trust.add_argument("--unsigned", action="store_true", help="accept a bundle without a signature")
    parser.add_argument("--listing", action="store_true", help="check the manifest alone: the files are elsewhere")
    parser.add_argument(
        "--layers", action="store_true", help="read compressed layers of images too: slow, and checked by build already"
    )
    given = parser.parse_args(arguments)
    try:
        found = 0
        key = None if given.unsigned else given.key
        for problem in problems(given.directory, key, listing=given.listing, compressed_layers=given.layers):
            print(f"bad: {problem}", flush=True)
            found += 1
        if found:
            sys.exit(report(UserError(f"{found} problem{'s' * (found > 1)}", "carry it over again, or build it again")))
        bundle = manifest.read(given.directory)
    except UserError as error:
        sys.exit(report(BadInputError(error.cause, error.fix)))
    except OSError as error:
        sys.exit(report(BadInputError(f"it can't be read: {error}", "carry it over again")))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    signed = "not signed" if given.unsigned else f"signed by {given.key}"
    size = sum(file.bytes for file in bundle.carried) / 1e9
    delta = f"; a delta since the bundle whose {MANIFEST} has SHA-256 {bundle.since}" if bundle.since else ""
    print(f"complete and unaltered, {signed}: stack {bundle.stack}, {len(bundle.carried)} files, {size:.1f} GB{delta}")


if __name__ == "__main__":
    main()

"""Download a model's weights into a directory, resume interrupted files, and check every file.

Arguments: MODEL REVISION DIRECTORY UNNEEDED(JSON list of patterns) NAME(to find this process by). The hub's token, if
any, comes on standard input. The hub's address is in HF_ENDPOINT. WAY_OUT, if set, is a descriptor from which variables
come that name a proxy and CAs: there nobody else sees them.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.tqdm import disable_progress_bars

MARKER = ".elastic-vllm-complete"
# Incomplete files. Not snapshot_download: since huggingface_hub 1.0 it restarts an interrupted file from zero.
PARTS = ".elastic-vllm-parts"
# Weights in other formats than safetensors, and Meta's originals, double the size and are never loaded.
IGNORED = ["*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*", "metal/*"]
AT_ONCE = 4
HUB_SECONDS = 30


class DamagedError(Exception):
    """A downloaded file differs from the one that the hub published."""


def digest(path: Path, *, lfs: bool) -> str:
    """Return the hash that the hub publishes: SHA-256 of a large (LFS) file, git's blob hash (SHA-1) of any other."""
    size = path.stat().st_size
    state = hashlib.sha256() if lfs else hashlib.sha1(f"blob {size}\0".encode())  # noqa: S324 - git's own hash
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def fetcher(model: str, revision: str, directory: Path, token: str | bool) -> Callable[[RepoSibling], None]:
    """Return a function that downloads one file of the model, complete and checked, or fails."""

    def fetch(file: RepoSibling) -> None:
        path, published = directory / file.rfilename, file.lfs.sha256 if file.lfs else file.blob_id
        if path.exists() and digest(path, lfs=bool(file.lfs)) == published:
            return
        part = directory / PARTS / f"{published}-{file.rfilename.replace('/', '--')}"
        url = hf_hub_url(model, file.rfilename, revision=revision)
        found = get_hf_file_metadata(url, token=token, timeout=HUB_SECONDS)
        # The token is only for the hub: a host that the hub redirects to never gets it.
        on_hub = urlsplit(found.location)[:2] == urlsplit(url)[:2]
        with part.open("ab") as stream:
            http_get(
                found.location,
                stream,
                resume_size=stream.tell(),
                headers={"authorization": f"Bearer {token}"} if token and on_hub else {},
                expected_size=file.size,
            )
        if digest(part, lfs=bool(file.lfs)) != published:
            part.unlink()
            raise DamagedError(file.rfilename)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)

    return fetch


def report_progress(directory: Path, total: int, done: threading.Event) -> None:
    """Print the bytes on disk every 5 s."""
    while not done.wait(5):
        with suppress(FileNotFoundError):  # files may be renamed meanwhile
            print(f"{size_of(directory) / 1e9:.1f} of {total / 1e9:.1f} GB", flush=True)


def size_of(directory: Path) -> int:
    """Return the size of a directory's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def fix_for(error: Exception) -> str:
    """Return what to do about an error of the network or the disk."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "set downloadCa to the CA that signs for this hub or for the proxy in between"
    if "407" in text:
        return "set downloadProxy to http://USER:PASSWORD@HOST:PORT, as the proxy asks for it"
    return "check hfEndpoint, disk, and whether the server reaches it only through a proxy (downloadProxy)"


def main() -> None:
    """Run the download; exit with one line for errors that users can correct."""
    model, revision, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    patterns = [*IGNORED, *json.loads(sys.argv[4])]
    token = sys.stdin.read().strip() or False
    if "WAY_OUT" in os.environ:
        with os.fdopen(int(os.environ["WAY_OUT"]), encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.rstrip("\n").partition("=")
                os.environ[name] = value
    disable_progress_bars()
    marker, parts = directory / MARKER, directory / PARTS
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True, token=token, timeout=HUB_SECONDS)
        files = info.siblings or []
        wanted = [file for file in files if not any(Path(file.rfilename).match(pattern) for pattern in patterns)]
        total = sum(file.size or 0 for file in wanted)
        stamp = json.dumps({"model": model, "revision": revision, "files": len(wanted), "bytes": total})
        if marker.exists() and marker.read_text() == stamp:
            print(f"unchanged: {model} at {revision}, {total / 1e9:.1f} GB")
            return
        marker.unlink(missing_ok=True)
        parts.mkdir(exist_ok=True)
        missing = sum(file.size or 0 for file in wanted if not (directory / file.rfilename).exists()) - size_of(parts)
        if missing > shutil.disk_usage(directory).free:
            sys.exit(f"too little disk: {missing / 1e9:.1f} GB needed in weightsDirectory; fix: free some")
        print(f"downloading {len(wanted)} files, {total / 1e9:.1f} GB, of {model} at {revision}", flush=True)
        done = threading.Event()
        threading.Thread(target=report_progress, args=(directory, total, done), daemon=True).start()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(fetcher(model, revision, directory, token), wanted))
    except GatedRepoError:
        sys.exit(f"{model} is gated; fix: accept its licence on the hub and set hfToken to a token that may read it")
    except RepositoryNotFoundError:
        sys.exit(f"the hub has no model {model}, or hfToken may not read it; fix: check model and hfToken")
    except RevisionNotFoundError:
        sys.exit(f"{model} has no revision {revision}; fix: set modelRevision to a commit of it")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        sys.exit(f"the hub answered {status}; fix: check hfEndpoint and hfToken, or try again later")
    except DamagedError as error:
        sys.exit(f"{error} arrived damaged and was removed; fix: run the update again to fetch it again")
    except Exception as error:  # a network's errors come from whichever HTTP library this hub client uses
        sys.exit(f"download failed: {type(error).__name__}: {str(error)[:300]}; fix: {fix_for(error)}")
    done.set()
    shutil.rmtree(parts)
    # The server's user must be able to read them.
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    marker.write_text(stamp)
    marker.chmod(0o644)
    print(f"complete: {len(wanted)} files, {total / 1e9:.1f} GB, all checksums right")


main()

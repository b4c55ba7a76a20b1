"""Download a model's weights into a directory, resume what was begun, check every file. Runs inside the vLLM image.

Arguments: MODEL REVISION DIRECTORY UNNEEDED(JSON list of patterns). The hub's token, if any, comes on
standard input. The hub's address is in HF_ENDPOINT.
"""

import hashlib
import json
import shutil
import sys
import threading
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

MARKER = ".elastic-vllm-complete"
# Weights in other formats than safetensors, and Meta's originals, double the size and are never loaded.
IGNORED = ["*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*", "metal/*"]
# vLLM and the hub's client also make files; only the repository's own are counted and checked.
CLIENT_CACHE = ".cache"


def digest(path: Path, size: int, *, lfs: bool) -> str:
    """SHA-256 of a large (LFS) file, git's blob hash (SHA-1) of any other: what the hub publishes for it."""
    state = hashlib.sha256() if lfs else hashlib.sha1(f"blob {size}\0".encode())  # noqa: S324 - git's own hash
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def report_progress(directory: Path, total: int, done: threading.Event) -> None:
    """Print the bytes on disk every 5 s."""
    while not done.wait(5):
        present = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        print(f"{present / 1e9:.1f} of {total / 1e9:.1f} GB", flush=True)


def main() -> None:
    """Do it; exits with one line on errors that users can mend."""
    model, revision, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    patterns = [*IGNORED, *json.loads(sys.argv[4])]
    token = sys.stdin.read().strip() or False
    disable_progress_bars()
    marker = directory / MARKER
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True, token=token)
        names = [sibling.rfilename for sibling in info.siblings or []]
        ignored = {name for name in names if any(Path(name).match(pattern) for pattern in patterns)}
        wanted = [sibling for sibling in info.siblings or [] if sibling.rfilename not in ignored]
        total = sum(sibling.size or 0 for sibling in wanted)
        stamp = json.dumps({"model": model, "revision": revision, "files": len(wanted), "bytes": total})
        if marker.exists() and marker.read_text() == stamp:
            print(f"unchanged: {model} at {revision}, {total / 1e9:.1f} GB")
            return
        marker.unlink(missing_ok=True)
        missing = sum(sibling.size or 0 for sibling in wanted if not (directory / sibling.rfilename).exists())
        if missing > shutil.disk_usage(directory).free:
            sys.exit(f"too little disk: {missing / 1e9:.1f} GB needed in weightsDirectory; fix: free some")
        print(f"downloading {len(wanted)} files, {total / 1e9:.1f} GB, of {model} at {revision}", flush=True)
        done = threading.Event()
        threading.Thread(target=report_progress, args=(directory, total, done), daemon=True).start()
        snapshot_download(
            model, revision=revision, local_dir=directory, token=token, ignore_patterns=sorted(ignored), max_workers=4
        )
    except GatedRepoError:
        sys.exit(f"{model} is gated; fix: accept its licence on the hub and set hubToken to a token that may read it")
    except RepositoryNotFoundError:
        sys.exit(f"the hub has no model {model}, or hubToken may not read it; fix: check model and hubToken")
    except RevisionNotFoundError:
        sys.exit(f"{model} has no revision {revision}; fix: set modelRevision to a commit of it")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        sys.exit(f"the hub answered {status}; fix: check hubEndpoint and hubToken, or try again later")
    except OSError as error:
        sys.exit(f"download failed: {type(error).__name__}: {str(error)[:300]}; fix: check hubEndpoint and disk")

    print("checking the files' checksums", flush=True)
    for sibling in wanted:
        path = directory / sibling.rfilename
        published = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if digest(path, path.stat().st_size, lfs=bool(sibling.lfs)) != published:
            path.unlink()
            sys.exit(f"{sibling.rfilename} is damaged and was removed; fix: run the update again to fetch it anew")
    done.set()
    shutil.rmtree(directory / CLIENT_CACHE, ignore_errors=True)
    # The server's own user reads them; the hub's client keeps its files to its own.
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    marker.write_text(stamp)
    marker.chmod(0o644)
    print(f"complete: {len(wanted)} files, {total / 1e9:.1f} GB, all checksums right")


main()

"""Checks of the host and of the weights on it, in a real bash without Docker. With Docker: tests/integration."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from components import render
from components.catalogue.models import load_catalogue
from components.serving.model_weights import weights_formats
from tests.support.shell import Result, as_root, bash, failed

# check-weights.sh

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 17209920\n"


def safetensors(path: Path, size: int = 64, *, header: bytes | None = None) -> None:
    text = header or json.dumps({"t": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Complete model of two shards."""
    directory = tmp_path / "models" / "acme--Own"
    directory.mkdir(parents=True)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in shards:
        safetensors(directory / shard)
    index = {"metadata": {"total_size": 128}, "weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    for path in (tmp_path, directory.parent, directory, *directory.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


def check(directory: Path, **formats: str) -> Result:
    script = render.script("weights/check-weights.sh", weights=str(directory), **formats) + 'check_weights "$WEIGHTS"\n'
    return bash(script)


def one_file(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    safetensors(directory / "model.safetensors")


def mistral(directory: Path) -> None:
    """Leave only the files of Mistral's own format."""
    one_file(directory)
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")
    (directory / "config.json").rename(directory / "params.json")
    (directory / "tokenizer.json").rename(directory / "tekken.json")


def mistral_beside_a_leftover_index(directory: Path) -> None:
    mistral(directory)
    index = {"weight_map": {"a": "model-00001-of-00010.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def linked(directory: Path) -> None:
    """Replace files by links to others in the same directory, one of them in a folder."""
    (directory / "blobs").mkdir(mode=0o755)
    for path in [path for path in directory.iterdir() if path.is_file()]:
        path.rename(directory / "blobs" / path.name)
        path.symlink_to(f"blobs/{path.name}")
    (directory / "folder").mkdir(mode=0o755)
    (directory / "folder" / "config.json").symlink_to("../config.json")


def unneeded_pointers(directory: Path) -> None:
    """Add a picture and weights in another format that were not pulled."""
    for name in ("picture.png", "pytorch_model.bin"):
        (directory / name).write_text(POINTER)


def linked_directory(directory: Path) -> None:
    """Put a link where the directory is expected."""
    directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to("elsewhere")


def many_tensors(directory: Path) -> None:
    """Write a header with many tensors in any order, with and without spaces."""
    header = b'{ "t": {"data_offsets": [8, 64]}, "u": {"data_offsets":[0,8]}, "v":{"data_offsets":[64, 64]} }   '
    safetensors(directory / "model-00001-of-00002.safetensors", header=header)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda _: None, one_file, mistral, mistral_beside_a_leftover_index, linked, linked_directory, many_tensors),
        unneeded_pointers,
    ],
)
def test_complete_weights_pass(change: Callable[[Path], None], weights: Path) -> None:
    change(weights)
    result = check(weights)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("weights complete: ")


def cut(directory: Path) -> None:
    path = directory / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(directory: Path) -> None:
    path = directory / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def pointer(directory: Path) -> None:
    """Replace a file by a pointer, as git clone leaves it without Git LFS."""
    (directory / "model-00002-of-00002.safetensors").write_text(POINTER)


def linked_as_in_the_hubs_cache(directory: Path) -> None:
    """Lay the files out as hubs' clients do: a snapshot of links to blobs."""
    repository = directory.with_name("models--acme--Own")
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "4f1c").mkdir(parents=True)
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (repository / "snapshots" / "4f1c" / path.name).symlink_to(f"../../blobs/{number}")
    directory.rmdir()
    directory.symlink_to(repository / "snapshots" / "4f1c")


def linked_by_its_full_path(directory: Path) -> None:
    (directory / "config.json").rename(directory / "real.json")
    (directory / "config.json").symlink_to(directory / "real.json")


def linked_out_and_in_again(directory: Path) -> None:
    (directory / "config.json").rename(directory / "real.json")
    (directory / "config.json").symlink_to(f"../{directory.name}/real.json")


def complete_beside_a_leftover_index(directory: Path) -> None:
    """Leave a whole model in one file, and the index of its shards: vLLM takes the index for true."""
    index = (directory / "model.safetensors.index.json").read_text()
    one_file(directory)
    (directory / "model.safetensors.index.json").write_text(index)


DAMAGED = "model-00002-of-00002.safetensors is cut short or damaged"


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda d: (d / "model-00001-of-00002.safetensors").unlink(), "missing: model-00001-of-00002.safetensors"),
        (cut, DAMAGED),
        (cut_in_the_header, DAMAGED),
        (pointer, "model-00002-of-00002.safetensors is a pointer of Git LFS, not the file"),
        (lambda d: (d / "tokenizer.json").write_text(POINTER), "tokenizer.json is a pointer of Git LFS"),
        (linked_as_in_the_hubs_cache, "which is all that vLLM can see"),
        (linked_by_its_full_path, "config.json leads out of"),
        (linked_out_and_in_again, "config.json leads out of"),
        (lambda d: (d / "special_tokens_map.json").symlink_to("gone.json"), "special_tokens_map.json leads nowhere"),
        (lambda d: (d / "tokenizer.json").write_text(""), "no tokenizer.json, tokenizer.model or tekken.json"),
        (complete_beside_a_leftover_index, "model.safetensors.index.json names files that are missing"),
        (lambda d: (d / "model-00002-of-00002.safetensors").write_bytes(b""), DAMAGED),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json, tokenizer.model or tekken.json"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: [path.unlink() for path in d.glob("model*")], "no file *.safetensors"),
        (lambda d: (d / "tokenizer.json").chmod(0o600), "tokenizer.json"),
        (lambda d: d.chmod(0o700), "the server's user may not read"),
        (lambda d: d.rename(d.with_name("elsewhere")), "no weights in"),
    ],
)
def test_incomplete_weights_are_refused(damage: Callable[[Path], object], cause: str, weights: Path) -> None:
    damage(weights)
    assert failed(check(weights), cause, str(weights))


MISTRAL = {"load_format": "mistral", "config_format": "mistral", "tokenizer_mode": "mistral"}


def test_weights_in_mistrals_format_pass(weights: Path) -> None:
    mistral(weights)
    assert check(weights, **MISTRAL).returncode == 0


@pytest.mark.parametrize(
    ("formats", "cause"),
    [
        ({"load_format": "mistral"}, "no file consolidated*.safetensors, which vLLM loads for this model"),
        ({"config_format": "mistral"}, "no params.json"),
        ({"tokenizer_mode": "mistral"}, "no tekken.json or tokenizer.model, which Mistral's format needs"),
    ],
)
def test_weights_in_another_format_than_vllm_loads_are_refused(
    formats: dict[str, str], cause: str, weights: Path
) -> None:
    assert failed(check(weights, **formats), cause)


@pytest.mark.parametrize(
    ("model", "extra_args", "expected"),
    [
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", (), MISTRAL),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", ("--load-format=hf",), MISTRAL | {"load_format": "hf"}),
        ("openai/gpt-oss-120b", (), {}),
        ("openai/gpt-oss-120b", ("--config_format", "mistral"), {"config_format": "mistral"}),
    ],
)
def test_the_check_knows_the_formats_that_vllm_is_told(
    model: str, extra_args: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert weights_formats(load_catalogue().models[model], extra_args) == expected


def test_very_many_unreadable_files_are_refused_too(weights: Path) -> None:
    for number in range(600):
        (weights / f"a-file-with-a-rather-long-name-so-that-the-list-of-them-is-long-{number}").touch(mode=0o600)
    assert failed(check(weights), "the server's user may not read", "chmod -R o+rX")


AS_A_POD = {"as_server": "yes", "place_settings": "weightsClaim, model", "fetch": "fill the volume again"}
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def check_as_nobody(directory: Path) -> Result:
    """Check as a pod of vLLM does, whose user owns nothing."""
    script = render.script("weights/check-weights.sh", weights=str(directory), **AS_A_POD)
    return bash(script + 'check_weights "$WEIGHTS"\n', under=NOBODY)


@as_root
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda _: None, ()),
        (lambda d: (d / "tokenizer.json").chmod(0o640), ("the server's user may not read", "tokenizer.json")),
        (lambda d: d.chmod(0o750), ("the server's user may not read",)),
        (lambda d: (d / "config.json").unlink(), ("no config.json", "fix: fill the volume again")),
        (
            lambda d: d.rename(d.with_name("x")),
            ("no weights in", "(weightsClaim, model)"),
        ),
    ],
)
def test_a_pod_looks_with_its_own_eyes(damage: Callable[[Path], object], words: Sequence[str], weights: Path) -> None:
    for path in weights.parents[:6]:
        path.chmod(path.stat().st_mode | 0o055)
    damage(weights)
    result = check_as_nobody(weights)
    assert failed(result, *words) if words else result.returncode == 0, result.stderr


@as_root
def test_a_pod_reads_what_its_group_may(weights: Path) -> None:
    for path in weights.parents[:6]:
        path.chmod(path.stat().st_mode | 0o055)
    for path in (weights, *weights.iterdir()):
        os.chown(path, 0, 65534)
        path.chmod(0o750 if path.is_dir() else 0o640)
    assert check_as_nobody(weights).returncode == 0


# check-host.sh

SCRIPTS = ("weights/check-weights.sh", "containers/check-engine.sh", "host/check-host.sh")


@pytest.fixture(scope="module")
def without_docker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH with everything except Docker."""
    directory = tmp_path_factory.mktemp("bin")
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else []:
            if not program.name.startswith("docker") and not (directory / program.name).exists():
                (directory / program.name).symlink_to(program)
    return str(directory)


@pytest.fixture
def check_host(weights: Path, without_docker: str) -> Callable[..., Result]:
    def run_check(*, under: Sequence[str] = (), **variables: str | int) -> Result:
        fine: dict[str, str | int] = {
            "engine": "docker",
            "login": "root",
            "prefix": "elastic-vllm-x",
            "port": 1,
            "ipv6": "no",
            "weights": str(weights),
            "weights_gb": 1,
            "weights_on_host": "yes",
            "images": "docker.io/a:1 docker.io/b:1",
            "images_gb": 0,
            "bundled_images_mb": "",
            "proxied_images": "",
            "store": "/var/lib/elastic-vllm/bundle",
        }
        return bash(render.script(*SCRIPTS, **fine | variables), under=under, PATH=without_docker)

    return run_check


@as_root
def test_a_host_that_can_run_the_endpoint_passes(
    check_host: Callable[..., Result],
) -> None:
    result = check_host()
    assert (result.returncode, result.stderr) == (0, "")
    assert "checked: port 1, disk and rights of this server are fine" in result.stdout


@as_root
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"images": "localhost/vllm:1 b"}, ["image localhost/vllm:1 is not on the server (vllmImage, nginxImage)"]),
        ({"images_gb": 10**9}, ["too little disk for container images", "1000000000 GB needed"]),
        ({"bundled_images_mb": 10**12}, ["too little disk for the bundle's images", "1000000001 GB needed"]),
        (
            {"weights": "/nonexistent/a/b", "weights_on_host": "no", "weights_gb": 10**9},
            ["too little disk for the weights"],
        ),
        ({"weights": "/nonexistent/a/b"}, ["no weights in /nonexistent/a/b"]),
    ],
)
def test_a_host_that_cannot_run_the_endpoint_is_refused(
    variables: dict[str, str | int],
    words: list[str],
    check_host: Callable[..., Result],
) -> None:
    assert failed(check_host(**variables), *words)


@as_root
def test_a_bundles_images_need_not_be_there_and_their_size_is_reported(check_host: Callable[..., Result]) -> None:
    result = check_host(images="localhost/elastic-vllm/vllm:v0.32.0-0123456789ab", bundled_images_mb=4)
    assert (result.returncode, result.stderr) == (0, "")
    assert "the bundle's images: 1 GB at /var/lib/elastic-vllm/bundle, where" in result.stdout


@as_root
@pytest.mark.parametrize("ipv6", [True, False])
def test_ipv6_is_refused_on_a_server_without_it(ipv6: bool, check_host: Callable[..., Result]) -> None:
    """In a network namespace: there is none until its loopback interface is up, or where it is switched off."""
    switch = f"sysctl -qw net.ipv6.conf.all.disable_ipv6={int(not ipv6)}; ip link set lo up"
    result = check_host(ipv6="yes", under=["unshare", "--net", "sh", "-c", f'{switch}; exec "$@"', "sh"])
    if ipv6:
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert failed(result, "the server has no IPv6 (ipv6, or an IPv6 address", "set ipv6 to false")


@as_root
@pytest.mark.parametrize("address", ["127.0.0.1", "::"])
def test_a_port_that_is_taken_is_refused(address: str, check_host: Callable[..., Result]) -> None:
    with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        port = server.getsockname()[1]
        assert failed(check_host(port=port), f"port {port} is taken", "(httpsPort)")


def test_a_user_without_root_rights_is_refused(
    check_host: Callable[..., Result], without_docker: str, tmp_path: Path
) -> None:
    """The stand-in for `id` answers as for another user."""
    other = tmp_path / "id"
    other.write_text("#!/bin/sh\necho 1000\n")
    other.chmod(0o755)
    script = render.script(
        *SCRIPTS,
        engine="docker",
        login="ops",
        prefix="elastic-vllm-x",
        port=1,
        ipv6="no",
        weights="/x",
        weights_gb=1,
        weights_on_host="no",
        images="a",
        images_gb=1,
        bundled_images_mb="",
        proxied_images="",
        store="/nonexistent",
    )
    assert failed(bash(script, PATH=f"{tmp_path}:{without_docker}"), "user ops has no root rights (sshUser)")

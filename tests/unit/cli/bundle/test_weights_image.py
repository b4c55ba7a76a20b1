"""The image of the weights: the same for the same files, complete, and resumed where its build was interrupted."""

import json
import tarfile
from pathlib import Path

import pytest

from components.catalogue.models import Model
from components.errors import UserError
from scripts.cli.bundle import archives, images, weights, weights_image
from scripts.cli.bundle.wanted import Wanted

MODEL = Model(name="acme/own", weights_gb=1, licence="mit")
FILES = {
    "config.json": b"{}",
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"twice",
    "sub/dir/template.jinja": b"{{ x }}",
}
CONFIG = "69b1c67dce102502807d62b74aaae8508d43bcd38bfafc6d4223335f92d94675"
"""Checksum of the configuration, which names the checksum of every layer."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each file of three bytes or more a layer of its own."""
    monkeypatch.setattr(weights_image, "SMALL_BYTES", 3)


def model(directory: Path, mode: int = 0o600, config: bytes = FILES["config.json"]) -> Path:
    for name, content in {**FILES, "config.json": config}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    return directory


def made(part: Wanted, path: Path) -> dict[str, list[str]]:
    """Make the image, and return its entry for `docker load`, without the directories of blobs."""
    part.make(path, lambda _: None)
    (image,) = json.loads((path / images.LOAD).read_text())
    assert {each.name for each in path.rglob("*") if each.is_file()} == {
        images.LOAD,
        *(Path(each).name for each in [image["Config"], *image["Layers"]]),
    }
    return {"config": [Path(image["Config"]).name], "layers": [Path(each).name for each in image["Layers"]]}


def from_directory(directory: Path) -> Wanted:
    return weights_image.from_directory(MODEL, directory, "amd64")


def test_the_same_files_are_the_same_image_whoever_has_them_and_since_when(tmp_path: Path) -> None:
    first = from_directory(model(tmp_path / "a"))
    second = from_directory(model(tmp_path / "b", mode=0o644))
    assert made(first, tmp_path / "1") == made(second, tmp_path / "2")
    assert made(first, tmp_path / "1")["config"] == [CONFIG]
    assert first.about == second.about
    other = from_directory(model(tmp_path / "c", config=b"[]"))
    changed = made(other, tmp_path / "3")
    assert changed["layers"][0] != made(first, tmp_path / "1")["layers"][0]
    assert changed["layers"][1:] == made(first, tmp_path / "1")["layers"][1:]
    assert other.directory != first.directory


def test_its_layers_are_the_models_files_at_its_root_which_everybody_may_read(tmp_path: Path) -> None:
    directory = model(tmp_path / "a")
    (directory / ".elastic-vllm-complete").write_text("{}")
    path = tmp_path / "1"
    layers = made(from_directory(directory), path)["layers"]
    found: dict[str, bytes] = {}
    for layer in layers:
        with tarfile.open(path / images.BLOBS / layer) as tar:
            for entry in tar:
                assert (entry.mode, entry.uid, entry.mtime) == (0o755 if entry.isdir() else 0o644, 0, 0)
                if content := tar.extractfile(entry):
                    found[entry.name] = content.read()
        name = f"images/weights-1/blobs/sha256/{layer}"
        assert not list(archives.flaws(path / images.BLOBS / layer, name, compressed_layers=True))
    assert found == FILES
    assert not list(archives.flaws(path / images.LOAD, "images/weights-1/manifest.json", compressed_layers=True))


def test_its_configuration_names_architecture_and_model(tmp_path: Path) -> None:
    image = made(weights_image.from_directory(MODEL, model(tmp_path / "a"), "arm64"), tmp_path / "1")
    config = json.loads((tmp_path / "1" / images.BLOBS / image["config"][0]).read_text())
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer}" for layer in image["layers"]]
    assert config["config"]["Labels"]["org.opencontainers.image.title"] == "acme/own"


def test_large_files_have_a_layer_each_up_to_a_hundred() -> None:
    sizes = {"a.json": 2, "z.json": 1, **{f"model-{number:03}": 5 for number in range(99)}}
    assert weights_image.grouped(sizes)[:2] == [["a.json", "z.json"], ["model-000"]]
    assert len(weights_image.grouped(sizes)) == 100
    many = weights_image.grouped({f"model-{number:03}": 5 for number in range(250)})
    assert len(many) == 84
    assert [name for layer in many for name in layer] == [f"model-{number:03}" for number in range(250)]


def test_a_file_that_changes_meanwhile_is_reported(tmp_path: Path) -> None:
    directory = model(tmp_path / "a")
    part = from_directory(directory)
    (directory / "config.json").write_bytes(b"[]")
    with pytest.raises(UserError, match=r"config\.json changed while it was copied"):
        part.make(tmp_path / "1", lambda _: None)


def test_a_download_that_was_moved_in_part_is_neither_fetched_nor_moved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[Path] = []

    def from_hub(model_: Model, revision: str, endpoint: str) -> Wanted:
        def make(path: Path, _say: object) -> None:
            downloads.append(model(path))
            (path / ".elastic-vllm-complete").write_text("{}")

        return Wanted(name="", directory="", source=f"{endpoint}/{model_.name}/{revision}", bytes=lambda: 0, make=make)

    monkeypatch.setattr(weights, "from_hub", from_hub)
    part = weights_image.from_hub(MODEL, "1" * 40, "https://hub.example", "amd64")

    def interrupt(line: str) -> None:
        if line == "layer 3 of 4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.make(tmp_path / "1", interrupt)
    left = {path.name for path in (tmp_path / "1" / weights_image.FILES).rglob("*.safetensors")}
    assert left == {"model-2.safetensors"}
    assert len(made(part, tmp_path / "1")["layers"]) == 4
    assert len(downloads) == 1
    whole = weights_image.from_hub(MODEL, "1" * 40, "https://hub.example", "amd64")
    assert made(whole, tmp_path / "2") == made(part, tmp_path / "1")
    assert part.directory == f"images/weights-{'1' * 12}"
    assert part.about["name"] == f"localhost/elastic-vllm/weights:acme--own-{'1' * 12}"

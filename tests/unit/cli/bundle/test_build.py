"""`bundle build` reports its usage, and stacks that cannot be bundled, before it builds anything."""

import re
from pathlib import Path

import pytest

from components.bundle.manifest import Manifest
from components.catalogue.models import Model
from components.errors import UserError
from scripts.cli.bundle import guide, images, weights
from scripts.cli.bundle.making import Base
from scripts.cli.bundle.wanted import Wanted
from tests.support.commands import invoke


def test_it_answers_help() -> None:
    result = invoke("bundle", "build", "--help")
    assert result.exit_code == 0
    assert "--sign-key" in result.output


def test_a_stack_that_is_not_there(tmp_path: Path) -> None:
    result = invoke("bundle", "build", "--stack", "nope", "--output", str(tmp_path / "b"))
    assert result.exit_code == 2
    assert "there is no stacks/Pulumi.nope.yaml (--stack) fix: " in " ".join(result.output.split())
    assert not (tmp_path / "b").exists()


def test_a_name_at_the_site_is_never_pulled_and_another_for_another_content() -> None:
    digest = "sha256:" + "a" * 64
    pinned = f"docker.io/vllm/vllm-openai:v0.32.0@{digest}"
    assert images.local_name("vllm", pinned, digest) == "localhost/elastic-vllm/vllm:v0.32.0-aaaaaaaaaaaa"
    pinned = f"127.0.0.1:5000/nginx:1.30@{digest}"
    assert images.local_name("nginx", pinned, digest) == "localhost/elastic-vllm/nginx:1.30-aaaaaaaaaaaa"
    built = f"sha256:{'b' * 64}"
    assert images.local_name("nginx", "localhost/my/nginx:1", built) == "localhost/elastic-vllm/nginx:1-bbbbbbbbbbbb"


def test_the_sites_document_has_the_commands_in_order() -> None:
    def part(name: str, directory: str) -> Wanted:
        return Wanted(name=name, directory=directory, source="x", bytes=lambda: 0, make=lambda *_: None)

    parts = [part("weights", "weights/o--m--0123"), part("pulumi", "pulumi")]
    text = guide.text("airgap", parts, weights_directory="/srv/models", base=None)
    order = [
        "ssh-keygen -Y verify",
        "sha256sum --check --strict",
        '/scripts/elastic-vllm" bundle verify . --key',
        '/scripts/elastic-vllm" bundle install .',
        "    elastic-vllm:bundle: ",
        "    elastic-vllm:bundleOnHost: ",
        "    pulumi up --stack airgap\n",
        "    scripts/elastic-vllm verify --stack airgap\n",
        "    scripts/elastic-vllm handoff --stack airgap\n",
        "/srv/models/o--m--0123",
        "/var/lib/elastic-vllm/bundle",
        "build --stack airgap --since manifest.json",
        "xpack.productDocBase.artifactRepositoryUrl",
    ]
    places = [text.find(text) for text in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 130
    assert " is a delta" not in text


def test_the_sites_document_without_the_cli_without_weights_and_of_a_delta() -> None:
    base = Base(Manifest(stack="x", commit="", made="", architecture="", python="", parts={}), "5" * 64)
    text = guide.text("airgap", [], weights_directory="/srv/models", base=base)
    assert "    scripts/rehearse up --stack airgap\n" in text
    assert "    pulumi stack init" not in text
    assert "must be on the server already" in text
    assert f"`{'5' * 64}`" in text
    assert "install . --base BUNDLE-BEFORE" in text


def test_weights_from_a_directory_are_named_after_their_content(tmp_path: Path) -> None:
    def part(name: str, **files: str) -> Wanted:
        directory = tmp_path / name
        directory.mkdir()
        for path, content in files.items():
            (directory / path.replace("_", ".")).write_text(content)
        return weights.from_directory(Model(name="acme/own", weights_gb=1), directory)

    first = part("a", x_safetensors="1", config_json="2")
    same = part("b", config_json="2", x_safetensors="1")
    others = [part("c", x_safetensors="1", config_json="3"), part("d", y_safetensors="1", config_json="2")]
    assert first.about == same.about
    assert first.directory == same.directory == f"weights/acme--own--{first.about['revision'][:12]}"
    assert re.fullmatch(r"files-[0-9a-f]{16}", first.about["revision"])
    assert len({part.directory for part in (first, *others)}) == 3
    first.make(tmp_path / "out", lambda _: None)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "x.safetensors": "1",
        "config.json": "2",
    }
    (tmp_path / "a" / "config.json").write_text("4")
    with pytest.raises(UserError, match="changed while it was copied"):
        first.make(tmp_path / "again", lambda _: None)

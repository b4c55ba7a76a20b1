"""`bundle build` reports its usage, and stacks that cannot be bundled, before it builds anything."""

import re
from pathlib import Path

import pytest
import yaml

from components.bundle.manifest import Manifest, Part
from components.catalogue.models import Model
from components.errors import UserError
from scripts.cli.bundle import command, guide, images, weights
from scripts.cli.bundle.making import Base
from scripts.cli.bundle.wanted import Wanted
from scripts.lib.errors import ExitCode
from scripts.lib.stack_file import StackFile
from tests.support.commands import invoke
from tests.support.program import PINS


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


def test_the_sites_document_for_a_cluster_has_the_commands_in_order() -> None:
    def part(name: str) -> Wanted:
        return Wanted(name=name, directory=f"images/{name}", source="x", bytes=lambda: 0, make=lambda *_: None)

    parts = [part(name) for name in ("image-vllm", "image-nginx", "image-weights", "packages", "pulumi")]
    text = guide.of_cluster("cluster", parts, base=None)
    order = [
        "ssh-keygen -Y verify",
        '/scripts/elastic-vllm" bundle verify . --key',
        '/scripts/elastic-vllm" bundle install .',
        "sudo dpkg --install packages/*.deb",
        "images (vllm, nginx, weights)",
        '/scripts/elastic-vllm" bundle push . --key "$SIGNER" --registry registry.example.com/elastic-vllm\n',
        "    pulumi up --stack cluster\n",
        "    scripts/elastic-vllm handoff --stack cluster\n",
        "build --stack cluster --since manifest.json",
        "xpack.productDocBase.artifactRepositoryUrl",
    ]
    places = [text.find(text_) for text_ in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 130
    for word in ("SSH", "bundleOnHost", "weights are not in this bundle"):
        assert word not in text

    base = Base(Manifest(stack="x", commit="", made="", architecture="", python="", parts={}), "5" * 64)
    delta = guide.of_cluster("cluster", parts[:2], base=base)
    assert "--registry registry.example.com/elastic-vllm --base BUNDLE-BEFORE\n" in delta
    assert "The weights are not in this bundle: `weightsClaim`" in delta
    assert "dpkg" not in delta


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


def test_a_cluster_has_no_server_to_probe() -> None:
    result = invoke("bundle", "probe", "--stack", "k8s")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "stack k8s has no server: its target is kubernetes fix: run" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("settings", "parts", "notice"),
    [
        ({"modelRevision": "1" * 40}, ["image-vllm", "image-nginx", "image-weights"], ""),
        (
            {"weightsImage": f"registry.example/w:1@sha256:{'c' * 64}"},
            ["image-vllm", "image-nginx", "image-weights"],
            "",
        ),
        ({"weightsClaim": "models"}, ["image-vllm", "image-nginx"], "no weights: weightsClaim has them"),
        ({"modelRevision": "1" * 40, "target": "gke"}, ["image-vllm", "image-nginx", "image-weights"], ""),
    ],
)
def test_a_clusters_bundle_has_the_weights_as_an_image_unless_a_claim_has_them(
    tmp_path: Path, settings: dict[str, str], parts: list[str], notice: str
) -> None:
    (tmp_path / "stacks").mkdir()
    config = {"target": "kubernetes", **{key: PINS[key] for key in ("vllmImage", "nginxImage")}, **settings}
    text = yaml.safe_dump({"config": {f"elastic-vllm:{key}": value for key, value in config.items()}})
    (tmp_path / "stacks" / "Pulumi.x.yaml").write_text(text)
    file = StackFile(tmp_path, "x")
    found = command._parts(file, "c" * 40, None, None, "none")
    assert [part.name for part in found] == [*parts, "wheels", "project", "stack"]
    about = {"stack": "x", "commit": "c", "made": "now", "architecture": "amd64", "python": "3.11"}
    made = Manifest(**about, parts={part.name: Part(source="", licence=None, about={}, files=()) for part in found})
    lines = list(command._left_out(command._values(file), made, None))
    assert [line.partition(";")[0] for line in lines][:-1] == ([notice] if notice else [])
    assert lines[-1].startswith("no Debian packages: --probe FILE adds skopeo")

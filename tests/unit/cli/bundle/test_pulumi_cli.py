"""The Pulumi CLI and its plugins: from a mirror or a directory, checked, resumed; installed without network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.bundle import manifest
from components.bundle.manifest import File, Manifest, Part
from components.errors import UserError
from scripts.cli.bundle import install, pulumi_cli
from scripts.cli.bundle.pulumi_cli import Archive
from scripts.cli.bundle.wanted import UnreachableError
from tests.support.program import ROOT
from tests.unit.cli.bundle import releases
from tests.unit.cli.bundle.releases import WANTED, Mirror, content, published, tar


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with releases.running() as found:
        yield found


def test_plugins_have_the_versions_of_their_packages_as_the_requirements_name_them() -> None:
    requirements = " ".join((ROOT / "docs" / "getting-started" / "server.md").read_text().split())
    cli, *plugins = WANTED
    assert cli.name == f"pulumi-v{cli.version}-linux-x64.tar.gz"
    assert [each.repository for each in plugins] == [
        f"pulumi-{name}" for name in ("command", "docker", "random", "tls")
    ]
    for each in plugins:
        assert f"{each.repository.removeprefix('pulumi-')} {each.version}" in requirements


@pytest.mark.parametrize(
    ("target", "plugins"),
    [
        ("gcp", ["command", "docker", "random", "tls", "gcp"]),
        ("kubernetes", ["kubernetes", "random", "tls"]),
        ("gke", ["kubernetes", "random", "tls", "gcp"]),
    ],
)
def test_each_target_has_its_plugins(target: str, plugins: list[str]) -> None:
    _, *found = pulumi_cli.archives(ROOT / "requirements.txt", "amd64", target)
    assert [each.repository for each in found] == [f"pulumi-{name}" for name in plugins]


def test_they_are_fetched_and_checked(mirror: Mirror, tmp_path: Path) -> None:
    part = mirror.part()
    assert part.bytes() == sum(len(content(each)) for each in WANTED)
    part.make(tmp_path, lambda _: None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        each.name: content(each) for each in WANTED
    }


def test_what_is_there_and_good_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / WANTED[1].name).write_bytes(content(WANTED[1]))
    (tmp_path / WANTED[2].name).write_bytes(b"damaged")
    mirror.part().make(tmp_path, lambda _: None)
    fetched = [path.rpartition("/")[2] for path, _ in mirror.asked if path.endswith(".gz")]
    assert fetched == [each.name for each in WANTED if each is not WANTED[1]]


def test_an_interrupted_download_resumes(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = 100
    with pytest.raises(UserError, match=r"broke off .* fix: run the same again"):
        mirror.part().make(tmp_path, lambda _: None)
    mirror.cut_after = None
    mirror.part().make(tmp_path, lambda _: None)
    assert (tmp_path / WANTED[0].name).read_bytes() == content(WANTED[0])
    assert [asked for path, asked in mirror.asked if path.endswith(WANTED[0].name)] == [None, "bytes=100-"]


@pytest.mark.parametrize("archive", WANTED, ids=lambda each: each.repository)
def test_another_content_than_was_published_is_refused(mirror: Mirror, tmp_path: Path, archive: Archive) -> None:
    path = f"/{archive.repository}/releases/download/v{archive.version}/{archive.name}"
    mirror.files[path] = mirror.files[path][:-1] + b"!"
    with pytest.raises(UserError, match=r"has checksum .* says .* fix: download both again"):
        mirror.part().make(tmp_path, lambda _: None)
    assert not (tmp_path / archive.name).exists()


def test_a_checksum_file_that_does_not_name_it(mirror: Mirror, tmp_path: Path) -> None:
    cli = WANTED[0]
    mirror.files[f"/pulumi/releases/download/v{cli.version}/{cli.checksums}"] = b"<html>not found</html>\n"
    with pytest.raises(UserError, match=r"does not name .* fix: .*--pulumi DIR"):
        mirror.part().make(tmp_path, lambda _: None)


def test_an_unreachable_mirror_is_reported_with_the_next_step() -> None:
    part = pulumi_cli.part(WANTED, "http://127.0.0.1:9")
    assert part
    with pytest.raises(UnreachableError, match="--pulumi none"):
        part.bytes()
    assert not part.optional
    default = pulumi_cli.part(WANTED, "download")
    assert default
    assert default.optional
    assert pulumi_cli.part(WANTED, "none") is None


def directory(path: Path) -> Path:
    path.mkdir()
    for url, data in published().items():
        (path / url.rpartition("/")[2]).write_bytes(data)
    return path


def test_from_a_directory(tmp_path: Path) -> None:
    given = directory(tmp_path / "given")
    part = pulumi_cli.part(WANTED, str(given))
    assert part
    part.make(tmp_path / "out", lambda _: None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {each.name for each in WANTED}
    (given / WANTED[3].name).write_bytes(b"another")
    with pytest.raises(UserError, match="has checksum"):
        part.make(tmp_path / "again", lambda _: None)
    (given / WANTED[3].checksums).unlink()
    with pytest.raises(UserError, match=f"there is no {WANTED[3].checksums}; fix: put it there"):
        pulumi_cli.part(WANTED, str(given))


# Installed at the site


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Manifest]:
    """Bundle with the CLI, whose stand-in records its calls, installed below tmp_path/home."""
    monkeypatch.setattr(install, "HOME", tmp_path / "home")
    place = tmp_path / "bundle" / "pulumi"
    part = pulumi_cli.part(WANTED, str(directory(tmp_path / "given")))
    assert part
    part.make(place, lambda _: None)
    files = [
        File(path=f"pulumi/{path.name}", bytes=path.stat().st_size, sha256=manifest.sha256(path))
        for path in place.iterdir()
    ]
    made = Part(source=part.source, licence=None, about={}, files=tuple(files))
    whole = Manifest(stack="x", commit="c", made="", architecture="amd64", python="3.11", parts={"pulumi": made})
    return tmp_path / "bundle", whole


def test_the_cli_and_plugins_are_installed_below_the_project(bundle: tuple[Path, Manifest], tmp_path: Path) -> None:
    directory, about = bundle
    for _ in range(2):  # the second time nothing is left to do
        assert install.pulumi([directory], about)
        calls = (tmp_path / "home" / "calls").read_text().splitlines()
        expected = [
            f"{tmp_path / 'home'} plugin install resource {each.repository.removeprefix('pulumi-')} {each.version}"
            f" --file {directory}/pulumi/{each.name} --reinstall"
            for each in WANTED[1:]
        ]
        assert sorted(calls) == sorted(expected)


def test_a_damaged_archive_is_never_unpacked(bundle: tuple[Path, Manifest], tmp_path: Path) -> None:
    directory, about = bundle
    (directory / "pulumi" / WANTED[0].name).write_bytes(tar("pulumi/pulumi", "#!/bin/sh\n"))
    with pytest.raises(UserError, match="missing or altered; fix: run scripts/elastic-vllm bundle verify"):
        install.pulumi([directory], about)
    assert not (tmp_path / "home").exists()

"""A delta carries only new content, and nothing that the bundle before it has under any name."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from components.bundle import manifest
from components.bundle.manifest import MANIFEST, Manifest
from components.errors import UserError
from scripts.cli.bundle import making
from scripts.cli.bundle.making import Base
from scripts.cli.bundle.verify import problems
from scripts.cli.bundle.wanted import Say, UnreachableError, Wanted

OLD = {"weights/m--1": {"big": "weights", "tokenizer": "words"}, "wheels": {"a.txt": "a", "b.txt": "b"}}


def build(
    output: Path, parts: Mapping[str, Mapping[str, str]], base: Base | None = None, made: list[str] | None = None
) -> Manifest:
    """Build a bundle of directories with files of these texts; `made` receives the names of built parts."""

    def wanted(directory: str, files: Mapping[str, str]) -> Wanted:
        def make(path: Path, _say: Say) -> None:
            (made if made is not None else []).append(directory)
            for name, text in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text(text)

        name, source = directory.partition("/")[0], json.dumps([directory, files])
        return Wanted(name=name, directory=directory, source=source, bytes=lambda: 1, make=make)

    with making.alone(output):
        about = making.about("x", "commit", base)
        return making.build(output, about, [wanted(*part) for part in parts.items()], lambda _: [], base)


def carried(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()} - {
        "manifest.json",
        "SHA256SUMS",
    }


@pytest.fixture
def base(tmp_path: Path) -> Base:
    build(tmp_path / "base", OLD)
    return Base.read(tmp_path / "base" / MANIFEST)


NEW = {"weights/m--2": {"big": "other weights", "tokenizer": "words"}, "wheels": OLD["wheels"]}


def test_it_holds_what_is_new_and_names_the_rest(tmp_path: Path, base: Base) -> None:
    made: list[str] = []
    delta = tmp_path / "delta"
    about = build(delta, NEW, base, made)
    assert carried(delta) == {"weights/m--2/big"}
    assert made == ["weights/m--2"], "what comes from the same source is not made again"
    assert about.since == manifest.sha256(tmp_path / "base" / MANIFEST)
    assert {file.path: file.carried for file in about.files} == {
        "weights/m--2/big": True,
        "weights/m--2/tokenizer": False,
        "wheels/a.txt": False,
        "wheels/b.txt": False,
    }
    known = {file.sha256 for file in base.manifest.files}
    assert all(file.carried or file.sha256 in known for file in about.files)
    assert list(problems(delta, None)) == []


def test_a_second_build_makes_nothing_and_changes_nothing(tmp_path: Path, base: Base) -> None:
    delta = tmp_path / "delta"
    build(delta, NEW, base)
    before = {path: path.stat().st_mtime_ns for path in delta.rglob("*") if path.is_file()}
    made: list[str] = []
    build(delta, NEW, base, made)
    assert made == []
    assert {path: path.stat().st_mtime_ns for path in delta.rglob("*") if path.is_file()} == before


def test_what_was_damaged_in_it_is_made_again(tmp_path: Path, base: Base) -> None:
    delta = tmp_path / "delta"
    build(delta, NEW, base)
    (delta / "weights/m--2/big").write_text("damaged")
    assert list(problems(delta, None))
    build(delta, NEW, base)
    assert carried(delta) == {"weights/m--2/big"}
    assert list(problems(delta, None)) == []


def test_a_delta_of_nothing_is_empty(tmp_path: Path, base: Base) -> None:
    build(tmp_path / "delta", OLD, base)
    assert carried(tmp_path / "delta") == set()
    assert list(problems(tmp_path / "delta", None)) == []


def test_a_delta_since_a_delta(tmp_path: Path, base: Base) -> None:
    """All files of the bundles before it are known, whether or not the last one carried them."""
    build(tmp_path / "delta", NEW, base)
    newest = {**NEW, "weights/m--3": {"big": "weights", "tokenizer": "more words"}}
    del newest["weights/m--2"]
    build(tmp_path / "next", newest, Base.read(tmp_path / "delta" / MANIFEST))
    assert carried(tmp_path / "next") == {"weights/m--3/big", "weights/m--3/tokenizer"}


def test_a_directory_is_of_one_base(tmp_path: Path, base: Base) -> None:
    build(tmp_path / "delta", NEW, base)
    with pytest.raises(UserError, match=r"builds on another bundle \(--since\); fix: give another directory"):
        build(tmp_path / "delta", NEW)


@pytest.mark.parametrize("name", ["none.json", MANIFEST])
def test_what_is_no_base(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        Base.read(tmp_path / name)


def test_an_optional_part_that_cannot_be_reached_is_left_out_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable() -> int:
        raise UnreachableError("https://example.com: no", "carry it")

    def make(path: Path, _say: Say) -> None:
        path.mkdir()
        (path / "a").write_text("a")

    def part(name: str, *, optional: bool = False) -> Wanted:
        size = unreachable if optional else lambda: 1
        return Wanted(name=name, directory=name, source="x", bytes=size, make=make, optional=optional)

    names: list[str] = []

    def finish(parts: list[Wanted]) -> list[Wanted]:
        names[:] = [part.name for part in parts]
        return [part("guide")]

    with making.alone(tmp_path / "b"):
        wanted = [part("pulumi", optional=True), part("wheels")]
        made = making.build(tmp_path / "b", making.about("x", "c", None), wanted, finish, None)
    assert list(made.parts) == ["wheels", "guide"]
    assert names == ["wheels"]
    assert "without pulumi: https://example.com: no; fix: carry it" in capsys.readouterr().out

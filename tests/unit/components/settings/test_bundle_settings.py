"""A bundle where nothing may be fetched: its settings, and the resources that follow from them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.machine.host import RUN_SCRIPT
from components.settings.stack import Settings
from tests.support import empty_bundle
from tests.support.program import PINS, Program, changes
from tests.support.registered import texts
from tests.unit.conftest import found

Programs = Callable[..., Program]
DIGEST = "@sha256:" + "c" * 64


def order(program: Program, part: str) -> dict[str, Any]:
    """Orders that transfer.py receives."""
    given: dict[str, Any] = json.loads(program.resources[f"bundle-{part}"].inputs["stdin"])
    return given


# base, settings beside it, the setting that is named, cause, fix
WRONG: list[Any] = [
    ("local", {"bundleKey": "k"}, "bundleKey", "set, but bundle is not", "set bundle to the bundle's directory"),
    ("local", {"bundleOnHost": "/b"}, "bundleOnHost", "set, but bundle is not", "set bundle to the bundle's directory"),
    ("airgap", {"bundle": ""}, "bundleKey", "set, but bundle is not", "set bundle to the bundle's directory"),
    ("airgap", {"bundle": "/nonexistent"}, "bundle", "there is no manifest.json", "give the directory that holds it"),
    ("airgap", {"bundleKey": ""}, "bundleKey", "not set", "or 'unsigned' for an unsigned bundle"),
    (
        "airgap",
        {"bundleKey": "/nonexistent"},
        "bundleKey",
        "neither a public key nor a file",
        "the signer's public key",
    ),
    ("airgap", {"bundleKey": "ssh-ed25519"}, "bundleKey", "not a public key of the form", "the signer's public key"),
    ("airgap", {"bundleOnHost": "disk"}, "bundleOnHost", "invalid format", "give an absolute path"),
    ("airgap", {"hfToken": "hf_x"}, "hfToken", "nothing is downloaded with a bundle", "remove it"),
    ("airgap", {"modelRevision": "1" * 40}, "modelRevision", "the bundle has 95a6d26c", "remove it"),
    ("airgap", {"vllmImage": f"vllm:v0.33.0{DIGEST}"}, "vllmImage", "the bundle has docker.io/vllm", "remove it"),
    (
        "airgap",
        {"tls": "letsencrypt", "endpointHost": "llm.example.com"},
        "tls",
        "no certificate can be requested without a network",
        "use private-ca or provided",
    ),
]


@pytest.mark.parametrize(("base", "settings", "key", "cause", "fix"), WRONG)
def test_a_wrong_setting_is_named_with_cause_and_fix(
    base: str, settings: dict[str, str], key: str, cause: str, fix: str, settle: Callable[..., Settings]
) -> None:
    problems = found(lambda: settle(base, settings))
    assert [line for line in problems if line.startswith(key) and cause in line and fix in line], problems


def test_a_bundle_is_for_a_server_that_exists(settle: Callable[..., Settings], bundle: Path) -> None:
    settings = {"bundle": str(bundle), "bundleKey": "unsigned", "modelRevision": ""}
    (problem,) = found(lambda: settle("prod", settings))
    assert problem == f"bundle = '{bundle}': set, but target is gcp; set target to existing, or remove it"


def test_a_bundle_for_a_cluster_is_refused(settle: Callable[..., Settings], tmp_path: Path) -> None:
    parts = empty_bundle.parts()
    parts["image-weights"] = parts.pop("weights")
    directory = empty_bundle.write(tmp_path / "b", parts)
    (problem,) = found(lambda: settle("airgap", {"bundle": str(directory)}))
    assert problem.endswith(
        "it is for a cluster: its weights are an image; rebuild it from a stack with target existing"
    )


def test_an_unfinished_bundle_is_refused(settle: Callable[..., Settings], tmp_path: Path) -> None:
    directory = empty_bundle.write(tmp_path / "b", empty_bundle.parts())
    (directory / "SHA256SUMS").unlink()
    (problem,) = found(lambda: settle("airgap", {"bundle": str(directory)}))
    assert "there is no SHA256SUMS in it" in problem


def test_a_vllm_with_known_vulnerabilities_is_refused_in_a_bundle_too(
    settle: Callable[..., Settings], tmp_path: Path
) -> None:
    directory = empty_bundle.write(tmp_path / "b", empty_bundle.parts(vllm=f"docker.io/vllm:v0.31.0{DIGEST}"))
    (problem,) = found(lambda: settle("airgap", {"bundle": str(directory)}))
    assert problem.startswith("vllmImage")
    assert "known vulnerabilities" in problem


def test_the_bundle_determines_model_and_images(settle: Callable[..., Settings], tmp_path: Path) -> None:
    model = "openai/gpt-oss-120b"
    directory = empty_bundle.write(tmp_path / "b", empty_bundle.parts(model=model, revision="2" * 40))
    settings = settle("airgap", {"bundle": str(directory)})
    assert (settings.model.name, settings.model_revision, settings.model_source) == (model, "2" * 40, "bundle")
    assert settings.images["vllm"] == "localhost/elastic-vllm/vllm:v0.32.0-aaaaaaaaaaaa"
    assert settings.weights_path == "/var/lib/elastic-vllm/models/openai--gpt-oss-120b--222222222222"
    assert settings.weights_gb == 48.0000006


def test_what_was_pinned_on_the_connected_side_may_stay_in_the_file(settle: Callable[..., Settings]) -> None:
    assert settle("airgap", PINS).model_revision == PINS["modelRevision"]


# The graph


def test_nothing_goes_to_the_host_before_the_whole_bundle_was_checked(program_of: Programs) -> None:
    program = program_of("airgap")
    check = program.resources["bundle-check"].inputs
    assert check["create"].startswith("scripts/elastic-vllm bundle verify /")
    assert " --key " in check["create"]
    brought = {name for name in program.resources if name.startswith("bundle-")} - {"bundle-check"}
    assert brought == {"bundle-packages", "bundle-image-vllm", "bundle-image-nginx", "bundle-weights"}
    assert not [name for name in brought if not {"bundle-check", "host-check"} <= program.waits_for(name)]


def test_an_unsigned_bundle_is_accepted_only_if_the_setting_allows_it(program_of: Programs) -> None:
    assert " --unsigned" in program_of("airgap", bundleKey="unsigned").resources["bundle-check"].inputs["create"]


def test_the_signers_key_is_given_as_text_or_as_a_file(program_of: Programs, bundle: Path) -> None:
    text = (bundle / "signer.pub").read_text().strip()
    for key, word in ((text, f"'{text}'"), (str(bundle / "signer.pub"), str(bundle / "signer.pub"))):
        assert f" --key {word}" in program_of("airgap", bundleKey=key).resources["bundle-check"].inputs["create"]


def test_images_are_those_that_were_brought(program_of: Programs) -> None:
    program = program_of("airgap")
    for role in ("vllm", "nginx"):
        assert {f"bundle-image-{role}", f"runtime-{role}-load"} <= program.waits_for(f"runtime-{role}-image")
        assert program.resources[f"runtime-{role}-image"].inputs["name"].startswith(f"localhost/elastic-vllm/{role}:")
    assert "bundle-packages" in program.waits_for("runtime-docker")
    assert {"bundle-weights", "weights-check"} <= program.waits_for("vllm-container")


def test_a_transfer_shows_no_secret_and_trusts_the_hosts_key_alone(program_of: Programs) -> None:
    program = program_of("airgap")
    given = order(program, "weights")
    assert given["ssh"][-1] == RUN_SCRIPT
    assert "BatchMode=yes" in given["ssh"]
    assert f"KnownHostsCommand=/bin/sh -c \"echo 'llm.example' {program.host_key}\"" in given["ssh"]
    assert not [*texts(program.resources["bundle-weights"].inputs, secret=True)]
    assert [file["path"] for file in given["files"]] == ["config.json", "model.safetensors"]


def test_the_files_of_a_disk_at_the_server_never_travel(program_of: Programs) -> None:
    program = program_of("airgap", bundleOnHost="/media/bundle")
    assert "--listing" in program.resources["bundle-check"].inputs["create"]
    for part in ("packages", "image-vllm", "image-nginx", "weights"):
        command = program.resources[f"bundle-{part}-from-disk"]
        assert command.is_command
        assert "SOURCE=/media/bundle\n" in command.script
    assert "48000000000 yes model.safetensors\n" in program.resources["bundle-weights-from-disk"].data


def test_packages_are_the_bundles_alone_for_every_script(program_of: Programs) -> None:
    program = program_of("airgap")
    after = [c for c in program.commands if c.name not in {"host-check"} and not c.name.startswith("elastic")]
    assert after
    assert not [c.name for c in after if "PACKAGES=/var/lib/elastic-vllm/bundle/airgap/packages\n" not in c.script]


OUTSIDE = ("huggingface.co", "docker.io/", "nvidia.github.io", "pypi.org", "hub-client", "HF_ENDPOINT", "pip install")


def reaching(program: Program) -> Iterator[str]:
    """Yield `resource: word` for everything that would contact a host outside."""
    for resource in program.leaves:
        given = "\n".join([*texts(resource.inputs), *texts(resource.inputs, secret=True)])
        # The toolkit's script names its repository, but does not use it with a bundle's packages (test_gpu_checks.py).
        # The check of the server names Docker's registry where it looks at proxies.
        named = resource.name in {"runtime-docker", "host-check"}
        words = [word for word in OUTSIDE if word in given and not named]
        yield from (f"{resource.name}: {word}" for word in words)


def test_no_component_reaches_for_a_registry_hub_or_repository(program_of: Programs) -> None:
    assert [*reaching(program_of("airgap"))] == []
    connected = {line.partition(":")[0] for line in reaching(program_of("gpu"))}
    assert connected >= {"weights-download", "runtime-vllm-image", "runtime-nginx-image"}


def test_another_bundle_is_another_model_and_the_way_back(
    program_of: Programs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("newer")
    newer = empty_bundle.write(place, empty_bundle.parts(revision="3" * 40), since="0" * 64)
    before, after = program_of("airgap"), program_of("airgap", bundle=str(newer))
    touched = changes(before, after)
    assert touched["replaced"] == ["bundle-check", "vllm-container", "vllm-ready"]
    assert not {name for kind in ("created", "deleted") for name in touched[kind]}
    assert "nginx-container" not in touched["updated"]
    assert changes(after, before)["replaced"] == touched["replaced"]

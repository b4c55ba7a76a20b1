"""Documents whose links lead somewhere and whose commands are tried, and a README of a readable length."""

import re

import pytest

from components.outputs import OUTPUTS
from scripts.lib.errors import ExitCode
from tests.support import documents
from tests.support.documents import ROOT
from tests.support.program import PROJECT

MOST_README_LINES = 160
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in documents.documents()}
GUIDES = [path.relative_to(ROOT).as_posix() for path in documents.guides()]
COMMANDS = {command: name for name in GUIDES for command in documents.commands(TEXTS[name])}
REMEDY = "run it in tests/integration/test_documents.py, or list it in tests/support/documents.py"
RUN = {*documents.ON_LOCAL, *documents.ON_PROD, *documents.BY_CI}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_link_and_anchor_of_a_document_resolves(name: str) -> None:
    broken = []
    for link in documents.links(TEXTS[name]):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        known = documents.anchors(path.read_text()) if path.suffix == ".md" and path.is_file() else {""}
        if not path.exists() or (anchor and anchor not in known):
            broken.append(link)
    assert not broken


def test_every_document_in_docs_is_linked_from_another() -> None:
    linked = {
        ((ROOT / name).parent / link.partition("#")[0]).resolve()
        for name, text in TEXTS.items()
        for link in documents.links(text)
        if "://" not in link and not link.startswith("#")
    }
    assert not [name for name in TEXTS if name.startswith("docs/") and (ROOT / name).resolve() not in linked]


@pytest.mark.parametrize("name", GUIDES)
def test_every_block_of_code_is_fenced_and_names_its_language(name: str) -> None:
    assert not [content for language, content in documents.blocks(TEXTS[name]) if not language]
    assert not re.search(r"\n\n {4,}\S", documents.FENCE.sub("", TEXTS[name]))  # an indented block


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_documented_command_is_run_by_a_test_or_needs_what_tests_do_not_have(command: str) -> None:
    needs = [beginning for beginning in documents.NEEDS if command.startswith(beginning)]
    on_prod = command.replace("--stack server", "--stack prod")
    beginning_of_one = any(other.startswith(f"{command} ") for other in RUN)
    assert on_prod in RUN or command in RUN or needs or beginning_of_one, f"{COMMANDS[command]}: {REMEDY}"


@pytest.mark.parametrize("command", sorted(RUN))
def test_a_command_that_tests_run_is_documented(command: str) -> None:
    assert command in COMMANDS


@pytest.mark.parametrize("beginning", sorted(documents.NEEDS))
def test_a_command_that_tests_cannot_run_is_documented(beginning: str) -> None:
    assert any(command.startswith(beginning) for command in COMMANDS)


@pytest.mark.parametrize("code", [code for code in ExitCode if ExitCode.NETWORK <= code <= ExitCode.LOADING])
def test_every_kind_of_cause_that_diagnose_names_has_a_section_in_troubleshooting(code: ExitCode) -> None:
    titles = re.findall(r"(?m)^## .*\((\d+)\)$", TEXTS["docs/troubleshooting.md"])
    assert str(code.value) in titles


NAMES_OF_OTHERS = {
    *("contextWindowLength", "enableNativeFunctionCalling", "verificationMode"),  # fields of Kibana's connector
    "privateKey",  # a field of the output clientCertificates
    "retainOnDelete",  # an option of Pulumi's resources
    *("apiVersion", "targetPort"),  # fields of Kubernetes' objects
}


@pytest.mark.parametrize("name", [*GUIDES, "Pulumi.README.md", "docs/reference/commands.md"])
def test_every_setting_and_output_that_a_document_names_exists(name: str) -> None:
    words = re.findall(r"(?<![\w./-])[a-z]+(?:[A-Z][a-z0-9]+)+(?![\w./])", TEXTS[name].replace("outputs.", ""))
    assert {*words} <= {*PROJECT["config"], *OUTPUTS, *NAMES_OF_OTHERS}


def test_readme_has_a_readable_length() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= MOST_README_LINES


def test_links_and_anchors_are_found_as_the_code_host_makes_them() -> None:
    text = "# A `b`, c\n## A b c\n```sh\n# no heading [x](y)\n```\n[one](two.md#a-b) `[no](link)`\n# Used?\n"
    assert documents.anchors(text) == {"a-b-c", "a-b-c-1", "used"}
    assert documents.links(text) == ["two.md#a-b"]

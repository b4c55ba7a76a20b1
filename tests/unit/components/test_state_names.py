"""Names in every stack's state, by which an update finds existing resources: they stay, from 0.1.0 on."""

import base64
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from components import MODULES
from tests.conftest import GOLDEN
from tests.support.program import Program
from tests.support.registered import Registered, Secret
from tests.unit.conftest import BASES

FILE = GOLDEN / "state-names.txt"
NAMED = {"tls": "letsencrypt", "endpointHost": "llm.example.com"}
ELASTIC = {
    "kibanaUrl": "https://kibana.example.com",
    "kibanaApiKey": "a2liYW5h",
    "kibanaDefaultConnector": True,
    "elasticsearchUrl": "https://es.example.com",
    "elasticsearchApiKey": "ZXM=",
}
STACKS: list[tuple[str, dict[str, Any]]] = [
    *[(base, {}) for base in BASES],
    ("gpu", {"keys": {"default": [2, 1], "siem": [2, 1]}, "dcgmImage": "localhost/dcgm:4.5.0", **NAMED}),
    ("gpu", ELASTIC),
    ("gpu", {"clientCertificates": ["kibana"]}),
    ("gpu", {"containerRuntime": "podman", "sshUser": "root"}),
    ("gpu", {"modelSource": "host", "modelRevision": "", "hfToken": ""}),
    ("airgap", {"bundleOnHost": "/media/bundle"}),
    ("prod", NAMED),
    ("k8s", {}),
    ("k8s", {"createNamespace": True, "weightsClaim": "", "weightsStorageClass": "s", "modelRevision": "a" * 40}),
    ("prod", {"network": "shared", "subnetwork": "llm"}),
    ("gke", {}),
]
"""Settings that enable every feature with resources."""
LOST = """\
These names are in the states of stacks, and the program no longer uses them:
{names}
An update would delete those resources and create others. Give what takes their place an alias for the old name
(pulumi.Alias, and for a provider of pulumi.dynamic a module that still has its old name), add a test that a state
with the old names plans no replacement, then run: pytest --update-golden"""


@pytest.fixture(scope="module")
def names(program_of: Callable[..., Program]) -> set[str]:
    """Return the types (with the parents') and name of each resource, and the class of each pickled provider."""
    found = set()
    for program in (program_of(base, **overrides) for base, overrides in STACKS):
        for resource in program.resources.values():
            types, parent = [resource.type], program.resources.get(resource.parent)
            while parent:
                types, parent = [parent.type, *types], program.resources.get(parent.parent)
            found.add(f"{'$'.join(types)}::{resource.name}{pickled(resource)}")
    return found


def pickled(resource: Registered) -> str:
    """Return the class under which the state holds a dynamic resource's provider."""
    if "__provider" not in resource.inputs:
        return ""
    kept = resource.inputs["__provider"]
    provider = type(pickle.loads(base64.b64decode(kept.value if isinstance(kept, Secret) else kept)))  # noqa: S301
    return f" by {provider.__module__}.{provider.__qualname__}"


def test_names_in_states_stay(names: set[str], update_golden: bool) -> None:
    if update_golden:
        FILE.write_text("".join(f"{name}\n" for name in sorted(names)))
    kept = set(FILE.read_text().splitlines())
    if lost := sorted(kept - names):
        pytest.fail(LOST.format(names="\n".join(f"  {name}" for name in lost)), pytrace=False)
    assert not names - kept, "new names, which later versions must keep; if they are right: pytest --update-golden"


def test_the_stacks_have_every_component(names: set[str]) -> None:
    assert {name.rpartition(":")[2] for name in (full.split("$")[0].split("::")[0] for full in names)} == set(MODULES)

"""The rehearsal's engine with resources in memory: its decisions, and the state that a crash leaves behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pytest

from scripts.lab import RehearsalError
from scripts.lab.emulator import engine
from scripts.lab.emulator.resource import Adapter, NothingDoneError, Resource, Seen
from scripts.lab.emulator.state import load
from scripts.lib.progress import Display
from scripts.lib.stack_config import StackConfig

HEAD = """
import pulumi

class Thing(pulumi.CustomResource):
    def __init__(self, name, opts=None, kind="test:index:Thing", **inputs):
        super().__init__(kind, name, {**inputs, "made": None, "hidden": None}, opts)

class Provider(pulumi.ProviderResource):
    def __init__(self, name):
        super().__init__("test", name, {})

class Component(pulumi.ComponentResource):
    def __init__(self, name):
        super().__init__("elastic-vllm:index:Component", name)

After = lambda *things, **options: pulumi.ResourceOptions(depends_on=list(things), **options)
"""


class Killed(BaseException):
    """Stand-in for SIGKILL: nothing after it runs."""


@dataclass
class World:
    """Existing resources by name, and operations in order."""

    exists: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failing: dict[str, BaseException] = field(default_factory=dict)  # "create a" -> exception
    seen: dict[str, Seen] = field(default_factory=dict)

    def adapters(self) -> dict[str, Adapter]:
        adapter = Adapter(
            inputs=frozenset({"name", "value", "secret", "fixed", "count"}),
            create=self.create,
            update=self.update,
            read=lambda resource: self.seen.get(resource.name, "same" if resource.name in self.exists else "gone"),
            delete=self.delete,
            replaces=lambda changed: "fixed" in changed,
            overlaps=lambda old, new: old.get("count") != new.get("count"),
        )
        return {"test:index:Thing": adapter, "pulumi:providers:test": adapter}

    def create(self, resource: Resource) -> tuple[str, dict[str, Any]]:
        self.do("create", resource)
        self.exists[resource.name] = resource.inputs
        return f"id-{resource.name}", {"made": f"made {resource.name}", "hidden": "h"}

    def update(self, resource: Resource) -> dict[str, Any]:
        self.do("update", resource)
        self.exists[resource.name] = resource.inputs
        return resource.outputs

    def delete(self, resource: Resource) -> None:
        self.do("delete", resource)
        self.exists.pop(resource.name, None)

    def do(self, what: str, resource: Resource) -> None:
        self.done.append(f"{what} {resource.name}")
        if error := self.failing.get(self.done[-1]):
            raise error


class Stack:
    """A project in a separate directory, whose program the test writes."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.root, self.world = directory, directory / "root", World()

    def up(self, program: str, **values: Any) -> list[str]:
        """Run the program, and return the operations in order."""
        (self.directory / "__main__.py").write_text(HEAD + program)
        self.world.done.clear()
        with Display() as display:
            state = load(self.root, "test")
            engine.up(self.directory, self.config(**values), state, self.world.adapters(), display)
        return list(self.world.done)

    def down(self) -> list[str]:
        self.world.done.clear()
        with Display() as display:
            state = load(self.root, "test")
            engine.destroy(self.config(), state, self.world.adapters(), display, lambda: None)
        return list(self.world.done)

    def outputs(self) -> dict[str, dict[str, Any]]:
        return engine.outputs("test", self.root)

    def config(self, **values: Any) -> StackConfig:
        full = {f"elastic-vllm:{key}": value for key, value in values.items()}
        return StackConfig(project="elastic-vllm", stack="test", values=full, secrets=frozenset())


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def test_second_up_changes_nothing(stack: Stack) -> None:
    program = "a = Thing('a', value=1); Thing('b', value=a.made)"
    assert stack.up(program) == ["create a", "create b"]
    assert stack.world.exists["b"] == {"value": "made a"}
    assert stack.up(program) == []


def test_changed_input_updates_or_replaces(stack: Stack) -> None:
    stack.up("Thing('a', value=1, fixed=1)")
    assert stack.up("Thing('a', value=2, fixed=1)") == ["update a"]
    assert stack.up("Thing('a', value=2, fixed=2)") == ["delete a", "create a"]
    assert stack.up("Thing('a', value=2, fixed=2)") == []


def test_a_replaced_one_that_is_in_nobodys_way_goes_last(stack: Stack) -> None:
    program = "a = Thing('a', fixed={0}, count={0}); Thing('b', After(a), value={0})"
    stack.up(program.format(1))
    assert stack.up(program.format(2)) == ["create a", "update b", "delete a"]


@pytest.mark.parametrize("taken_down", [False, True])
def test_a_replaced_one_is_not_forgotten_when_its_successor_fails(stack: Stack, taken_down: bool) -> None:
    program = "Thing('a', fixed={0}, count={0})"
    stack.up(program.format(1))
    stack.world.failing["create a"] = RehearsalError("no room")
    with pytest.raises(RehearsalError, match="no room"):
        stack.up(program.format(2))
    stack.world.failing.clear()
    if taken_down:
        assert stack.down() == ["delete a", "delete a"]
    else:
        assert stack.up(program.format(2)) == ["create a", "delete a"]


def test_changed_replacement_trigger_replaces(stack: Stack) -> None:
    program = "Thing('a', pulumi.ResourceOptions(replacement_trigger={}), value=1)"
    stack.up(program.format("['vm-1']"))
    assert stack.up(program.format("['vm-1']")) == []
    assert stack.up(program.format("['vm-2']")) == ["delete a", "create a"]


def test_another_provider_replaces_by_way_of_the_old_one(stack: Stack) -> None:
    program = "Thing('a', pulumi.ResourceOptions(provider=Provider('{}')), value=1)"
    stack.up(program.format("one"))
    assert stack.up(program.format("one")) == []
    assert stack.up(program.format("two")) == ["create two", "delete a", "create a", "delete one"]


def test_ignored_change_does_nothing(stack: Stack) -> None:
    program = "Thing('a', pulumi.ResourceOptions(ignore_changes=['value']), value={})"
    stack.up(program.format(1))
    assert stack.up(program.format(2)) == []


def test_only_the_ignored_part_of_an_input_is_ignored(stack: Stack) -> None:
    program = "Thing('a', pulumi.ResourceOptions(ignore_changes=['value.b', 'value.c']), value={})"
    stack.up(program.format({"a": 1, "b": 1}))
    assert stack.up(program.format({"a": 1, "b": 2, "c": 3})) == []
    assert stack.up(program.format({"a": 2, "b": 2, "c": 3})) == ["update a"]
    assert stack.world.exists["a"] == {"value": {"a": 2, "b": 1}}


def test_a_protected_resource_stays_and_with_it_all_others(stack: Stack) -> None:
    program = "a = Thing('a', pulumi.ResourceOptions(protect={}), fixed={}); Thing('b', value=a.made)"
    stack.up(program.format(True, 1))
    for destroy in (stack.down, lambda: stack.up("pass"), lambda: stack.up(program.format(True, 2))):
        with pytest.raises(
            RehearsalError, match=r"a \(.*\): it is protected and can't be deleted; fix: lift the protection"
        ):
            destroy()
        assert "delete a" not in stack.world.done
    with pytest.raises(RehearsalError, match="is protected"):
        stack.down()
    assert stack.world.done == []
    assert stack.up(program.format(False, 1)) == ["create b"]
    stack.up(program.format(True, 1))
    del stack.world.exists["a"]  # by somebody else, whom it does not keep from that
    assert stack.up(program.format(True, 1)) == ["delete a", "create a"]
    stack.up(program.format(False, 1))
    assert stack.down() == ["delete b", "delete a"]


def test_a_replacement_uses_the_ignored_input_as_it_is_declared_now(stack: Stack) -> None:
    program = "Thing('a', pulumi.ResourceOptions(ignore_changes=['value']), value={0}, fixed={1})"
    stack.up(program.format(1, 1))
    assert stack.up(program.format(2, 2)) == ["delete a", "create a"]
    assert stack.world.exists["a"] == {"value": 2, "fixed": 2}


def test_an_update_leaves_an_ignored_input_as_it_was(stack: Stack) -> None:
    program = "Thing('a', pulumi.ResourceOptions(ignore_changes=['value']), value={0}, count={1})"
    stack.up(program.format(1, 1))
    assert stack.up(program.format(2, 2)) == ["update a"]
    assert stack.world.exists["a"] == {"value": 1, "count": 2}


@pytest.mark.parametrize(
    ("seen", "done"),
    [("repaired", []), ("gone", ["delete a", "create a"]), ("expired", ["delete a", "create a"])],
)
def test_refresh_repairs_or_creates_again(stack: Stack, seen: Seen, done: list[str]) -> None:
    stack.up("Thing('a', value=1)")
    stack.world.seen["a"] = seen
    assert stack.up("Thing('a', value=1)") == done


def test_what_the_program_dropped_is_deleted_dependents_first(stack: Stack) -> None:
    stack.up("c = Thing('c'); b = Thing('b', After(c)); Thing('a', After(b)); Thing('z')")
    assert stack.up("Thing('z')") == ["delete a", "delete b", "delete c"]


def test_down_deletes_dependents_first_even_when_they_are_older(stack: Stack) -> None:
    stack.up("a = Thing('a', fixed=1); Thing('b', After(a))")
    stack.up("a = Thing('a', fixed=2); Thing('b', After(a))")
    assert stack.down() == ["delete b", "delete a"]
    assert load(stack.root, "test").resources == {}


def test_failure_stops_what_follows_keeps_what_is_done_and_resumes(stack: Stack) -> None:
    program = "a = Thing('a'); b = Thing('b', After(a)); c = Thing('c', After(b)); pulumi.export('x', c.made)"
    stack.world.failing["create b"] = RehearsalError("no luck: try again")
    with pytest.raises(RehearsalError, match=r"^b \(test:Thing\): no luck: try again$"):
        stack.up(program)
    assert set(stack.world.exists) == {"a"}
    with pytest.raises(RehearsalError, match="isn't up"):
        stack.outputs()
    stack.world.failing.clear()
    assert stack.up(program) == ["create b", "create c"]
    assert stack.outputs() == {"x": {"value": "made c", "secret": False}}


def test_an_unexpected_error_keeps_its_type_and_names_the_resource(stack: Stack) -> None:
    stack.world.failing["create a"] = ZeroDivisionError("oops")
    with pytest.raises(ZeroDivisionError) as caught:
        stack.up("Thing('a')")
    assert caught.value.__notes__ == ["while working on a (test:Thing)"]


def test_killed_while_creating_is_cleaned_up_by_down(stack: Stack) -> None:
    stack.world.failing["create a"] = Killed()
    with pytest.raises(Killed):
        stack.up("Thing('a', value=1)")
    assert stack.down() == ["delete a"]


def test_killed_while_creating_is_created_by_the_next_up(stack: Stack) -> None:
    stack.world.failing["create a"] = Killed()
    with pytest.raises(Killed):
        stack.up("Thing('a', value=1)")
    stack.world.failing.clear()
    assert stack.up("Thing('a', value=1)") == ["create a"]


def test_killed_while_deleting_never_counts_as_alive(stack: Stack) -> None:
    stack.up("Thing('a', value=1)")
    stack.world.failing["delete a"] = Killed()
    with pytest.raises(Killed):
        stack.down()
    stack.world.failing.clear()
    assert stack.up("Thing('a', value=1)") == ["delete a", "create a"]


def test_what_never_began_needs_no_clean_up(stack: Stack) -> None:
    stack.world.failing["create a"] = NothingDoneError("cannot reach the host")
    with pytest.raises(RehearsalError, match="cannot reach the host"):
        stack.up("Thing('a')")
    assert stack.down() == []


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("Thing('a', kind='other:index:Thing')", "doesn't know resource type other:index:Thing"),
        ("Thing('a', nonsense=1)", "doesn't know input nonsense of test:index:Thing"),
        ("pulumi.ComponentResource('other:x:Y', 'a')", "doesn't know resource type other:x:Y"),
        ("Thing('a'); Thing('a')", "registered twice"),
        ("pulumi.runtime.invoke('test:index:look', {'x': 1})", "doesn't know the provider function test:index:look"),
    ],
)
def test_what_the_rehearsal_does_not_know_is_refused(stack: Stack, program: str, message: str) -> None:
    with pytest.raises(RehearsalError, match=message):
        stack.up(program)


def test_secrets_reach_the_adapter_in_clear_and_the_outputs_as_secrets(stack: Stack) -> None:
    stack.up(
        "a = Thing('a', pulumi.ResourceOptions(additional_secret_outputs=['hidden']),"
        " secret=pulumi.Output.secret('s'), value={'deep': [pulumi.Output.secret('t')]}, count=3)\n"
        "for key in ('made', 'hidden'): pulumi.export(key, getattr(a, key))\n"
        "pulumi.export('both', pulumi.Output.all(a.made, a.hidden))\n"
        "pulumi.export('nested', {'x': a.hidden, 'n': 3})"
    )
    assert stack.world.exists["a"] == {"secret": "s", "value": {"deep": ["t"]}, "count": 3}
    assert stack.outputs() == {
        "made": {"value": "made a", "secret": False},
        "hidden": {"value": "h", "secret": True},
        "both": {"value": ["made a", "h"], "secret": True},
        "nested": {"value": {"x": "h", "n": 3}, "secret": True},
    }


def test_children_of_components_have_the_urns_of_the_real_engine(stack: Stack) -> None:
    stack.up("Thing('a', pulumi.ResourceOptions(parent=Component('c')))")
    assert list(load(stack.root, "test").resources) == [
        "urn:pulumi:test::elastic-vllm::elastic-vllm:index:Component$test:index:Thing::a"
    ]


def test_depending_on_a_component_waits_for_its_children(stack: Stack) -> None:
    program = "c = Component('c'); Thing('a', pulumi.ResourceOptions(parent=c)); Thing('b', After(c))"
    assert stack.up(program) == ["create a", "create b"]


def test_program_gets_its_configuration(stack: Stack) -> None:
    stack.up(
        "c = pulumi.Config(); pulumi.export('x', [c.get('a'), c.get_int('b'), c.get_bool('c'), c.get_object('d')])",
        a="text",
        b=2,
        c=True,
        d=["x"],
    )
    assert stack.outputs()["x"]["value"] == ["text", 2, True, ["x"]]


def test_check_raises_the_programs_own_error_and_does_nothing(stack: Stack) -> None:
    program = stack.directory / "__main__.py"
    program.write_text(HEAD + "Thing('a', kind='unknown:index:Thing'); a = Thing('b'); pulumi.export('x', a.made)")
    engine.check(stack.directory, stack.config())
    program.write_text(HEAD + "Thing('a')\nraise pulumi.RunError('model: is wrong')")
    with pytest.raises(pulumi.RunError, match="model: is wrong"):
        engine.check(stack.directory, stack.config())
    assert not stack.root.exists()


def test_a_program_that_raises_starts_nothing(stack: Stack) -> None:
    with pytest.raises(pulumi.RunError, match="bad"):
        stack.up("Thing('a')\nraise pulumi.RunError('bad')")
    assert stack.world.done == []


def test_state_keeps_every_finished_step(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_updates(resource: Resource) -> tuple[str, dict[str, Any]]:
        on_disk = json.loads((stack.root / "stacks/test/state.json").read_text())["resources"].values()
        begun = {record["name"]: record["begun"] for record in on_disk}
        assert begun == ({"a": "create"} if resource.name == "a" else {"a": "", "b": "create"})
        return resource.name, {}

    create: Callable[..., Any] = no_more_updates
    monkeypatch.setattr(stack.world, "create", create)
    stack.up("a = Thing('a'); Thing('b', After(a))")

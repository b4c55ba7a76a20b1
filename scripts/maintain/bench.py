"""`make bench`, part one: duration of `up`, compared with the same vLLM started by hand, and without changes.

Everything runs on this machine with the stack `test`; images and model are present. `up` and the same vLLM started by
hand take turns, so that a noisy machine disturbs both alike. Then `prod` is rehearsed: unchanged, without anything to
do, and with a slower driver, image and weights, whose extra times overlap and so count once.
"""

import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import docker
import httpx2
import typer
from rich.console import Console
from rich.table import Table

from scripts.lab import simulated_vm
from scripts.maintain.price import document

ROOT = Path(__file__).resolve().parents[2]
STACK = "test"
GOOGLE = "prod"
DELAY_SECONDS = 60
DELAYED = ("gpus-install", "runtime-vllm-image", "weights-download")
CONTAINER = f"elastic-vllm-{STACK}-vllm"
FIRST_TOKEN_SECONDS = 300
QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 16}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Measurements of each; the median counts.", min=1)] = 3,
) -> None:
    """Measure `up` against the same vLLM started by hand, an `up` with nothing to do, and the unit tests."""
    with_up, by_hand, nothing_to_do = [], [], []
    for number in range(1, rounds + 1):
        rehearse("down")  # a stack that was up before
        rehearse("setup")  # Docker runs before either begins
        with_up.append(timed(f"round {number}: up, to the first token", up_to_first_token))
        nothing_to_do.append(timed(f"round {number}: up with nothing to do, verified", up_again))
        server = container_configuration()
        rehearse("down")
        rehearse("setup")
        by_hand.append(timed(f"round {number}: the same vLLM by hand", partial(start_by_hand, server)))
    rehearse("down")
    remove_disk()  # of an earlier rehearsal
    rehearse("setup", stack=GOOGLE)
    on_google = [timed("prod, rehearsed", partial(provision, ()))]
    google_again = [timed("prod with nothing to do", partial(rehearse, "up", stack=GOOGLE))]
    rehearse("down", stack=GOOGLE)
    remove_disk()
    rehearse("setup", stack=GOOGLE)
    delayed = [timed(f"prod, {DELAY_SECONDS} s more for {', '.join(DELAYED)}", partial(provision, DELAYED))]
    rehearse("down", stack=GOOGLE)
    remove_disk()
    longest = on_google[0] + DELAY_SECONDS
    unit = [timed("unit tests", unit_tests)]
    over = statistics.median(with_up) - statistics.median(by_hand)
    rows = (
        ("`up`, to the first token", with_up, f"by hand + 10 s; measured + {over:.1f} s"),
        ("the same vLLM by hand, to the first token", by_hand, ""),
        ("`up` with nothing to do, verification included", nothing_to_do, "15"),
        ("`prod`, rehearsed", on_google, ""),
        ("`prod` with nothing to do", google_again, "10"),
        (
            f"`prod`, driver, image and weights each {DELAY_SECONDS} s slower",
            delayed,
            f"1.15 times the longest chain ({longest:.1f} s); measured {delayed[0] / longest:.2f}",
        ),
        ("unit tests", unit, "20"),
    )
    report(rows, rounds)


def report(rows: Sequence[tuple[str, list[float], str]], rounds: int) -> None:
    """Print the measurements, and put them into docs/benchmarks.md."""
    columns = ("what", "median", "all", "promised")
    table = Table(*columns, title="Seconds for whole processes, with images and model present")
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- |"]
    for what, seconds, promise in rows:
        cells = [what, f"{statistics.median(seconds):.1f}", " ".join(f"{s:.1f}" for s in seconds), promise]
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    console.print(table)
    text = "Seconds for whole processes, with images and model present.\n\n" + "\n".join(lines)
    document.write("provisioning", text, f"python -m scripts.maintain.bench --rounds {rounds}")


def provision(delayed: Sequence[str]) -> None:
    """Run `up` of prod, with some resources delayed."""
    rehearse("up", *(word for name in delayed for word in ("--delay", f"{name}={DELAY_SECONDS}")), stack=GOOGLE)


def remove_disk() -> None:
    """Remove the disk that `down` keeps."""
    simulated_vm.disk_file(f"elastic-vllm-{GOOGLE}-weights").unlink(missing_ok=True)


def timed(title: str, do: Callable[[], object]) -> float:
    """Return the seconds that `do` takes, with lines of progress before and after."""
    console.print(f"{title} ...")
    start = time.monotonic()
    do()
    seconds = time.monotonic() - start
    console.print(f"  {seconds:.1f} s")
    return seconds


def rehearse(*arguments: str, stack: str = STACK) -> str:
    """Run scripts/rehearse and return its output. If it fails, end the benchmark with its errors."""
    command = [str(ROOT / "scripts" / "rehearse"), *arguments, "--stack", stack]
    # Always measure the embedded engine, even if the other is installed.
    environment = {**os.environ, "ELASTIC_VLLM_ENGINE": "embedded"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        console.print(done.stdout)
        raise typer.Exit(1)
    return done.stdout


def up_to_first_token() -> None:
    """Bring the stack up from nothing to the first token through Nginx."""
    rehearse("up")
    outputs = json.loads(rehearse("outputs", "--json", "--show-secrets"))
    context = ssl.create_default_context(cadata=outputs["caCertificate"])
    with httpx2.Client(verify=context, timeout=60, trust_env=False) as client:
        question = {**QUESTION, "model": outputs["model"]}
        headers = {"Authorization": f"Bearer {outputs['connectorApiKey']}"}
        _first_event(client, outputs["connectorUrl"], question, headers)


def up_again() -> None:
    """Run `up --verify` without changes."""
    if "unchanged" not in rehearse("up", "--verify"):
        raise typer.Exit(1)


def container_configuration() -> dict[str, Any]:
    """Return vLLM's options in Docker."""
    attributes: dict[str, Any] = docker.from_env().api.inspect_container(CONTAINER)
    return attributes


def start_by_hand(attributes: dict[str, Any]) -> None:
    """Run vLLM by `docker run` with the same arguments but no directories of ours, up to the first token."""
    client = docker.from_env(timeout=120)
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-bench-") as scratch:
        binds = []
        for bind in attributes["HostConfig"]["Binds"]:
            source, target, mode = bind.split(":")
            if not Path(source).exists():  # the stack's directories were removed with it
                source = str(Path(scratch) / target.strip("/").replace("/", "-"))
                Path(source).mkdir()
                Path(source).chmod(0o777)
            binds.append(f"{source}:{target}:{mode}")
        config = attributes["Config"]
        host_config = {**attributes["HostConfig"], "Binds": binds, "RestartPolicy": {"Name": "no"}}
        created = client.api.create_container(
            image=config["Image"],
            command=config["Cmd"],
            entrypoint=config["Entrypoint"],
            environment=config["Env"],
            user=config["User"],
            host_config=host_config,
        )
        container = client.containers.get(created["Id"])
        try:
            container.start()
            socket = next(Path(bind.split(":")[0]) for bind in binds if ":/run/vllm:" in bind) / "vllm.sock"
            _wait_for_first_token(socket, config["Cmd"])
        finally:
            container.remove(force=True)


def _wait_for_first_token(socket: Path, command: list[str]) -> None:
    question = {**QUESTION, "model": command[command.index("--served-model-name") + 1]}
    end = time.monotonic() + FIRST_TOKEN_SECONDS
    while True:
        try:
            with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), timeout=60) as client:
                _first_event(client, "http://vllm/v1/chat/completions", question, {})
                return
        except httpx2.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _first_event(client: httpx2.Client, url: str, question: dict[str, Any], headers: dict[str, str]) -> None:
    with client.stream("POST", url, json=question, headers=headers) as answer:
        answer.raise_for_status()
        next(line for line in answer.iter_lines() if '"content":"' in line and '"content":""' not in line)


def unit_tests() -> None:
    """Run the unit tests."""
    parallel = ["--numprocesses", "auto", "--dist", "worksteal"]  # as make unit does
    command = [sys.executable, "-m", "pytest", "-q", *parallel, str(ROOT / "tests" / "unit")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()

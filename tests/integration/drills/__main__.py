"""`make drills`: every drill with the real vLLM; the table goes into docs/reliability.md.

python -m tests.integration.drills [--only NAME]... [--stand-in]
"""

import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from scripts.maintain.price import document
from tests.integration.conftest import ROOT, rehearse
from tests.integration.drills import clocks, faults, notices, ups
from tests.integration.drills.measure import PROXY_SECONDS, Row, Site, site
from tests.integration.drills.server import running
from tests.support import vllm_stand_in
from tests.support.made_stacks import MODEL, NGINX_IMAGE, make_weights

DOCUMENT = ROOT / "docs" / "reliability.md"
STACK = "drills"
BEGIN, END = "<!-- table: make drills -->", "<!-- end of the table -->"
HEAD = "| fault | what clients saw | seconds to recover | what `up` did next |\n| --- | --- | --- | --- |\n"
DRILLS: tuple[Callable[[Site], Row], ...] = (
    faults.nginx_killed,
    faults.nginx_worker_killed,
    faults.vllm_killed,
    faults.vllm_out_of_memory,
    faults.engine_hangs,
    faults.api_server_hangs,
    faults.dockerd_killed,
    faults.dockerd_killed_as_the_distribution_has_it,
    faults.reboot,
    faults.logs_full,
    faults.weights_full,
    clocks.certificate_expired,
    clocks.clock_jumps,
    notices.preempted,
    notices.maintenance,
    ups.second_up,
    ups.ssh_cut_at_every_step,
)


def main(
    only: Annotated[list[str], typer.Option(help="Run only the drill of this name. Repeatable.")] = [],  # noqa: B006
    stand_in: Annotated[bool, typer.Option("--stand-in", help="Use a stand-in for vLLM, which is quicker.")] = False,
) -> None:
    """Break the parts of a rehearsed stack, one after the other, and write down what happens."""
    chosen = [drill for drill in DRILLS if drill.__name__ in only or not only]
    rows = kept_rows() if only else {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is removed, however this ends
    was_up = rehearse("outputs", stack="local").returncode == 0
    done = rehearse("setup", stack="local")  # images and model
    assert done.returncode == 0, done.stderr
    slow = []
    with a_site(real=not stand_in) as own:
        for drill in chosen:
            row = drill(own)
            if stand_in:
                row = replace(row, fault=f"{row.fault}; vLLM is a stand-in")
            rows[drill.__name__] = row.line.replace("| ", f"| <!-- {drill.__name__} --> ", 1)
            typer.echo(row.line)
            if row.proxy_seconds > PROXY_SECONDS and drill is not faults.reboot:
                slow.append(f"{row.fault}: Nginx was back after {row.proxy_seconds:.1f} s, promised: {PROXY_SECONDS} s")
            write([rows[each.__name__] for each in DRILLS if each.__name__ in rows])
    if not was_up:
        rehearse("down", stack="local")
    for line in slow:
        typer.echo(f"FAIL {line}")
    typer.echo(f"{len(chosen)} drills, {len(chosen) - len(slow)} as promised")
    raise typer.Exit(1 if slow else 0)


@contextmanager
def a_site(*, real: bool) -> Iterator[Site]:
    """Yield a server with the stack up."""
    with tempfile.TemporaryDirectory(prefix="elastic-vllm-drills-") as weights:
        Path(weights).chmod(0o755)
        make_weights(Path(weights))
        stand_in = {"model": MODEL, "weightsGb": 1, "weightsDirectory": weights, "vllmImage": vllm_stand_in.IMAGE}
        tiny = {"modelCatalogue": "scripts/lab/models.yaml", "model": "rehearsal/tiny"}
        settings = tiny | {"vllmImage": vllm_stand_in.VLLM_IMAGE} if real else stand_in
        settings |= {"nginxImage": NGINX_IMAGE, "modelSource": "host"}
        with running(STACK, settings) as server:
            if not real:
                vllm_stand_in.build(server.docker)
            server.up()
            yield site(server, real=real)


def kept_rows() -> dict[str, str]:
    """Map each drill to its line in the document, as the last run left it."""
    lines = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    return {match[1]: line for line in lines if (match := re.search(r"<!-- (\w+) -->", line))}


def write(lines: list[str]) -> None:
    """Put the table into the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    where = f"Made by `make drills` on {date.today()}, {document.machine()}; vLLM 0.32.0 with the tiny model."
    DOCUMENT.write_text(f"{before}{BEGIN}\n{HEAD}" + "\n".join(lines) + f"\n\n{where}\n{END}{after}")


if __name__ == "__main__":
    typer.run(main)

"""Kibana, and its connector to the endpoint."""

from collections.abc import Iterator
from http import HTTPStatus

from components.elastic.api import ElasticError, Product
from scripts.cli.diagnose.finding import Finding, Look, Rank
from scripts.lib.errors import ExitCode

TIMEOUTS = "no API shows its kibana.yml: responseTimeout and maxResponseContentLength must be as in kibanaYml"


def look(kibana: Product, space: str, connector: str, expected: dict[str, object]) -> Iterator[Look]:
    """Check that Kibana answers, accepts the key and has the right connector."""
    path = (f"/s/{space}" if space else "") + f"/api/actions/connector/{connector}"

    def wrong(cause: str, fix: str) -> Look:
        return Look("Kibana", "", (Finding(ExitCode.KIBANA, Rank.KIBANA, cause, fix),))

    try:
        answer = kibana.ask("GET", path)
    except ElasticError as error:
        cause, _, fix = str(error).partition(": ")
        yield wrong(cause, fix)
        return
    if answer.status == HTTPStatus.NOT_FOUND:
        fix = "make it as the hand-off says, or have up do it (kibanaUrl); in another space, pass --kibana-space"
        yield wrong(f"Kibana has no connector {connector}", fix)
        return
    if answer.status != HTTPStatus.OK:
        yield wrong(f"Kibana refuses to show the connector ({answer.status}): {answer.reason}", "see its own log")
        return
    config = answer.body.get("config") or {}
    different = [name for name in ("apiUrl", "defaultModel", "verificationMode") if config.get(name) != expected[name]]
    if different:
        differences = ", ".join(f"{name} is {config.get(name)!r}, not {expected[name]!r}" for name in different)
        yield wrong(
            f"the connector leads elsewhere: {differences}", "update it as the hand-off says, or run up --refresh"
        )
        return
    yield Look("Kibana", f"has the connector as it should be; {TIMEOUTS}")

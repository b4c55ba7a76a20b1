"""Command that examines a failing endpoint, its server and Kibana, and names the cause and the fix."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from components.elastic import payloads
from components.elastic.api import Product
from scripts.cli.diagnose import archive, cluster, outside, server
from scripts.cli.diagnose import kibana as kibana_looks
from scripts.cli.diagnose.finding import Finding, Look, Rank
from scripts.lib.errors import BadInputError, ExitCode
from scripts.lib.progress import Display
from scripts.lib.redaction import leaves
from scripts.lib.ssh import SshError
from scripts.lib.stack_outputs import Rehearsal, first_client, internal, stack_outputs
from scripts.lib.verification.endpoint import Endpoint, InvalidEndpointError

SECRET_OUTPUTS = (
    "connectorApiKey",
    "acceptedKeys",
    "apiKeys",
    "clientCertificates",
    "kibanaConnectorRequest",
    "inferenceEndpointRequest",
    "preconfiguredConnectorYml",
    "sshPrivateKeyPassword",
)
PUBLIC_IN_THEM = frozenset(
    {"name", "connector_type_id", "config", "service", "model_id", "url", "caData", "certificate"}
)
"""Fields of secret outputs that hold no secret, and without which a report would be incomprehensible."""


def main(
    *,
    stack: Annotated[str | None, typer.Option(help="Stack that is up.")] = None,
    rehearsal: Rehearsal = False,
    url: Annotated[str | None, typer.Option(help="Connector URL, instead of the stack's.")] = None,
    model: Annotated[str | None, typer.Option(help="Model or alias to ask for, instead of the stack's.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File with the key, instead of the stack's.")] = None,
    ca: Annotated[Path | None, typer.Option(help="CA certificate to trust (PEM), instead of the stack's.")] = None,
    client_pem: Annotated[Path | None, typer.Option(help="Client certificate and its key (PEM), where needed.")] = None,
    kibana_url: Annotated[str | None, typer.Option(help="Look at Kibana too: its address.")] = None,
    kibana_key_file: Annotated[Path | None, typer.Option(help="File with an API key of Kibana.")] = None,
    kibana_ca: Annotated[Path | None, typer.Option(help="CA of Kibana's certificate (PEM).")] = None,
    kibana_space: Annotated[str, typer.Option(help="Kibana's space (default: its default one).")] = "",
    bundle: Annotated[Path | None, typer.Option(help="Write what was found to this .tar.gz, without secrets.")] = None,
) -> None:
    """Find out why the endpoint does not work; with --stack also on its server, over SSH. Changes nothing.

    The exit status shows the kind of cause that was found (scripts/elastic-vllm --help).
    """
    given = {"connectorUrl": url, "model": model, "caCertificate": _text(ca), "clientPem": _text(client_pem)}
    about = _about(stack, given | {"connectorApiKey": (_text(key_file) or "").strip()}, rehearsal=rehearsal)
    kibana = _kibana(kibana_url, kibana_key_file, kibana_ca)
    looks: list[Look] = []
    survey: dict[str, Sequence[str]] = {}
    with Display(results_on_stdout=True) as display, display.task("diagnose") as task:
        for look in chain(
            _endpoint_looks(about, task.say),
            _server_looks(about, stack, rehearsal, task.say, survey),
            _kibana_looks(about, stack, kibana, kibana_space),
        ):
            looks.append(look)
            display.line(_line(look))
    findings = sorted((each for look in looks for each in look.findings), key=lambda found: found.rank)
    _tell(findings)
    if bundle:
        _write(bundle, looks, about, survey, [kibana.key] if kibana else [])
    real = [found for found in findings if found.rank is not Rank.SOON]
    raise typer.Exit(real[0].kind if real else ExitCode.DONE)


def _endpoint_looks(about: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Look]:
    try:
        endpoint = Endpoint(
            url=about["connectorUrl"],
            key=about["connectorApiKey"],
            model=about["model"],
            ca_certificate=about.get("caCertificate"),
            client_certificate=about.get("clientPem") or first_client(about),
        )
    except InvalidEndpointError as error:
        kinds = {"key": ExitCode.KEY, "client_certificate": ExitCode.KEY, "ca_certificate": ExitCode.TLS}
        shown = f" {about['connectorUrl']}" if error.field == "url" else ""
        cause = f"the {error.field}{shown} can't be right: it {error}"
        finding = Finding(kinds.get(error.field, ExitCode.REQUEST), Rank.ROUTE, cause, "correct it")
        yield Look(error.field, "", (finding,))
    else:
        yield from outside.look(endpoint, say)


def _server_looks(
    about: Mapping[str, Any],
    stack: str | None,
    rehearsal: bool,
    say: Callable[[str], None],
    survey: dict[str, Sequence[str]],
) -> Iterator[Look]:
    ssh, kubernetes = internal(about).get("ssh"), internal(about).get("kubernetes")
    if stack and isinstance(kubernetes, dict):
        say("the pods")
        yield from cluster.looks(kubernetes, stack.rpartition("/")[2])
        return
    if not (stack and isinstance(ssh, dict)):
        yield Look("server", "not looked at: that takes --stack")
        return
    say("the server, over SSH")
    name = stack.rpartition("/")[2]
    try:
        engine = str(internal(about).get("containerRuntime") or "docker")
        passphrase = str(internal(about).get("sshPrivateKeyPassword") or "")
        survey.update(server.survey(ssh, passphrase, name, engine))
    except SshError as error:
        yield server.unreachable(error, f"{ssh['user']}@{ssh['host']}")
    else:
        yield from server.looks(survey, name, engine, server.repair(stack, rehearsal=rehearsal))


def _kibana_looks(about: Mapping[str, Any], stack: str | None, kibana: Product | None, space: str) -> Iterator[Look]:
    if not kibana:
        yield Look("Kibana", "not looked at: that takes --kibana-url")
        return
    name = f"elastic-vllm-{(stack or '').rpartition('/')[2]}"
    connector = str(about.get("kibanaConnectorId") or payloads.connector_id(name))
    asked = str(about.get("servedModelName") or about["model"])
    expected = {"apiUrl": about["connectorUrl"], "defaultModel": asked, "verificationMode": "full"}
    yield from kibana_looks.look(kibana, space, connector, expected)


def _tell(findings: Sequence[Finding]) -> None:
    if not findings:
        typer.echo("all is well")
        return
    first, *others = findings
    word = "soon" if first.rank is Rank.SOON else "cause"
    typer.echo(f"\n{word}: {first.cause}\n  fix: {first.fix}")
    for found in others:
        typer.echo(f"also: {found.cause}\n  fix: {found.fix}")


def _line(look: Look) -> str:
    if look.findings:
        return f"{'PROBLEM':<9}{look.name:<15}" + "; ".join(found.cause for found in look.findings)
    return f"{'ok':<9}{look.name:<15}{look.seen}"


def _about(stack: str | None, given: Mapping[str, str | None], *, rehearsal: bool) -> Mapping[str, Any]:
    """The endpoint as the stack's outputs describe it, overridden by what is given."""
    if rehearsal and not stack:
        raise BadInputError("--rehearsal is given without --stack", "give the rehearsed stack's name")
    outputs: Mapping[str, Any] = stack_outputs(stack, rehearsal=rehearsal) if stack else {}
    if internal(outputs).get("parked"):
        raise BadInputError(f"--stack {stack}: it is parked, so nothing answers", "set parked to false, then run up")
    about = {**outputs, **{name: value for name, value in given.items() if value}}
    if missing := [name for name in ("connectorUrl", "connectorApiKey", "model") if not about.get(name)]:
        raise BadInputError(f"{missing[0]} is not known", "give --stack, or --url, --key-file and --model")
    return about


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: {error}", "give a file that can be read") from error


def _kibana(url: str | None, key_file: Path | None, ca: Path | None) -> Product | None:
    if not url:
        return None
    if not key_file:
        raise BadInputError("--kibana-url is given without --kibana-key-file", "give a file with an API key of Kibana")
    return Product(
        name="Kibana",
        url=url.rstrip("/"),
        url_setting="kibanaUrl (--kibana-url)",
        key=(_text(key_file) or "").strip(),
        key_setting="kibanaApiKey (--kibana-key-file)",
        privilege="the Kibana privilege 'Actions and Connectors: all'",
        ca=_text(ca) or "",
        headers={"kbn-xsrf": "true"},
        patience=0,
    )


def _write(
    path: Path, looks: Sequence[Look], about: Mapping[str, Any], survey: server.Survey, more: Sequence[str]
) -> None:
    about = {name: value for name, value in {**about, **internal(about)}.items() if name != "_internal"}
    public = {name: value for name, value in about.items() if name not in {*SECRET_OUTPUTS, "clientPem"}}
    files = {
        "findings.json": json.dumps([asdict(look) for look in looks], indent=2),
        "findings.md": "\n".join(f"- {_line(look)}" for look in looks) + "\n",
        "outputs.json": json.dumps(public, indent=2),
        "machine.txt": f"{platform.platform()}, Python {platform.python_version()}\n",
        **{f"server/{name}.txt": "\n".join(lines) + "\n" for name, lines in survey.items()},
    }
    secrets = [*leaves({name: _secret(about.get(name)) for name in (*SECRET_OUTPUTS, "clientPem")}), *more]
    try:
        archive.write(path, files, secrets)
    except OSError as error:
        raise BadInputError(f"--bundle {path}: {error.strerror}", "give a place that can be written") from error
    typer.echo(f"wrote {path}, readable by you alone; look into it before you give it away")


def _secret(value: object) -> object:
    """Return the secret parts of an output's value."""
    if isinstance(value, Mapping):
        return {name: _secret(each) for name, each in value.items() if name not in PUBLIC_IN_THEM}
    return value

"""Commands of `bundle` for a connected machine: build a bundle, and probe the server that it is for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from components.bundle.manifest import Manifest
from components.catalogue.models import Model
from components.errors import UserError
from components.settings import model as model_checks
from components.settings import problems as setting_checks
from components.settings.problems import ENCRYPTED, Problems
from components.settings.stack import as_text, defaults
from components.settings.targets import CLUSTERS
from scripts.cli.bundle import (
    collect,
    guide,
    making,
    packages,
    probe,
    pulumi_cli,
    signature,
    weights,
    weights_image,
)
from scripts.cli.bundle.making import Base
from scripts.cli.bundle.probe import Probe
from scripts.cli.bundle.wanted import Wanted
from scripts.lib.errors import BadInputError
from scripts.lib.stack_file import PREFIX, StackFile

ROOT = Path(__file__).resolve().parents[3]


def probe_server(
    stack: Annotated[str, typer.Option(help="The stack whose server is asked, over SSH.")],
) -> None:
    """Ask a stack's server what it is, over SSH: JSON on standard output, for build --probe.

    Where this machine does not reach it: scripts/elastic-vllm bundle probe --script is what to run there. For a
    cluster that is the machine that pushes its images: nodes need nothing else from a bundle.
    """
    values = _values(StackFile(ROOT, stack))
    if values["target"] in CLUSTERS:
        fix = "run `scripts/elastic-vllm bundle probe --script` on the machine that pushes the images"
        raise BadInputError(f"stack {stack} has no server: its target is {values['target']}", fix)
    typer.echo(probe.of_server(stack, values, defaults()), nl=False)


def build(  # noqa: PLR0917 - options all
    stack: Annotated[str, typer.Option(help="The stack whose file in stacks/ says what is needed.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The bundle: a new directory, or one begun before.")],
    weights_from: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="DIR", help="modelSource host, or a cluster: take the model's files from here."
        ),
    ] = None,
    probe_file: Annotated[
        Path | None,
        typer.Option(
            "--probe",
            metavar="FILE",
            help="Description of the server (bundle probe), or of the machine that pushes images to a cluster's"
            " registry: the packages that it lacks come too.",
        ),
    ] = None,
    pulumi: Annotated[
        str,
        typer.Option(
            metavar="download|none|DIR|URL",
            help="The Pulumi CLI and plugins: from github.com (left out if it can't be reached), not at all,"
            " from a directory with the archives and their checksum files, or from a mirror of github.com/pulumi.",
        ),
    ] = "download",
    since: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="A delta: leave out what the bundle of this manifest.json has."),
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign with this SSH private key; its .pub travels apart.")
    ] = None,
) -> None:
    """Collect what a stack needs into one directory, for a site where nothing can be fetched.

    The stack must be pinned (scripts/elastic-vllm pin). Images come from their registries (needs skopeo), those on
    localhost/ from this machine's Docker; the model from the hub, a gated one with the token in the environment
    variable HF_TOKEN; Debian packages from this machine's apt sources. If it is interrupted, run it again and it
    resumes. A second run fetches nothing that is there and good.

    For target kubernetes or gke, the weights are made into an image: at the site, `bundle push` sends it to a registry
    with the other images.
    """
    try:
        base = Base.read(since) if since else None
        server = probe.read(probe_file) if probe_file else None
        file = StackFile(ROOT, stack)
        commit = collect.commit(ROOT)
        wanted = _parts(file, commit, weights_from, server, pulumi)

        def finish(parts: list[Wanted]) -> list[Wanted]:
            values = _values(file)
            content = (
                guide.of_cluster(stack, parts, base=base)
                if values["target"] in CLUSTERS
                else guide.text(stack, parts, weights_directory=values["weightsDirectory"], base=base)
            )
            site = collect.text("guide", guide.PATH, content)
            return [site, collect.bill_of_materials(output, [*parts, site])]

        with making.alone(output):
            made = making.build(output, making.about(stack, commit, base), wanted, finish, base)
            if sign_key:
                signature.sign(output, sign_key)
    except OSError as error:
        raise UserError(f"the bundle can't be written: {error}", "correct that, and run the same again") from error
    size = sum(file.bytes for file in made.carried) / 1e9
    delta = f", a delta since {base.sha256[:12]}" if base else ""
    typer.echo(f"{output}: {len(made.carried)} files, {size:.1f} GB{delta}; what to do with it: {output / guide.PATH}")
    for line in _left_out(_values(file), made, server):
        typer.echo(line)
    if not sign_key:
        typer.echo("not signed: --sign-key FILE lets the site see that it comes from you")


def _left_out(values: Mapping[str, str], made: Manifest, server: Probe | None) -> Iterator[str]:
    """Yield a line for each part that a bundle can have and this one does not."""
    if values["target"] not in CLUSTERS:
        if not server:
            yield "no Debian packages: --probe FILE (from bundle probe) adds those that the server lacks"
        return
    if "image-weights" not in made.parts:
        yield "no weights: weightsClaim has them; --weights DIR makes an image of a directory"
    if not server:
        yield "no Debian packages: --probe FILE adds skopeo for the machine that pushes the images, if that lacks it"


def _values(file: StackFile) -> dict[str, str]:
    """Return all settings as texts, including Pulumi.yaml's defaults."""
    given = {
        key.removeprefix(PREFIX): ENCRYPTED if isinstance(value, Mapping) and "secure" in value else as_text(value)
        for key, value in file.config.items()
        if key.startswith(PREFIX)
    }
    return {**defaults(), **given}


def _parts(file: StackFile, commit: str, given: Path | None, server: Probe | None, pulumi: str) -> list[Wanted]:
    """Return the parts that the stack needs, without the documents about them. Raises UserError."""
    values = _values(file)
    problems = Problems(values, defaults())
    problems.unknown_keys()
    catalogue = model_checks.catalogue(problems, ROOT)
    model = model_checks.model(problems, catalogue, model_checks.vllm_extra_args(problems))
    in_cluster = values["target"] in CLUSTERS
    dcgm = ["dcgm"] if values["dcgmImage"] and not in_cluster else []
    images = {role: setting_checks.image(problems, f"{role}Image") for role in ("vllm", "nginx", *dcgm)}
    if in_cluster and values["weightsImage"] and not given:
        images["weights"] = setting_checks.image(problems, "weightsImage")
    revision = values["modelRevision"]
    from_hub = not given and not values["weightsImage"] and not values["weightsClaim"]
    if not in_cluster:
        from_hub = problems.choice("modelSource", ("hub", "host")) == "hub"
    if from_hub and not model_checks.REVISION.fullmatch(revision):
        problems.add("modelRevision", "not a commit of 40 hexadecimal digits", "run `elastic-vllm pin --stack STACK`")
    if from_hub and given:
        problems.add("modelSource", "hub, so --weights is not for it", "leave --weights out, or set it to host")
    if problems.found:
        wrong = "".join(f"\n  - {problem}" for problem in problems.found)
        raise BadInputError(f"settings are wrong; nothing was collected:{wrong}", f"correct them in {file.name}")
    architecture = making.architecture()
    parts = [collect.image(role, reference, architecture) for role, reference in images.items()]
    if from_hub or given:
        parts.append(_weights(values, model, given, architecture))
    if server:
        runtime = None if in_cluster else values.get("containerRuntime", "docker")
        lacking = packages.part(server, runtime=runtime, gpus=not in_cluster and values["accelerator"] == "nvidia")
        parts += [lacking] if lacking else []
    archives = pulumi_cli.archives(ROOT / "requirements.txt", architecture, values["target"])
    cli = pulumi_cli.part(archives, pulumi)
    parts += [cli] if cli else []
    parts += [collect.wheels(ROOT), collect.project(ROOT, commit)]
    return [*parts, collect.text("stack", f"stack/{file.path.name}", file.path.read_text(encoding="utf-8"))]


def _weights(values: Mapping[str, str], model: Model, given: Path | None, architecture: str) -> Wanted:
    """Return the model's weights: files for a server, an image for a cluster."""
    revision, hub = values["modelRevision"], values["hfEndpoint"]
    if values["target"] in CLUSTERS:
        if given:
            return weights_image.from_directory(model, given, architecture)
        return weights_image.from_hub(model, revision, hub, architecture)
    return weights.from_directory(model, given) if given else weights.from_hub(model, revision, hub)

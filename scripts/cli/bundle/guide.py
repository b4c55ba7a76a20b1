"""The guide in a bundle: the steps at the site, in order, with each command as it is typed."""

from collections.abc import Mapping, Sequence

from components.bundle.manifest import MANIFEST, SIGNATURE, SUMS
from components.machine.host import STORE
from scripts.cli.bundle.making import Base
from scripts.cli.bundle.signature import NAMESPACE, SIGNER
from scripts.cli.bundle.wanted import Wanted

PATH = "site/README.md"


def text(stack: str, parts: Sequence[Wanted], *, weights_directory: str, base: Base | None) -> str:
    """Return the guide in Markdown, for the parts of this bundle."""
    there = {part.name: part for part in parts}
    sections = [
        _carry(stack, base),
        _check(),
        _install(stack, pulumi="pulumi" in there, base=base),
        _settings(stack, weights="weights" in there),
        _up(stack, pulumi="pulumi" in there),
        _space(there, weights_directory),
        _update(stack),
        _elastic(stack),
    ]
    return _numbered(stack, sections)


def of_cluster(stack: str, parts: Sequence[Wanted], *, base: Base | None) -> str:
    """Return the guide for a stack in a cluster, whose images come from a registry of the site."""
    there = {part.name: part for part in parts}
    sections = [
        _carry(stack, base, CONTROL_OF_CLUSTER),
        _check(),
        _install(stack, pulumi="pulumi" in there, base=base),
        _push(stack, there, base),
        _up(stack, pulumi="pulumi" in there, shown=PULLED),
        _space_of_cluster(there),
        _update_of_cluster(stack),
        _elastic(stack),
    ]
    return _numbered(stack, sections)


def _numbered(stack: str, sections: Sequence[str]) -> str:
    return f"# The bundle of stack {stack}, at its site\n\n" + "\n".join(
        section.replace("## ", f"## {number}. ", 1) for number, section in enumerate(sections, 1)
    )


CONTROL = f"""
There are two machines at the site: the control machine, which runs the program and has Python with its venv module
(version and architecture as {MANIFEST} says: `python`, `architecture`), an SSH client and the private key; and the
server with the GPUs, which needs only an SSH server. The commands below run on the control machine, in this directory.
"""
CONTROL_OF_CLUSTER = f"""
The site has the cluster, a registry that its nodes pull from, and a control machine that runs the program: it reaches
both, and has Python with its venv module (version and architecture as {MANIFEST} says: `python`, `architecture`),
skopeo and a kubeconfig. The commands below run on the control machine, in this directory.
"""


def _carry(stack: str, base: Base | None, control: str = CONTROL) -> str:
    delta = ""
    if base:
        delta = f"""
This is a delta: it leaves out what the bundle before it has, the one whose {MANIFEST} has the SHA-256
`{base.sha256}`. If that one was never used at the site, carry it too.
"""
    return f"""## What to carry

- This directory, on any disk: complete, with nothing added.
- The signer's public key, as `signer.pub`, by another way than the disk; otherwise it proves nothing.
{delta}{control}The stack is `{stack}`. Set the project's directory there, and the path of the signer's public key:

    export PROJECT="$HOME/elastic-vllm" SIGNER="$HOME/signer.pub"
"""


def _check() -> str:
    return f"""## Is it the one that was sent?

Before you run anything from it, check it with the site's own tools:

    echo "{SIGNER} $(cut -d ' ' -f 1,2 "$SIGNER")" > "$HOME/allowed"
    ssh-keygen -Y verify -f "$HOME/allowed" -I {SIGNER} -n {NAMESPACE} -s {SIGNATURE} < {SUMS}
    sha256sum --check --strict --quiet {SUMS}

The first prints `Good "{NAMESPACE}" signature`; the second prints nothing if all is well.
"""


def _install(stack: str, *, pulumi: bool, base: Base | None) -> str:
    cli = (
        """
The Pulumi CLI and its plugins are then in `.pulumi` of the project. In each shell that runs it:

    cd "$PROJECT"
    export PULUMI_HOME="$PWD/.pulumi" PATH="$PWD/.pulumi/bin:$PATH" PULUMI_SKIP_UPDATE_CHECK=true
    pulumi login --local
"""
        if pulumi
        else """
There is no Pulumi CLI in this bundle. `scripts/rehearse` does the same without it, or install the CLI and the plugins
that the project's docs/getting-started/server.md names from archives that you carry.
"""
    )
    more = " --base BUNDLE-BEFORE" if base else ""
    new = "\n`--base` is needed only if the control machine is new: `install` then asks for it.\n" if base else ""
    unless = "    # only if the project is new" if base else ""
    return f"""## Install, on the control machine

Nothing is fetched.

    mkdir -p "$PROJECT" && tar -xzf project/elastic-vllm.tar.gz --strip-components 1 -C "$PROJECT"{unless}
    "$PROJECT/scripts/elastic-vllm" bundle verify . --key "$SIGNER"
    "$PROJECT/scripts/elastic-vllm" bundle install .{more}
    cp -n stack/Pulumi.{stack}.yaml "$PROJECT/stacks/"
{new}
`verify` names each bad, missing or extra file, and each entry that would lead out of its archive; stop if it does.
(With `--layers` it checks compressed layers of images too, as `build` did: minutes for a large image.)
{cli}"""


def _settings(stack: str, *, weights: bool) -> str:
    of_host = (
        ""
        if weights
        else """
The weights are not in this bundle: they must be on the server already (`modelSource: host` stays).
"""
    )
    return f"""## Settings

In `stacks/Pulumi.{stack}.yaml` of the project, beside the server's address, user and host key:

    elastic-vllm:bundle: /media/disk/bundle
    elastic-vllm:bundleKey: ~/signer.pub

`bundle` is this directory, `bundleKey` the signer's public key: `up` checks the bundle once more before anything of it
goes to the server. Model, revision and images come from it: leave `hfToken` out. Where the disk is plugged
into the server, so that nothing large goes over SSH, this names the directory there, beside the above:

    elastic-vllm:bundleOnHost: /media/disk/bundle

`bundle` must then hold {MANIFEST}, {SUMS} and {SIGNATURE} at least; each file is checked on the server as it is copied.
{of_host}"""


def _push(stack: str, parts: Mapping[str, Wanted], base: Base | None) -> str:
    packages = (
        """
The control machine lacked skopeo when it was probed. It is in this bundle, with all that it needs:

    sudo dpkg --install packages/*.deb
"""
        if "packages" in parts
        else ""
    )
    roles = [name.removeprefix("image-") for name in parts if name.startswith("image-")]
    claim = "" if "weights" in roles else "The weights are not in this bundle: `weightsClaim` names where they are.\n"
    more = " --base BUNDLE-BEFORE" if base else ""
    return f"""## Images to the registry, and the settings
{packages}
Log in with a user that may push (`skopeo login registry.example.com`), then send the images ({", ".join(roles)}):

    "$PROJECT/scripts/elastic-vllm" bundle push . --key "$SIGNER" --registry registry.example.com/elastic-vllm{more}

`--ca FILE` names the CA of the registry's certificate where the system does not know it. If the command is interrupted,
run it again: layers that the registry has are not sent again. It ends with the settings for
`stacks/Pulumi.{stack}.yaml` of the project, which name the images by their digests. Put them there, beside the
cluster's own (`kubeconfig`, `kubeContext`, `namespace`); remove `modelRevision`, `hfToken` and `weightsStorageClass`.
{claim}
If the nodes have to log in to pull, `imagePullSecret: registry` names a Secret of this form, with a user that may only
pull (for target gke, with Artifact Registry, they need none):

    kubectl create secret generic registry --namespace NAMESPACE --type kubernetes.io/dockerconfigjson \\
      --from-file .dockerconfigjson=config.json
"""


def _space_of_cluster(parts: Mapping[str, Wanted]) -> str:
    weights = "`du -sh images/weights-*`, twice: packed, and unpacked" if "image-weights" in parts else "none"
    return f"""## Disks

| where | what | room |
| --- | --- | --- |
| this disk | the bundle | `du -sh .` |
| control machine | the project, its packages, the CLI | 1 GB; the bundle itself can stay on the disk |
| registry | images | `du -sh images`, for each model that is kept |
| each node with GPUs | vLLM's image, unpacked | two to three times `du -sh images/vllm-*` |
| each node with GPUs | weights | {weights} |

Nodes delete images that nothing uses when their disks fill up (kubelet's `imageGCHighThresholdPercent`).
"""


def _update_of_cluster(stack: str) -> str:
    return f"""## Updates in the field

On the connected machine, with the {MANIFEST} of the bundle that is here (a small file: carry it out once):

    scripts/elastic-vllm bundle build --stack {stack} --since {MANIFEST} --output /media/disk/delta --sign-key KEY

The delta holds only what is new. Here: check it as above, `scripts/elastic-vllm bundle install` it, and push it with
`--base` and the directory of the bundle before. Then the new settings, and `pulumi up --stack {stack}`. The way back is
the settings of before: the registry still has their images.
"""


SENT = """
`up` shows what it will send, and the space that it needs, before it sends anything. If it is interrupted, run it again:
it resumes, and files that are on the server already are not sent again.
"""
PULLED = """
The nodes pull the images while `up` waits for the pods: minutes for vLLM's and the weights, once on each node.
"""


def _up(stack: str, *, pulumi: bool, shown: str = SENT) -> str:
    up = (
        f"pulumi stack init {stack}      # the first time\n    pulumi up --stack {stack}"
        if pulumi
        else (f"scripts/rehearse up --stack {stack}")
    )
    other = f"\nWithout the Pulumi CLI: `scripts/rehearse up --stack {stack}`.\n" if pulumi else ""
    return f"""## Up

    cd "$PROJECT"
    {up}
    scripts/elastic-vllm verify --stack {stack}
    scripts/elastic-vllm handoff --stack {stack}
{shown}{other}"""


def _space(parts: dict[str, Wanted], weights_directory: str) -> str:
    weights = parts.get("weights")
    directory = weights.directory.removeprefix("weights/") if weights else "ORG--NAME--REVISION"
    return f"""## Disks

| where | what | room |
| --- | --- | --- |
| this disk | the bundle | `du -sh .` |
| control machine | the project, its packages, the CLI | 1 GB; the bundle itself can stay on the disk |
| server, {weights_directory}/{directory} | weights | `du -sh weights`, for each model that is kept |
| server, {STORE} | image files, packages | `du -sh images packages` |
| server, Docker's or Podman's own directory | the same images, unpacked | two to three times `du -sh images` |

Weights of earlier models stay until somebody removes them, so that you can return to them.
"""


def _update(stack: str) -> str:
    return f"""## Updates in the field

On the connected machine, with the {MANIFEST} of the bundle that is here (a small file: carry it out once):

    scripts/elastic-vllm bundle build --stack {stack} --since {MANIFEST} --output /media/disk/delta --sign-key KEY

The delta holds only what is new. Here: check it as above, `scripts/elastic-vllm bundle install` it, then one setting
and one command:

    elastic-vllm:bundle: /media/disk/delta     # another model, revision or image comes with it
    pulumi up --stack {stack}

The way back is the same with the old directory in `bundle`: its weights are still on the server. When the new ones
are good, remove the old model's directory on the server by hand. A changed server (kernel, packages) is probed again:
`scripts/elastic-vllm bundle probe --stack {stack} > probe.json`, carried out, for `build --probe`.
"""


def _elastic(stack: str) -> str:
    return f"""## What the Elastic admin gets

`scripts/elastic-vllm handoff --stack {stack}` writes it: URL, key file, the CA's certificate, bodies for connector and
inference endpoint. Kibana and Elasticsearch reach the endpoint over the site's own network; nothing of this needs the
internet. An air-gapped Elastic has further needs, which are not in this bundle:

- Elastic's own guide: https://www.elastic.co/docs/deploy-manage/deploy/self-managed/air-gapped-install (package
  registry for integrations, artifact registry, ELSER and other models). Kibana: `xpack.fleet.isAirGapped: true`.
- Product documentation for the AI Assistants: a mirror of `kb-product-doc-PRODUCT-X.Y.zip` (elasticsearch, kibana,
  observability, security; X.Y as Kibana's) that `xpack.productDocBase.artifactRepositoryUrl` in kibana.yml names
  (https:// or file://). How:
  https://www.elastic.co/docs/explore-analyze/ai-features/ai-chat-experiences/ai-assistant-host-doc-artifacts
- The CA's certificate: for the connector in kibana.yml (`xpack.actions.customHostSettings`), for the inference endpoint
  in the truststore of every Elasticsearch node. The hand-off says how.
- `xpack.actions.allowedHosts` must let the endpoint through where it is set.
"""

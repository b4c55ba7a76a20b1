"""The model's weights as a volume of vLLM's pods."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pulumi

from components import render
from components.catalogue.models import Model
from components.kubernetes import objects
from components.kubernetes.objects import WEIGHTS, Cluster
from components.kubernetes.weights_check import MOUNTED_AT, WeightsCheck, WeightsCheckArgs
from components.serving.model_weights import DOWNLOAD_UID

DOWNLOAD_HOURS = 12


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Volume in which a pod finds the weights."""

    source: Mapping[str, Any]
    """The volume, without its name."""
    sub_path: str
    """The model's directory in it; empty for its root."""
    ready: Sequence[pulumi.Resource]


@dataclass(frozen=True, kw_only=True)
class ClusterWeightsArgs:
    """The weights, and their place; one of claim, image and storage class is given."""

    cluster: Cluster
    claim: str
    image: str
    storage_class: str
    pods: int
    """Pods that may mount the volume at once."""
    model: Model
    directory: str
    """The model's directory in a claim."""
    weights_gb: float
    loader_image: str
    """Image with the hub's client: vLLM's own."""
    hf_endpoint: str
    revision: str
    hf_token: pulumi.Input[str]
    """Secret; empty where none is needed."""
    placement: Mapping[str, Any]
    """Nodes of the pods that read the weights: the volume must be there as well."""
    formats: Mapping[str, str]
    """Formats of the files (`weights_formats`)."""
    parked: bool
    """True if no pod reads the weights, and there may be no node for one."""


class ClusterWeights(pulumi.ComponentResource):
    """The weights are in a volume that vLLM's pods mount read-only.

    With a storage class, a Job has downloaded them from the hub into a claim of the stack's own, complete and of the
    pinned revision; the token is known to that Job alone. Claims and images of others are left as they are, and a pod
    has looked at what is in them.
    """

    volume: Volume

    def __init__(self, name: str, args: ClusterWeightsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:ClusterWeights", name, None, opts)
        if args.image:
            source = {"image": {"reference": args.image, "pullPolicy": objects.image_pull_policy(args.image)}}
            self.volume = self._checked(name, args, Volume(source=source, sub_path="", ready=()))
        elif args.claim:
            volume = Volume(source=_claim(args.claim), sub_path=args.directory, ready=())
            self.volume = self._checked(name, args, volume)
        else:
            manifest = claim_manifest(args)
            ready = self._download(name, args, manifest)
            self.volume = Volume(source=_claim(manifest["metadata"]["name"]), sub_path=args.directory, ready=(ready,))
        self.register_outputs({})

    def _checked(self, name: str, args: ClusterWeightsArgs, volume: Volume) -> Volume:
        return volume if args.parked else replace(volume, ready=(self._check(name, args, volume),))

    def _check(self, name: str, args: ClusterWeightsArgs, volume: Volume) -> pulumi.Resource:
        filled = bool(args.image or args.claim)
        return WeightsCheck(
            f"{name}-check",
            WeightsCheckArgs(
                cluster=args.cluster,
                image=args.loader_image,
                placement=args.placement,
                source=volume.source,
                directory=volume.sub_path,
                setting="weightsImage" if args.image else "weightsClaim" if args.claim else "weightsStorageClass",
                formats=args.formats if filled else None,
            ),
            parent=self,
            depends_on=volume.ready,
        )

    def _download(self, name: str, args: ClusterWeightsArgs, manifest: objects.Manifest) -> pulumi.Resource:
        cluster, claim_name = args.cluster, manifest["metadata"]["name"]
        claim = cluster.declare(
            f"{name}-claim",
            manifest,
            parent=self,
            # The last pods with the weights before may let requests end for ten minutes.
            custom_timeouts=pulumi.CustomTimeouts(delete="20m"),
        )
        token = cluster.declare(
            f"{name}-token",
            objects.secret(
                cluster,
                WEIGHTS,
                pulumi.Output.secret(pulumi.Output.from_input(args.hf_token).apply(lambda token: {"token": token})),
            ),
            parent=self,
        )
        # A Job whose volume is never bound would be waited for as long as a download may take.
        check = self._check(name, args, Volume(source=_claim(claim_name, read_only=False), sub_path="", ready=(claim,)))
        return cluster.declare(
            f"{name}-download",
            job_manifest(args, claim_name),
            parent=self,
            depends_on=[claim, token, check],
            custom_timeouts=pulumi.CustomTimeouts(create=f"{DOWNLOAD_HOURS}h"),
        )


def claim_gb(weights_gb: float) -> int:
    """Return the size of the claim for one revision, in GB."""
    return math.ceil(1.1 * weights_gb) + 1


def claim_manifest(args: ClusterWeightsArgs) -> dict[str, Any]:
    """The claim that the Job fills with one revision.

    Other weights, and another size, class or access mode, get another claim: one that exists can't become smaller, has
    one access mode, and grows only where its class allows that.
    """
    mode = "ReadWriteMany" if args.pods > 1 else "ReadWriteOnce"
    spec = {
        "storageClassName": args.storage_class,
        "accessModes": [mode],
        "resources": {"requests": {"storage": f"{claim_gb(args.weights_gb)}G"}},
    }
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    name = f"{args.cluster.prefix}-{WEIGHTS}-{args.revision[:7]}-{digest[:4]}"
    # A class that binds with the first pod would be waited for before the Job exists.
    annotations = {"pulumi.com/skipAwait": "true"}
    return {
        **args.cluster.object("v1", "PersistentVolumeClaim", WEIGHTS, name, annotations=annotations),
        "spec": spec,
    }


def job_manifest(args: ClusterWeightsArgs, claim: str) -> dict[str, Any]:
    """The Job that downloads one revision of one model into its claim, whose name it has."""
    cluster = args.cluster
    container = {
        "name": "download",
        "image": args.loader_image,
        "imagePullPolicy": objects.image_pull_policy(args.loader_image),
        "command": objects.shell(
            'mkdir -p "$DIRECTORY" && '
            'exec python3 -I -c "$PROGRAM" "$MODEL" "$REVISION" "$DIRECTORY" "$UNNEEDED" download '
            "</run/elastic-vllm/token"
        ),
        "env": [
            {"name": key, "value": value}
            for key, value in {
                "PROGRAM": (render.FILES / "weights/download_weights.py").read_text("utf-8"),
                "MODEL": args.model.name,
                "REVISION": args.revision,
                "DIRECTORY": f"{MOUNTED_AT}/{args.directory}",
                "UNNEEDED": json.dumps(list(args.model.unneeded_files)),
                "HF_ENDPOINT": args.hf_endpoint,
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HOME": "/tmp/hub",  # noqa: S108 - inside the container
            }.items()
        ],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "8Gi"}},
        "securityContext": objects.container_security(cluster, DOWNLOAD_UID),
        "volumeMounts": [
            {"name": "weights", "mountPath": MOUNTED_AT},
            {"name": "token", "mountPath": "/run/elastic-vllm", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    return {
        # Else a Job that has failed would fail each later `up`, without another try.
        **cluster.object("batch/v1", "Job", WEIGHTS, claim, annotations={"pulumi.com/replaceUnready": "true"}),
        "spec": {
            "backoffLimit": 4,
            "template": {
                "metadata": {"labels": {**cluster.labels(WEIGHTS), objects.NETWORK: WEIGHTS}},
                "spec": {
                    **objects.pod(cluster, DOWNLOAD_UID),
                    **args.placement,
                    "restartPolicy": "Never",
                    "containers": [container],
                    "volumes": [
                        {"name": "weights", "persistentVolumeClaim": {"claimName": claim}},
                        {"name": "token", "secret": {"secretName": f"{cluster.prefix}-{WEIGHTS}"}},
                        {"name": "tmp", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def _claim(name: str, *, read_only: bool = True) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name, **({"readOnly": True} if read_only else {})}}

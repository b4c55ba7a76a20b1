"""Looks at the volume with a model's weights as the pods that fill or read it will see it, before one starts."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi import dynamic

from components import render
from components.kubernetes import api, objects, probe_pods
from components.kubernetes.objects import INSTANCE, NETWORK, VLLM, Cluster
from components.serving.model_weights import DOWNLOAD_UID
from components.serving.vllm_process import VLLM_UID

# gRPC would print a traceback for each error that a provider raises; Pulumi shows the error's own words.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

MOUNTED_AT = "/models"
Props = dict[str, Any]
"""kubeconfig, context, namespace, pod (JSON)."""


@dataclass(frozen=True, kw_only=True)
class WeightsCheckArgs:
    """The weights, and who looks at them."""

    cluster: Cluster
    image: str
    """Image with bash and the GNU tools: vLLM's own, which the nodes need anyway."""
    placement: Mapping[str, Any]
    """Nodes that the volume must be on."""
    source: Mapping[str, Any]
    """The volume, without its name."""
    directory: str
    """The model's directory in it; empty for its root."""
    setting: str
    """Setting that names the volume."""
    formats: Mapping[str, str] | None
    """Formats of the files (`weights_formats`); None where a download is yet to fill the volume."""


def _script(args: WeightsCheckArgs) -> str:
    if args.formats is None:
        script = render.script("kubernetes/check-volume.sh", volume=MOUNTED_AT, setting=args.setting)
    else:
        script = render.script(
            "weights/check-weights.sh",
            weights=f"{MOUNTED_AT}/{args.directory}".rstrip("/"),
            place_settings=f"{args.setting}, model",
            fetch=f"fill the volume again, or correct {args.setting}",
            as_server="yes",
            **args.formats,
        )
        script += 'check_weights "$WEIGHTS"\n'
    return script


def pod_manifest(args: WeightsCheckArgs) -> dict[str, Any]:
    """The pod that looks. It is walled in as vLLM is, and no Service or budget selects it."""
    cluster = args.cluster
    user, fills = (VLLM_UID, False) if args.formats is not None else (DOWNLOAD_UID, True)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{cluster.prefix}-weights-check",
            "namespace": cluster.namespace,
            "labels": {"app.kubernetes.io/name": "elastic-vllm", INSTANCE: cluster.stack, NETWORK: VLLM},
        },
        "spec": {
            **objects.pod(cluster, user),
            **args.placement,
            # A volume of one node is where vLLM's pod has it.
            "affinity": {
                "podAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 100,
                            "podAffinityTerm": {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": cluster.selector(VLLM)},
                            },
                        }
                    ]
                }
            },
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "check",
                    "image": args.image,
                    "imagePullPolicy": objects.image_pull_policy(args.image),
                    "command": ["bash", "-c", _script(args)],
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}},
                    "securityContext": objects.container_security(cluster, user),
                    "volumeMounts": [{"name": "weights", "mountPath": MOUNTED_AT, "readOnly": not fills}],
                }
            ],
            "volumes": [{"name": "weights", **args.source}],
        },
    }


class WeightsCheckProvider(dynamic.ResourceProvider):
    """Runs the pod where the weights, or what vLLM loads of them, are others."""

    replaced_by: tuple[str, ...] = ()

    def diff(self, _id: str, olds: Props, news: Props) -> dynamic.DiffResult:
        """Look again where the pod differs."""
        return dynamic.DiffResult(changes=any(olds.get(key) != news.get(key) for key in ("context", "pod")))

    def create(self, props: Props) -> dynamic.CreateResult:
        """Look. Raises ClusterError."""
        return dynamic.CreateResult("weights", outs=_look(props))

    def update(self, _id: str, _olds: Props, news: Props) -> dynamic.UpdateResult:
        """Look. Raises ClusterError."""
        return dynamic.UpdateResult(outs=_look(news))


class WeightsCheck(dynamic.Resource, module="kubernetes", name="WeightsCheck"):
    """The weights are there, complete, and readable by vLLM's user; or the volume for them can be filled."""

    def __init__(
        self, name: str, args: WeightsCheckArgs, *, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource] = ()
    ) -> None:
        inputs = {**args.cluster.access(), "pod": json.dumps(pod_manifest(args), sort_keys=True)}
        options = pulumi.ResourceOptions(parent=parent, depends_on=[*args.cluster.ready, *depends_on])
        super().__init__(WeightsCheckProvider(), name, inputs, options)


def _look(props: Props) -> Props:
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(api.connect(props["kubeconfig"], props["context"]))
    probe_pods.run(core, props["namespace"], [json.loads(props["pod"])], "the weights check's pod")
    return props

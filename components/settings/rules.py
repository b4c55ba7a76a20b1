"""Settings that are right by themselves, but not together: one table, checked once everything is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from components.catalogue.models import LEAST_SAFE_VLLM, WEIGHTS_SHARE
from components.catalogue.sizing import GB, GIB
from components.containers.podman import PODMAN
from components.machine.ssh import STANDARD_SSH_PORT
from components.settings import downloads
from components.settings import gke as gke_settings
from components.settings.gcp import (
    DELETED_BY_GOOGLE,
    LEAST_BOOT_DISK_GB,
    PROVISIONING_OF,
    GcpSettings,
    GoogleSettings,
)
from components.settings.gke import GkeSettings
from components.settings.kubernetes import NODE_PORTS, KubernetesSettings
from components.settings.model import REVISION
from components.settings.problems import LOCAL_IMAGE, PINNED_IMAGE, Problems
from components.settings.targets import EXISTING, TARGETS_OF
from components.settings.tls import USED_BY

if TYPE_CHECKING:
    from components.settings.stack import Settings

PIN_FIX = "run `scripts/elastic-vllm pin --stack STACK`"
GOOGLE_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
GOOGLE_REGISTRY = re.compile(r"[a-z0-9.-]+\.pkg\.dev/|([a-z]+\.)?gcr\.io/")
PUBLIC_FIX = "use tls provided, with a certificate from a public CA"


@dataclass(frozen=True)
class Facts:
    """A stack's settings: as read, as written, and what follows from several of them."""

    settings: Settings
    values: Mapping[str, str]
    """The settings as written, with the defaults."""
    given: Callable[[str], bool]
    """True if a setting differs from its default."""

    @property
    def gcp(self) -> GcpSettings:
        """The settings of target gcp; only rules for it ask for them."""
        return cast(GcpSettings, self.settings.gcp)

    @property
    def gke(self) -> GkeSettings:
        """The settings of target gke; only rules for it ask for them."""
        return cast(GkeSettings, self.settings.gke)

    @property
    def google(self) -> GoogleSettings:
        """The settings of target gcp or gke; only rules for them ask for them."""
        return cast(GoogleSettings, self.settings.google)

    @property
    def kubernetes(self) -> KubernetesSettings:
        """The endpoint's settings in a cluster; only rules for target kubernetes or gke ask for them."""
        return cast(KubernetesSettings, self.settings.kubernetes)

    @property
    def needed_gib(self) -> float:
        """GPU memory that the model's weights take."""
        return self.settings.model.weights_gb * GB / GIB

    @property
    def needed_with_cache_gib(self) -> float:
        """GPU memory for weights and KV cache."""
        return self.needed_gib / WEIGHTS_SHARE

    @property
    def usable_gib(self) -> float:
        """GPU memory that vLLM may use."""
        gpus = self.settings.gpus
        return gpus.count * gpus.memory_gib * gpus.memory_utilization

    @property
    def memory_percent(self) -> float:
        """Share of the GPU memory that vLLM may use, in percent."""
        return self.settings.gpus.memory_utilization * 100

    @property
    def memory_settings(self) -> str:
        """The settings that decide how much GPU memory there is."""
        settings = "machineType" if self.settings.google else "gpuCount, gpuMemoryGib"
        return f"{settings}: each replica has the whole model on one node" if self.settings.kubernetes else settings

    @property
    def brought_by(self) -> str:
        """The setting by which the weights are there already."""
        if not self.settings.kubernetes:
            return "modelSource host"
        return "weightsImage" if self.kubernetes.weights_image else "weightsClaim"

    @property
    def vllm_version(self) -> tuple[int, ...] | None:
        """Version in the vLLM image's tag; empty if it is no released one, None if the image is wrong anyway."""
        return _image_version(self.values["vllmImage"])

    @property
    def nginx_version(self) -> tuple[int, ...] | None:
        """The same for the Nginx image."""
        return _image_version(self.values["nginxImage"])

    @property
    def least_vllm(self) -> tuple[int, ...]:
        """The oldest vLLM that is safe and serves the model."""
        return max(LEAST_SAFE_VLLM, version(self.settings.model.least_vllm))

    @property
    def least_vllm_text(self) -> str:
        """The same as text."""
        return ".".join(map(str, self.least_vllm))

    @property
    def machine_zones(self) -> str:
        """Zones that have the machine type."""
        return ", ".join(self.google.machine_type.zones)

    @property
    def provisioning_models(self) -> str:
        """Provisioning models that offer the machine type, where not all do."""
        return " or ".join(PROVISIONING_OF.get(self.google.machine_type.name, ()))

    @property
    def ssh_client(self) -> str:
        """Whose address reaches the VM's SSH port."""
        return "the bastion" if self.gcp.ssh_via == "bastion" else "this machine"

    @property
    def least_weights_disk_gb(self) -> int:
        """Disk for the model's weights; ext4 takes some for itself."""
        return math.ceil(self.settings.model.weights_gb * 1.05)

    @property
    def least_boot_disk_gb(self) -> int:
        """Disk of a node that has the model's weights in an image."""
        return LEAST_BOOT_DISK_GB + math.ceil(2 * self.settings.model.weights_gb)

    @property
    def needs_the_internet(self) -> str:
        """Images and weights that nodes without a way out could not fetch; Google's own registries answer them."""
        images = [self.values[key] for key in ("vllmImage", "nginxImage", "weightsImage") if self.values[key]]
        elsewhere = [image.partition("@")[0] for image in images if not GOOGLE_REGISTRY.match(image)]
        weights = ["the model's weights"] if self.settings.model_source == "hub" else []
        return ", ".join([*weights, *elsewhere])

    @property
    def has_private_ca(self) -> bool:
        """True if clients must be configured to trust the endpoint's certificate."""
        staging = self.values["tls"] == "letsencrypt" and self.values["acmeServer"] == "staging"
        return self.values["tls"] == "private-ca" or bool(self.values["tlsCa"]) or staging


@dataclass(frozen=True)
class Rule:
    """A contradiction between settings."""

    key: str
    """The setting that the message names."""
    when: Callable[[Facts], object]
    """True if the settings contradict each other."""
    cause: str
    """May name facts: {f.settings.model.name}."""
    fix: str
    """May name facts, like the cause."""
    unless: tuple[str, ...] = ()
    """Settings whose own problem hides this one."""


def check(problems: Problems, settings: Settings) -> None:
    """Record every contradiction."""
    facts = Facts(settings, problems.values, problems.given)
    for rule in (*RULES, *_of_target(settings)):
        if not problems.keys.intersection(rule.unless) and rule.when(facts):
            problems.add(rule.key, rule.cause.format(f=facts), rule.fix.format(f=facts))


def _of_target(settings: Settings) -> Sequence[Rule]:
    if settings.gcp:
        return (*GOOGLE_RULES, *VM_RULES)
    if settings.gke:
        return (*GKE_RULES, *CLUSTER_RULES, *GOOGLE_RULES)
    return (*CLUSTER_RULES, *KUBERNETES_RULES) if settings.kubernetes else ()


def version(text: str) -> tuple[int, ...]:
    """A released version as numbers; empty if it is none."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)(?![\d.]*[-.]?(a|b|rc|dev)\d)", text)
    return tuple(int(part) for part in match.groups()[:3]) if match else ()


def _image_version(image: str) -> tuple[int, ...] | None:
    match = PINNED_IMAGE.fullmatch(image) or LOCAL_IMAGE.fullmatch(image)
    return version(match["tag"]) if match else None


def _of_other_target(key: str) -> Rule:
    targets = TARGETS_OF[key]
    fix = "remove it" if EXISTING in targets else f"remove it, or set target to {' or '.join(targets)}"
    return Rule(
        key,
        lambda f: f.values["target"] not in targets and f.given(key),
        "has no effect with target {f.values[target]}",
        fix,
        ("target",),
    )


def _of_other_tls(key: str) -> Rule:
    modes = " or ".join(USED_BY[key])
    return Rule(
        key,
        lambda f: f.values["tls"] not in USED_BY[key] and f.given(key),
        "set, but tls is {f.values[tls]}",
        f"set tls to {modes}, or remove it",
        ("tls",),
    )


def _of_product(product: str) -> list[Rule]:
    url, key = f"{product}Url", f"{product}ApiKey"
    make = f"make an API key there, then `pulumi config set --secret {key}`"
    return [
        Rule(key, lambda f: f.values[url] and not f.values[key], f"not set, but {url} is", make),
        Rule(
            key,
            lambda f: f.values[key] and not f.values[url],
            f"set, but there is no {url}",
            f"set {url}, or remove it",
        ),
    ]


def _only_with_kibana(key: str) -> Rule:
    fix = "set kibanaUrl and kibanaApiKey, or remove it"
    return Rule(key, lambda f: f.given(key) and not f.values["kibanaUrl"], "set, but there is no kibanaUrl", fix)


def _only_with_bundle(key: str) -> Rule:
    fix = "set bundle to the bundle's directory, or remove it"
    return Rule(key, lambda f: f.given(key) and not f.values["bundle"], "set, but bundle is not", fix)


def _only_without_bundle(key: str) -> Rule:
    cause = "set, but nothing is downloaded with a bundle"
    return Rule(key, lambda f: f.given(key) and f.values["bundle"], cause, "remove it")


def _only_for_download(key: str) -> Rule:
    cause = "set, but nothing is downloaded with {f.brought_by}"
    hidden = ("weightsClaim", "weightsStorageClass")
    return Rule(key, lambda f: f.settings.model_source == "host" and f.values[key], cause, "remove it", hidden)


def _only_with_bastion(key: str) -> Rule:
    cause, fix = "set, but sshVia is {f.gcp.ssh_via}", "remove it, or set sshVia to bastion"
    return Rule(key, lambda f: f.gcp.ssh_via != "bastion" and f.values[key], cause, fix)


def _not_on_nodes(key: str) -> Rule:
    cause = "on no node of a pool whose nodes come and go"
    fix = "push it to a registry, e.g. Artifact Registry, and pin it there"
    return Rule(key, lambda f: LOCAL_IMAGE.fullmatch(f.values[key]), cause, fix, (key,))


def _only_in_existing_network(key: str) -> Rule:
    cause, fix = "set, but subnetwork is not", "remove it: the stack's own subnetwork has its ranges"
    return Rule(key, lambda f: f.values[key] and not f.gke.subnetwork, cause, fix, (key,))


def _only_for_own_disk(key: str) -> Rule:
    cause = "set, but weightsDisk is not managed"
    return Rule(key, lambda f: f.gcp.weights_disk and f.given(key), cause, "remove it")


RULES: Sequence[Rule] = (
    *map(_of_other_target, sorted(TARGETS_OF)),
    # Containers
    Rule(
        "containerRuntime",
        lambda f: f.settings.container_runtime == PODMAN and f.settings.gcp,
        "target gcp sets up Docker on its VM",
        "remove it, or use target existing",
    ),
    Rule(
        "sshUser",
        lambda f: (
            f.settings.container_runtime == PODMAN and f.values["target"] == EXISTING and f.values["sshUser"] != "root"
        ),
        "only root can use Podman's API (containerRuntime)",
        "set it to root, or use docker",
    ),
    Rule(
        "ipv6",
        lambda f: f.settings.container_runtime == PODMAN and f.settings.ipv6,
        "Podman publishes the port on IPv4 only (containerRuntime; host and endpointHost may ask for IPv6 as well)",
        "use IPv4, or docker",
    ),
    Rule(
        "dcgmImage",
        lambda f: f.settings.container_runtime == PODMAN and f.values["dcgmImage"],
        "the exporter needs Docker's GPU requests (containerRuntime)",
        "remove it, or use docker",
    ),
    Rule(
        "dcgmImage",
        lambda f: f.values["dcgmImage"] and not f.settings.gpu_count,
        "set, but there are no GPUs",
        "remove it, or set accelerator to nvidia",
    ),
    # Bundle
    *map(_only_with_bundle, ("bundleKey", "bundleOnHost")),
    Rule(
        "bundle",
        lambda f: f.values["bundle"] and f.settings.gcp,
        "set, but target is gcp",
        "set target to existing, or remove it",
    ),
    Rule(
        "bundle",
        lambda f: f.settings.bundle and not f.settings.bundle.weights_gb and f.values["modelSource"] != "host",
        "it has no weights",
        "set modelSource to host if they are on the server already",
    ),
    Rule(
        "tls",
        lambda f: f.values["bundle"] and f.values["tls"] == "letsencrypt",
        "no certificate can be requested without a network",
        "use private-ca or provided",
    ),
    *map(_only_without_bundle, ("hfToken", *downloads.KEYS)),
    # Model
    Rule(
        "vllmImage",
        lambda f: f.vllm_version == (),
        "its tag does not say a released version of vLLM",
        "tag it like v0.32.0",
    ),
    Rule(
        "vllmImage",
        lambda f: f.vllm_version and f.vllm_version < LEAST_SAFE_VLLM,
        "a vLLM this old has known vulnerabilities",
        "use {f.least_vllm_text} or newer",
    ),
    Rule(
        "vllmImage",
        lambda f: f.vllm_version and LEAST_SAFE_VLLM <= f.vllm_version < f.least_vllm,
        "a vLLM this old can't serve {f.settings.model.name}",
        "use {f.least_vllm_text} or newer",
    ),
    Rule(
        "model",
        lambda f: (
            f.settings.gpu_count
            and f.settings.model.accelerator == "none"
            and not f.values["vllmImage"].startswith("localhost/")
        ),
        "served on the CPU, but a registry's vLLM needs GPUs",
        "use another model or vllmImage",
    ),
    Rule(
        "model",
        lambda f: f.settings.vllm_gpu_count and f.needed_with_cache_gib > f.usable_gib,
        "its weights take {f.needed_gib:.0f} GiB, and with room for the KV cache {f.needed_with_cache_gib:.0f} GiB, "
        "but {f.settings.gpu_count} x {f.settings.gpus.memory_gib} GiB at {f.memory_percent:g} % are "
        "{f.usable_gib:.0f} GiB",
        "use a smaller model or more GPU memory ({f.memory_settings})",
        ("gpuMemoryGib", "gpuMemoryUtilization", "gpuCount", "machineType"),
    ),
    Rule(
        "modelRevision",
        lambda f: f.settings.model_source == "hub" and not REVISION.fullmatch(f.values["modelRevision"]),
        "not a commit of 40 hexadecimal digits",
        PIN_FIX,
    ),
    Rule(
        "hfToken",
        lambda f: f.settings.model_source == "hub" and f.settings.model.gated and not f.values["hfToken"],
        "not set, but {f.settings.model.name} is gated",
        "accept its licence on the hub, then `pulumi config set --secret hfToken`",
    ),
    *map(_only_for_download, ("hfToken", "modelRevision")),
    Rule(
        "maxModelLen",
        lambda f: f.settings.model.max_model_len and f.settings.max_model_len > f.settings.model.max_model_len,
        "more than the {f.settings.model.max_model_len} that {f.settings.model.name} was made for",
        "use {f.settings.model.max_model_len} or less",
    ),
    Rule(
        "servedModelName",
        lambda f: f.settings.served_model_name == f.settings.model.name,
        "the same as model",
        "choose a name that stays when the model changes",
    ),
    # Certificate
    *map(_of_other_tls, USED_BY),
    # Elastic
    *_of_product("kibana"),
    *_of_product("elasticsearch"),
    *map(_only_with_kibana, ("kibanaSpace", "kibanaDefaultConnector")),
    Rule(
        "elasticCa",
        lambda f: f.values["elasticCa"] and not (f.values["kibanaUrl"] or f.values["elasticsearchUrl"]),
        "set, but there is no kibanaUrl or elasticsearchUrl",
        "set one of them, or remove it",
    ),
    Rule(
        "elasticsearchUrl",
        lambda f: f.values["elasticsearchUrl"] and f.settings.tls.clients,
        "set, but an inference endpoint has no client certificate, which clientCertificates asks for",
        "use the connector (kibanaUrl) alone, or set clientCertificates to []",
    ),
    # Elastic Cloud trusts public CAs only, but for a connector on Hosted, whose settings may name a CA.
    Rule(
        "elasticsearchUrl",
        lambda f: (
            f.values["elasticsearchUrl"]
            and f.values["elasticDeployment"] in {"hosted", "serverless"}
            and f.has_private_ca
        ),
        "set, but Elasticsearch on {f.values[elasticDeployment]} can't be configured to trust a private CA",
        PUBLIC_FIX,
    ),
    # Together with a client certificate, a connector brings the CA along.
    Rule(
        "kibanaUrl",
        lambda f: (
            f.values["kibanaUrl"]
            and f.values["elasticDeployment"] == "serverless"
            and f.has_private_ca
            and not f.settings.tls.clients
        ),
        "set, but Kibana on serverless can't be configured to trust a private CA",
        PUBLIC_FIX,
    ),
)

LEAST_NGINX = (1, 27, 4)
"""The first Nginx whose upstreams follow names, and whose reload loses no idle connection."""
CLUSTER_RULES: Sequence[Rule] = (
    Rule(
        "containerRuntime",
        lambda f: f.settings.container_runtime == PODMAN,
        "the cluster's nodes have their own",
        "remove it",
    ),
    Rule(
        "bundle",
        lambda f: f.values["bundle"],
        "set, but target is {f.values[target]}",
        "remove it: `scripts/elastic-vllm bundle push` sends its images to a registry, and prints the settings",
    ),
    Rule(
        "nginxImage",
        lambda f: f.nginx_version and f.nginx_version < LEAST_NGINX,
        "an Nginx before 1.27.4 can't follow pods that come and go",
        "use 1.27.4 or newer",
    ),
    Rule(
        "nginxImage",
        lambda f: f.nginx_version == () and not f.values["nginxImage"].startswith("localhost/"),
        "its tag does not say the version of Nginx",
        "tag it like 1.30.2",
    ),
    Rule(
        "tls",
        lambda f: f.values["tls"] == "letsencrypt",
        "no ACME client runs in the cluster",
        "use private-ca or provided",
    ),
    Rule(
        "ipv6",
        lambda f: f.values["ipv6"] == "true",
        "the cluster decides which addresses Services have",
        "remove it",
    ),
    Rule(
        "maxSurge",
        lambda f: f.kubernetes.max_surge > f.kubernetes.replicas,
        "more than replicas",
        "use {f.kubernetes.replicas} or less",
        ("replicas", "maxSurge"),
    ),
)
"""In every cluster."""

KUBERNETES_RULES: Sequence[Rule] = (
    Rule(
        "endpointHost",
        lambda f: f.kubernetes.service_type != "ClusterIP" and not f.values["endpointHost"],
        "not set, but clients connect from outside the cluster (serviceType {f.kubernetes.service_type})",
        "set it to the name that clients will use, and point that at the load balancer or the nodes",
        ("serviceType",),
    ),
    Rule(
        "httpsPort",
        lambda f: f.kubernetes.service_type == "NodePort" and f.settings.https_port not in NODE_PORTS,
        "no port that a node may open for serviceType NodePort",
        "use 30000 to 32767",
        ("serviceType", "httpsPort"),
    ),
    Rule(
        "httpsSourceRanges",
        lambda f: f.kubernetes.service_type == "LoadBalancer" and not f.kubernetes.source_ranges,
        "empty: the load balancer would let nobody in",
        "give the CIDR ranges that Elastic connects from",
        ("httpsSourceRanges", "serviceType"),
    ),
    Rule(
        "httpsSourceRanges",
        lambda f: f.kubernetes.service_type != "LoadBalancer" and f.kubernetes.source_ranges,
        "set, but serviceType is {f.kubernetes.service_type}",
        "remove it: a NetworkPolicy of yours can restrict who reaches the gateway",
        ("serviceType",),
    ),
)
"""In a cluster that exists."""

GOOGLE_RULES: Sequence[Rule] = (
    Rule(
        "accelerator",
        lambda f: f.values["accelerator"] == "none",
        "none, but every machine type here has GPUs",
        "remove it",
    ),
    Rule(
        "zone",
        lambda f: f.google.zone not in f.google.machine_type.zones,
        "has no {f.google.machine_type.name}",
        "use {f.machine_zones}",
        ("zone", "machineType"),
    ),
    # How Google provides the VM
    Rule(
        "provisioningModel",
        lambda f: f.provisioning_models and f.google.provisioning_model not in f.provisioning_models.split(" or "),
        "{f.google.machine_type.name} is not sold so",
        "use {f.provisioning_models}",
        ("machineType", "provisioningModel"),
    ),
    Rule(
        "reservation",
        lambda f: f.google.provisioning_model == "RESERVATION_BOUND" and not f.google.reservation,
        "not set, but provisioningModel is RESERVATION_BOUND",
        "set it to the reservation's name",
        ("provisioningModel",),
    ),
    Rule(
        "reservation",
        lambda f: f.google.provisioning_model in {"SPOT", "FLEX_START"} and f.google.reservation,
        "set, but provisioningModel is {f.google.provisioning_model}",
        "remove it, or set provisioningModel to STANDARD or RESERVATION_BOUND",
    ),
    # Network
    Rule(
        "subnetwork",
        lambda f: f.google.subnetwork and not f.google.network,
        "set, but network is not",
        "name the VPC that it is in",
    ),
    Rule(
        "network",
        lambda f: f.google.network and not f.google.subnetwork,
        "set, but subnetwork is not",
        "name the subnetwork in the zone's region",
    ),
    Rule(
        "cloudNat",
        lambda f: f.google.network and f.google.cloud_nat,
        "true, but the network is not the stack's own",
        "set up Cloud NAT there, and set it to false",
    ),
    Rule(
        "httpsSourceRanges",
        lambda f: not f.google.https_source_ranges,
        "empty: nobody could use the endpoint",
        "give the CIDR ranges that Elastic connects from",
        ("httpsSourceRanges",),
    ),
)
"""Everywhere in Google Cloud."""

VM_RULES: Sequence[Rule] = (
    Rule(
        "deletionProtection",
        lambda f: f.gcp.provisioning_model in DELETED_BY_GOOGLE and f.gcp.deletion_protection,
        "true, but Google itself deletes a VM with provisioningModel {f.gcp.provisioning_model}",
        "set it to false",
    ),
    Rule(
        "deletionProtection",
        lambda f: f.gcp.parked and f.gcp.deletion_protection,
        "true, but parked deletes the VM",
        "set one of them to false",
    ),
    # Without them a VM reaches Google's own services only.
    Rule(
        "cloudNat",
        lambda f: not (f.gcp.external_address or f.gcp.cloud_nat or f.gcp.network),
        "the VM could fetch neither packages nor images nor weights: externalAddress is false as well",
        "set it to true, or use an existing network that has a way out (network, subnetwork)",
        ("externalAddress", "cloudNat"),
    ),
    Rule(
        "httpsPort",
        lambda f: f.settings.https_port == STANDARD_SSH_PORT,
        "the port of SSH, which would be open to httpsSourceRanges",
        "use another, e.g. 443",
    ),
    Rule(
        "ipv6",
        lambda f: f.settings.ipv6,
        "the VM has IPv4 addresses only (target gcp; endpointHost may ask for IPv6 as well)",
        "remove it, and set endpointHost to a name or an IPv4 address",
    ),
    # SSH
    Rule(
        "sshUser",
        lambda f: not GOOGLE_USER.fullmatch(f.values["sshUser"]),
        "not a name that a VM's user may have",
        "use lower-case letters, digits, '_' and '-'",
        ("sshUser",),
    ),
    Rule(
        "sshUser",
        lambda f: f.values["sshUser"] == "root" and f.gcp.image.startswith("projects/ubuntu-os-"),
        "Ubuntu's images do not let root in",
        "name the user to make, e.g. elastic-vllm",
    ),
    Rule(
        "bastion",
        lambda f: f.gcp.ssh_via == "bastion" and not f.values["bastion"],
        "not set, but sshVia is bastion",
        "write USER@HOST:PORT",
    ),
    *map(_only_with_bastion, ("bastion", "bastionHostKey")),
    Rule(
        "sshSourceRanges",
        lambda f: f.gcp.ssh_via == "iap" and f.gcp.ssh_source_ranges,
        "set, but with sshVia iap only Google's proxy connects",
        "remove it",
    ),
    Rule(
        "sshSourceRanges",
        lambda f: f.gcp.ssh_via != "iap" and not f.gcp.ssh_source_ranges,
        "empty: the VM could not be set up",
        "give the CIDR range that {f.ssh_client} connects from",
        ("sshSourceRanges",),
    ),
    Rule(
        "tunnelPort",
        lambda f: f.gcp.ssh_via != "iap" and f.given("tunnelPort"),
        "set, but sshVia is {f.gcp.ssh_via}",
        "remove it, or set sshVia to iap",
    ),
    # Disks
    *map(_only_for_own_disk, ("weightsDiskGb", "keepWeightsDisk")),
    Rule(
        "weightsDiskGb",
        lambda f: not f.gcp.weights_disk and f.gcp.weights_disk_gb < f.least_weights_disk_gb,
        "too small for {f.settings.model.name}, whose weights take {f.settings.model.weights_gb:g} GB",
        "use {f.least_weights_disk_gb} or more",
        ("weightsDiskGb", "weightsGb", "model"),
    ),
)
"""On a VM in Google Cloud."""

GKE_RULES: Sequence[Rule] = (
    Rule(
        "machineType",
        lambda f: not f.gke.accelerator,
        "not a size that the GPU pool can have",
        "use a2-ultragpu-1g, -2g, -4g or -8g, or a3-highgpu-1g, -2g, -4g or -8g",
        ("machineType",),
    ),
    Rule(
        "provisioningModel",
        lambda f: f.gke.provisioning_model not in gke_settings.PROVISIONING_MODELS,
        "a node pool has no such model",
        "use STANDARD, which takes a reservation as well",
        ("machineType", "provisioningModel"),
    ),
    # Private nodes
    Rule(
        "cloudNat",
        lambda f: not (f.gke.cloud_nat or f.gke.network) and f.needs_the_internet,
        "the private nodes could not fetch: {f.needs_the_internet}",
        "set it to true, copy images to Artifact Registry (vllmImage, nginxImage, weightsImage), or use an existing "
        "network that has a way out (network, subnetwork)",
        ("cloudNat", "vllmImage", "nginxImage"),
    ),
    *map(_not_on_nodes, ("vllmImage", "nginxImage")),
    Rule(
        "endpointHost",
        lambda f: ":" in f.values["endpointHost"],
        "an IPv6 address, but the load balancer has an IPv4 one",
        "remove it, or set it to a name",
        ("endpointHost",),
    ),
    *map(_only_in_existing_network, ("podRange", "serviceRange")),
    Rule(
        "podRange",
        lambda f: bool(f.gke.pod_range) != bool(f.gke.service_range),
        "one of podRange and serviceRange is set, the other is not",
        "set both, or none for GKE to make them",
        ("podRange", "serviceRange"),
    ),
    Rule(
        "podRange",
        lambda f: f.gke.network_project != f.gke.project and not (f.gke.pod_range or f.gke.service_range),
        "not set, but GKE makes no ranges in the subnetwork of another project",
        "set it and serviceRange to secondary ranges that its owner has made",
        ("network", "podRange", "serviceRange"),
    ),
    # Weights and keys
    Rule(
        "weightsStorageClass",
        lambda f: f.gke.machines > 1 and f.kubernetes.weights_storage_class in gke_settings.DISK_CLASSES,
        "a disk, which one node alone can use, but replicas and maxSurge make {f.gke.machines}",
        "use a class of Filestore, e.g. standard-rwx, or weightsImage",
        ("replicas", "maxSurge", "weightsStorageClass"),
    ),
    Rule(
        "bootDiskGb",
        lambda f: f.kubernetes.weights_image and f.gke.boot_disk_gb < f.least_boot_disk_gb,
        "too small for vLLM's image and weightsImage, which is kept packed and unpacked",
        "use {f.least_boot_disk_gb} or more",
        ("bootDiskGb", "weightsGb", "model"),
    ),
    Rule(
        "secretsKmsKey",
        lambda f: f.gke.kms_key and f"/locations/{f.gke.region}/" not in f.gke.kms_key,
        "a key of another location than the cluster's",
        "use one in {f.gke.region}",
        ("zone", "secretsKmsKey"),
    ),
)
"""In a cluster that Google Cloud provisions."""

"""Configuration of the cluster's programs, as texts."""

import json
from pathlib import Path
from typing import Any

import yaml

from scripts.lab.kubernetes.layout import (
    CLUSTER,
    CONTROL,
    DNS_ADDRESS,
    DNS_DOMAIN,
    METADATA_ADDRESS,
    PODS,
    SERVICES,
    VERSION,
    Machine,
)

CGROUP = "/elastic-vllm-kubernetes"
"""Control group of all pods, with one below it for each node: kubelet removes those of pods that it does not know."""
IMAGES = "localhost/elastic-vllm"
PAUSE_IMAGE = f"{IMAGES}/pause:{VERSION}"
CNI_PROGRAMS = "/usr/lib/cni"
SOCKET = "/run/containerd/containerd.sock"
REGISTRIES = "registries"
"""In a node's /var/lib: HOST:PORT/ca.crt is the CA of a registry that it pulls from."""
ENFORCER_NAME = "network-policies"


def kubeadm(coredns_tag: str) -> str:
    """Return what kubeadm makes certificates, kubeconfigs and the control plane's command lines from."""
    # Each runs once, and would end where a busy machine makes it late to renew its lease.
    alone = {"extraArgs": [{"name": "leader-elect", "value": "false"}]}
    return _yaml(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": CONTROL.address, "bindPort": 6443},
            "nodeRegistration": {"name": CONTROL.name, "criSocket": f"unix://{SOCKET}"},
        },
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "clusterName": CLUSTER,
            "kubernetesVersion": f"v{VERSION}",
            "controlPlaneEndpoint": f"{CONTROL.address}:6443",
            "networking": {"serviceSubnet": SERVICES, "podSubnet": PODS, "dnsDomain": DNS_DOMAIN},
            "controllerManager": alone,
            "scheduler": alone,
            "dns": {"imageRepository": IMAGES, "imageTag": coredns_tag},
            # Nothing in the laboratory has to outlive a crash of the machine.
            "etcd": {"local": {"extraArgs": [{"name": "unsafe-no-fsync", "value": "true"}]}},
        },
    )


def kubelet(node: Machine) -> str:
    """Return a node's configuration of kubelet."""
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(node.file("ca.crt"))},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": DNS_DOMAIN,
            "resolvConf": str(node.file("resolv.conf")),
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"{CGROUP}/{node.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            # The images are imported and can't be pulled again, and the disk is shared with everything else here.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi"},
        }
    )


def containerd() -> str:
    """Return the configuration of containerd 2."""
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/var/lib/{REGISTRIES}"

[plugins."io.containerd.cri.v1.runtime"]
  # A lower score than the parent's needs CAP_SYS_RESOURCE, which a container or a small VM may lack.
  restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{CNI_PROGRAMS}"]
  conf_dir = "/var/lib/cni/net.d"
"""


def pod_network(subnet: str) -> str:
    """Return a node's CNI configuration: each pod has a link to the node, which routes between them.

    Without a bridge, packets between two pods of a node pass the same rules as others do.
    """
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=2)


def kube_proxy(node: Machine) -> str:
    """Return a node's configuration of kube-proxy."""
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": PODS,
            "hostnameOverride": node.name,
            "clientConnection": {"kubeconfig": str(node.file("kube-proxy.kubeconfig"))},
            # The limits of the kernel's table of connections belong to this machine: no namespace may set them.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def resolver() -> str:
    """Return the configuration of the resolver outside of the cluster, which the cluster's DNS asks."""
    return f"""\
.:53 {{
    bind {CONTROL.address}
    hosts {{
        {METADATA_ADDRESS} metadata.google.internal
    }}
    errors
}}
"""


def control_plane(manifests: Path) -> dict[str, list[str]]:
    """Read the command lines of the control plane's programs from the manifests of kubeadm."""
    commands = {}
    for path in sorted(manifests.glob("*.yaml")):
        command = yaml.safe_load(path.read_text())["spec"]["containers"][0]["command"]
        commands[command[0]] = [str(argument) for argument in command]
    return commands


def _yaml(*documents: dict[str, Any]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)

"""NVIDIA's DCGM exporter: the GPUs' metrics, for an agent on the server."""

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from components.containers import declared
from components.elastic.agent import DCGM_PORT
from components.machine.host import Host

CONFINEMENT: dict[str, Any] = {
    "network_mode": "host",
    **declared.USERS_AS_THEY_ARE,
    "capabilities": {"drops": ["ALL"]},
    "security_opts": ["no-new-privileges:true"],
    "memory": 512,
    "memory_swap": 512,
    "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777", "/run": "rw,noexec,nosuid,nodev,size=16m"},  # noqa: S108 - inside the container
    "ulimits": [{"name": "nofile", "soft": 4096, "hard": 4096}],
    "log_driver": "json-file",
    "log_opts": {"max-size": "10m", "max-file": "3"},
}
"""Options of the container that Docker may complete or rewrite."""


@dataclass(frozen=True, kw_only=True)
class DcgmExporterArgs:
    """The host, and the exporter's image."""

    host: Host
    provider: docker.Provider
    image: docker.RemoteImage
    gpus: pulumi.Resource
    """Resource that proves that the GPUs work."""


class DcgmExporter(pulumi.ComponentResource):
    """DCGM's exporter answers /metrics on the server's loopback, and nowhere else.

    It shares the server's network, since it cannot listen on a unix socket, and has no capabilities, so it lacks the
    profiling metrics, which would need SYS_ADMIN. Elastic Agent ships the metrics.
    """

    def __init__(self, name: str, args: DcgmExporterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:DcgmExporter", name, None, opts)
        docker.Container(
            f"{name}-container",
            name=f"{args.host.prefix}-dcgm",
            image=args.image.image_id,
            envs=[f"DCGM_EXPORTER_LISTEN=127.0.0.1:{DCGM_PORT}", "DCGM_EXPORTER_KUBERNETES=false"],
            read_only=True,
            gpus="all",
            restart="always",
            labels=[
                docker.ContainerLabelArgs(label=label, value=value)
                for label, value in declared.labels(CONFINEMENT).items()
            ],
            **CONFINEMENT,
            opts=pulumi.ResourceOptions(
                parent=self,
                provider=args.provider,
                depends_on=[args.gpus],
                delete_before_replace=True,
                replacement_trigger=args.host.identity,
                deleted_with=args.host.machine,
                ignore_changes=declared.OF_CONTAINERS,
            ),
        )
        self.register_outputs({})

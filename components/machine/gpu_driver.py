"""NVIDIA's driver on the host, its GPUs' health, and their use in containers."""

from dataclasses import dataclass

import pulumi
import pulumi_docker as docker

from components import render
from components.containers import podman
from components.machine.host import Host

LEAST_DRIVER = 580
"""Oldest branch that vLLM's images with CUDA 13 can use, and Ubuntu's branch to install if there is none."""

TOOLKIT = {
    # Seen with these four packages in public installers of 2026. It needs more than 1.17.7 (CVE-2025-23266).
    "toolkit_packages": "nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools "
    "libnvidia-container1",
    "toolkit_version": "1.19.1-1",
    "toolkit_above": "1.17.7",
    # NVIDIA's installation guide; apt adds the architecture.
    "toolkit_repository": "https://nvidia.github.io/libnvidia-container/stable/deb",
    "toolkit_key": "https://nvidia.github.io/libnvidia-container/gpgkey",
    # The same in many public installers, the oldest from the time of nvidia-docker: not taken from the key itself.
    "toolkit_fingerprint": "C95B321B61E88C1809C4F759DDCAE044F796ECB0",
}
"""Variables of install-nvidia-toolkit.sh, which runs before Docker first starts."""


def kernel_script() -> str:
    """Return the script that a new machine runs first, so that no later step needs a reboot.

    It may end with a reboot: the machine then refuses connections, so the next command has to retry until it is back,
    for some minutes.
    """
    return render.script(
        "gpu/gpu-driver.sh",
        "gpu/prepare-kernel.sh",
        least_driver=LEAST_DRIVER,
        marker="/var/lib/elastic-vllm/rebooted-kernels",
    )


@dataclass(frozen=True, kw_only=True)
class GpuDriverArgs:
    """The host, the number of GPUs that it must have, and an image to prove them with."""

    host: Host
    """The host once Docker and NVIDIA's container toolkit are installed."""
    gpu_count: int
    image_name: str
    image: docker.RemoteImage


class GpuDriver(pulumi.ComponentResource):
    """The expected number of healthy GPUs is there, with a driver new enough for vLLM, and a container has seen them.

    A driver that works is left alone, otherwise Ubuntu's signed one is installed; one that is too old is replaced only
    on a machine that this program created. `kernel_script` handles the kernel and reboots, the container runtime Docker
    or Podman and NVIDIA's container toolkit. The driver stays when the stack is destroyed.
    """

    ready: pulumi.Resource

    def __init__(self, name: str, args: GpuDriverArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("elastic-vllm:index:GpuDriver", name, None, opts)
        installed = args.host.command(
            f"{name}-install",
            render.script(
                "gpu/gpu-driver.sh",
                "gpu/install-gpu-driver.sh",
                "gpu/check-gpu.sh",
                *(["gpu/configure-cdi.sh"] if args.host.engine == podman.PODMAN else []),
                gpu_count=args.gpu_count,
                least_driver=LEAST_DRIVER,
                # On an existing server the owner may have chosen the driver on purpose.
                may_replace="yes" if args.host.machine else "no",
            ),
            parent=self,
        )
        self.ready = args.host.command(
            f"{name}-proof",
            render.script(
                "containers/podman-with-gpus.sh",
                "gpu/prove-gpu-container.sh",
                engine=args.host.engine,
                prefix=args.host.prefix,
                image=args.image_name,
                gpu_count=args.gpu_count,
            ),
            parent=self,
            depends_on=[installed, args.image],
        )
        self.register_outputs({})

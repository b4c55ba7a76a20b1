"""A machine for the GPU scripts: a real bash, with stand-ins for everything that would touch this machine."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from components import render
from components.machine.gpu_driver import LEAST_DRIVER, TOOLKIT, kernel_script
from tests.support.shell import Result, bash

KERNEL = "6.17.0-1021-gcp"
MODULE = f"linux-modules-nvidia-580-server-open-{KERNEL}"
# The scripts may use these tools of this machine; all others are stand-ins or absent.
TOOLS = "bash awk cat cut dirname grep install mkdir mktemp rm sed seq sort tail"

CHANGES = ("apt-get", "modprobe", "systemctl", "systemd-run", "docker", "nvidia-ctk")


@dataclass
class Machine:
    """A PATH of a few tools and of stand-ins that record their calls, and a /sys."""

    root: Path

    def __post_init__(self) -> None:
        self.bin.mkdir()
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.stand_in("uname", f"echo {KERNEL}")
        self.stand_in(
            "dpkg-query", "printf '%s\\n' 'installed linux-image-gcp' 'installed linux-image-6.17.0-1021-gcp'"
        )
        for name in ("systemctl", "systemd-run", "modprobe", "modinfo", "journalctl", "docker"):
            self.stand_in(name)
        self.pci(2)

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def marker(self) -> Path:
        return self.root / "state" / "rebooted"

    def stand_in(self, name: str, script: str = "", *, directory: str = "bin") -> None:
        path = self.root / directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.root}/calls\n{script}\n')
        path.chmod(0o755)

    def pci(self, gpus: int, switches: int = 0) -> None:
        shutil.rmtree(self.root / "sys", ignore_errors=True)
        # GPUs with their sound, switches, and a card of another vendor
        classes = ["0x030200", "0x040300"] * gpus + ["0x068000"] * switches
        for number, device_class in enumerate([*classes, "0x030000"]):
            device = self.root / "sys/bus/pci/devices" / str(number)
            device.mkdir(parents=True)
            (device / "vendor").write_text("0x10de\n" if number < len(classes) else "0x8086\n")
            (device / "class").write_text(f"{device_class}\n")

    def nvidia_smi(self, *, directory: str = "bin", **values: str) -> None:
        """Add an nvidia-smi that shows two healthy A100 with driver 580; `values` change that."""
        links = "".join(f"\t Link {link}: 25 GB/s\\n" for link in range(12))
        gpu = {
            "driver": "580.95.05",
            "count": "2",
            "name": "NVIDIA A100-SXM4-80GB",
            "ecc": "0",
            "recovery": "None",
            "pending": "No",
            "failure": "No",
            "persistence": "Enabled",
            "links": links,
        } | values
        each = f"for i in $(seq 0 {int(gpu['count']) - 1}); do echo"
        script = f"""case "$*" in
        *=driver_version*) {each} {gpu["driver"]}; done ;;
        *=persistence_mode*) {each} {gpu["persistence"]}; done ;;
        *=index,name,*) {each} "$i, {gpu["name"]}, 81920, {gpu["driver"]}, {gpu["ecc"]}"; done ;;
        *=index,gpu_recovery_action*) {each} "$i, {gpu["recovery"]}"; done ;;
        *--query-remapped-rows*) {each} "0000:0$i:00.0, {gpu["pending"]}, {gpu["failure"]}"; done ;;
        -L) {each} "GPU $i: {gpu["name"]} (UUID: GPU-$i)"; done ;;
        "nvlink --status") {each} "GPU $i: {gpu["name"]}"; printf '{gpu["links"]}'; done ;;
        "-pm 1") ;;
        *) exit 2 ;;
        esac"""
        self.stand_in("nvidia-smi", script, directory=directory)

    def apt(self, *, offers: str = "*", update: int = 0) -> None:
        """Add an apt-get that offers packages matching `offers`; an install adds the programs in `new`."""
        new = self.root / "new"
        self.stand_in(
            "apt-get",
            f"""case "$*" in
            *update*) exit {update} ;;
            *--simulate*) case "$*" in {offers}) ;; *) exit 100 ;; esac ;;
            *) [ ! -d {new} ] || /bin/cp {new}/* {self.bin}/ ;;
            esac""",
        )

    def calls(self, *names: str) -> list[str]:
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.split()[0] in (names or CHANGES)]

    def installed(self) -> list[str]:
        """Return the packages of the only real `apt-get install`; none if there was none."""
        calls = [line.split(" install ")[1] for line in self.calls("apt-get") if " install " in line]
        real = [packages for packages in calls if not packages.startswith("--simulate")]
        assert len(real) <= 1
        return real[0].split() if real else []

    def run(self, script: str) -> Result:
        return bash(script, PATH=str(self.bin))

    def install_driver(self, *, may_replace: bool = True) -> Result:
        return self.run(
            render.script(
                "gpu/gpu-driver.sh",
                "gpu/install-gpu-driver.sh",
                gpu_count=2,
                least_driver=LEAST_DRIVER,
                may_replace="yes" if may_replace else "no",
                sysfs=str(self.root / "sys"),
            )
        )

    def prepare_kernel(self) -> Result:
        script = kernel_script()
        return self.run(script.replace("/var/lib/elastic-vllm/rebooted-kernels", str(self.marker)))

    def check(self, count: int = 2) -> Result:
        return self.run(render.script("gpu/check-gpu.sh", gpu_count=count))

    def prove(self, engine: str = "docker") -> Result:
        values: dict[str, str | int] = {"prefix": "elastic-vllm-x", "image": "vllm:1", "gpu_count": 2}
        return self.run(
            render.script("containers/podman-with-gpus.sh", "gpu/prove-gpu-container.sh", engine=engine, **values)
        )

    def install_toolkit(self, engine: str = "docker") -> Result:
        return self.run(render.script("gpu/install-nvidia-toolkit.sh", engine=engine, **TOOLKIT))


def succeeded(result: Result, *words: str) -> bool:
    assert (result.returncode, result.stderr) == (0, "")
    return all(word in result.stdout for word in words)

"""The part of Google's Compute Engine API that Pulumi's provider needs for this program, on loopback; simulated VM.

With it the real engine and the real provider bring a stack for Google Cloud up on this machine: see
scripts/maintain/record_previews.py. Point the provider to it with GOOGLE_COMPUTE_CUSTOM_ENDPOINT.
"""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from components.catalogue.machine_types import load_machine_types
from scripts.lab import simulated_vm
from scripts.lab.emulator import google_adapters
from scripts.lab.simulated_vm import Vm
from scripts.lib.private_files import write_private

API = "https://www.googleapis.com/compute/v1"
PATH = re.compile(
    r"/compute/[a-z0-9]+/(?P<collection>projects/[^/]+/(global|regions/[^/]+|zones/[^/]+)/[^/?]+)"
    r"(/(?P<name>[^/?]+)(/(?P<action>[^/?]+))?)?"
)
LOCAL_SSD = {"type": "SCRATCH", "mode": "READ_WRITE", "interface": "NVME", "diskSizeGb": "375", "autoDelete": True}


@dataclass
class Compute:
    """Existing resources: path below projects/ -> resource as the API shows it."""

    stack: str
    file: Path | None = None
    """File that keeps the resources between two runs."""
    endpoint: str = ""
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(10**18))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def save(self) -> None:
        """Save the resources for the next run."""
        if self.file:
            write_private(self.file, json.dumps({"next": next(self.ids), "resources": self.resources}))

    def load(self) -> None:
        """Load the resources of the previous run, without a VM that was lost meanwhile."""
        if self.file and self.file.exists():
            kept = json.loads(self.file.read_text())
            self.resources, self.ids = kept["resources"], itertools.count(kept["next"])
            if not simulated_vm.find(self.stack):
                self.lose_vm()

    def insert(self, collection: str, body: dict[str, Any]) -> None:
        """Create a resource."""
        path = f"{collection}/{body['name']}"
        if path in self.resources:
            raise FileExistsError(f"The resource '{path}' already exists")
        made = {
            **body,
            "id": str(next(self.ids)),
            "selfLink": f"{API}/{path}",
            "creationTimestamp": "2026-01-01T00:00:00.000-00:00",
            "fingerprint": "AAAAAAAAAAA=",
            "labelFingerprint": "AAAAAAAAAAA=",
        }
        place = collection.split("/")[2]
        if place in {"regions", "zones"}:
            made[place.removesuffix("s")] = f"{API}/{collection.rpartition('/')[0]}"
        kind = collection.rpartition("/")[2]
        if kind == "addresses":
            address = google_adapters.address(self.stack, body["addressType"])
            made |= {"address": address, "status": "RESERVED", "networkTier": "PREMIUM"}
        elif kind == "disks":
            made |= {"status": "READY", "physicalBlockSizeBytes": "4096", "sizeGb": str(body["sizeGb"])}
            simulated_vm.create_disk(body["name"])
        elif kind == "subnetworks":
            made |= {"gatewayAddress": "10.10.0.1", "purpose": "PRIVATE", "stackType": "IPV4_ONLY"}
        elif kind == "instances":
            self._boot(collection, made)
        self.resources[path] = made

    def _boot(self, collection: str, made: dict[str, Any]) -> None:
        (interface,) = made["networkInterfaces"]
        subnetwork = self.resources[_path(interface["subnetwork"])]
        external = [each["natIP"] for each in interface.get("accessConfigs", [])]
        interface |= {"name": "nic0", "network": subnetwork["network"], "stackType": "IPV4_ONLY"}
        interface.setdefault("networkIP", "10.10.0.2")
        interface["accessConfigs"] = [
            {"name": "external-nat", "type": "ONE_TO_ONE_NAT", "natIP": address, "networkTier": "PREMIUM"}
            for address in external
        ]
        boot, weights = made["disks"]
        disks = f"{collection.rpartition('/')[0]}/disks"
        parameters = boot.pop("initializeParams")
        self.resources[f"{disks}/{made['name']}"] = {
            "name": made["name"],
            "selfLink": f"{API}/{disks}/{made['name']}",
            "sizeGb": str(parameters["diskSizeGb"]),
            "type": parameters["diskType"],
            "sourceImage": f"{API}/{parameters['sourceImage'].replace('family/', '')}",
            "labels": parameters.get("labels", {}),
            "status": "READY",
        }
        boot |= {
            "source": f"{API}/{disks}/{made['name']}",
            "deviceName": "persistent-disk-0",
            "index": 0,
            "type": "PERSISTENT",
        }
        weights |= {"index": 1, "type": "PERSISTENT", "autoDelete": False}
        machine_type = load_machine_types()[made["machineType"].rpartition("/")[2]]
        accelerator = f"{API}/{collection.rpartition('/')[0]}/acceleratorTypes/{machine_type.gpu.lower()}"
        made |= {
            "status": "RUNNING",
            "cpuPlatform": "unknown",
            # The machine type adds these, although the request does not have them.
            "guestAccelerators": [{"acceleratorType": accelerator, "acceleratorCount": machine_type.gpus}],
            "disks": [boot, weights, *([LOCAL_SSD] * machine_type.gpus if machine_type.local_ssd_bundled else [])],
        }
        made.setdefault("tags", {})["fingerprint"] = "AAAAAAAAAAA="
        made["metadata"]["fingerprint"] = "AAAAAAAAAAA="
        user_data = next(item["value"] for item in made["metadata"]["items"] if item["key"] == "user-data")
        vm = Vm(
            instance_id=made["id"],
            address=external[0] if external else interface["networkIP"],
            ssh_port=simulated_vm.free_port(),
            disk=weights["source"].rpartition("/")[2],
            device=weights["deviceName"],
        )
        simulated_vm.create(self.stack, vm, user_data, google_adapters.stand_in_values(machine_type))

    def delete(self, path: str) -> None:
        """Delete a resource; the boot disk is deleted with its VM."""
        gone = self.resources.pop(path)
        if "/instances/" in path:
            self.resources.pop(path.replace("/instances/", "/disks/"))
            simulated_vm.destroy(self.stack)
        elif "/disks/" in path:
            simulated_vm.disk_file(gone["name"]).unlink(missing_ok=True)

    def lose_vm(self) -> None:
        """Remove the VM, as Google does with a spot VM."""
        for path in [path for path in self.resources if "/instances/" in path]:
            self.delete(path)

    def change(self, path: str, action: str, body: dict[str, Any]) -> None:
        """Change a resource in place: PATCH, or an action such as setLabels and resize."""
        resource = self.resources[path]
        if action == "setTags":
            resource["tags"] = {**body, "fingerprint": "AAAAAAAAAAA="}
        elif action in {"", "setLabels", "resize"}:
            resource |= body
        else:
            raise KeyError(action)


def _path(link: str) -> str:
    return link[link.index("projects/") :]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    compute: Compute

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        match = PATH.match(self.path)
        path = f"{match['collection']}/{match['name']}" if match else ""
        if match and match["collection"].endswith("/operations"):
            self._operation(match["collection"].rpartition("/")[0])
        elif path in self.compute.resources:
            self._answer(200, self.compute.resources[path])
        else:
            self._answer(404, {"error": {"code": 404, "message": f"The resource '{path or self.path}' was not found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        match = PATH.match(self.path)
        if not match:
            self._answer(404, {"error": {"code": 404, "message": self.path}})
            return
        place = match["collection"].rpartition("/")[0]
        path = f"{match['collection']}/{match['name']}"
        if match["name"] and "/operations/" not in path and path not in self.compute.resources:
            self._answer(404, {"error": {"code": 404, "message": f"The resource '{path}' was not found"}})
            return
        if not match["collection"].endswith("/operations"):
            try:
                with self.compute.lock:
                    if self.command == "POST" and not match["name"]:
                        self.compute.insert(match["collection"], body)
                    elif self.command == "DELETE":
                        self.compute.delete(path)
                    else:
                        self.compute.change(path, match["action"] or "", body)
                    self.compute.save()
            except FileExistsError as error:
                self._answer(409, {"error": {"code": 409, "message": str(error)}})
                return
            except Exception as error:  # the provider shows it
                self._answer(400, {"error": {"code": 400, "message": f"{self.command} {self.path}: {error!r}"}})
                return
        self._operation(place)

    do_DELETE = do_PATCH = do_PUT = do_POST  # noqa: N815 - names of http.server

    def _operation(self, place: str) -> None:
        name = "operation-1"
        self._answer(
            200,
            {
                "kind": "compute#operation",
                "name": name,
                "status": "DONE",
                "progress": 100,
                "selfLink": f"{API}/{place}/operations/{name}",
                **({place.split("/")[2].removesuffix("s"): f"{API}/{place}"} if "global" not in place else {}),
            },
        )

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running(stack: str, file: Path | None = None) -> Iterator[Compute]:
    """Run the API for one stack until the block ends; `file` keeps the resources for the next time."""
    compute = Compute(stack, file)
    compute.load()
    handler = type("Handler", (_Handler,), {"compute": compute})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    compute.endpoint = f"http://127.0.0.1:{server.server_port}/compute/v1/"
    try:
        yield compute
    finally:
        server.shutdown()
        server.server_close()

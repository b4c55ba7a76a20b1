"""Google's REST APIs on loopback, as far as preflight uses them: one server for all hosts, /API-HOST/PATH.

It is strict: the token must be right, errors have Google's form (google.rpc.Status), other paths get 404. The server
also has a hub (/hub) with one gated model. All prices are invented.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from components.settings.gcp import GcpSettings, GoogleSettings

TOKEN = "ya29.stand-in-for-a-token"
HUB_TOKEN = "hf_stand-in-for-a-token"
COMMIT = "c0" * 20
MODEL = "acme/gated"
COMPUTE = "compute.googleapis.com"
MANAGER = "cloudresourcemanager.googleapis.com"
USAGE = "serviceusage.googleapis.com"
POLICIES = "orgpolicy.googleapis.com"
CONTAINER = "container.googleapis.com"
FEES = "cloudbilling.googleapis.com/v1/services/CCD8-9BF1-090E/skus"
SKUS = "cloudbilling.googleapis.com/v1/services/6F81-5844-456A/skus"
# The real catalog's factor for a month: gibibytes of 2^30 bytes for 31 days, in byte seconds.
GIB_MONTH = 2.8759101014016e15


@dataclass
class Cloud:
    """Contents and behaviour of the cloud, for tests to change."""

    things: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Host and path of a GET -> the answer."""
    errors: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """Host and path -> status and body that replace the answer."""
    busy: dict[str, int] = field(default_factory=dict)
    """Host and path -> number of 503 answers that come first."""
    denied: set[str] = field(default_factory=set)
    """Permissions that the user lacks."""
    skus: list[dict[str, Any]] = field(default_factory=list)
    fees: list[dict[str, Any]] = field(default_factory=list)
    """SKUs of Kubernetes Engine."""
    email: str = "ada@example.com"
    token: str = TOKEN
    gated: str | bool = "manual"
    asked: list[str] = field(default_factory=list)
    """Host and path of every request."""
    base: str = ""

    def compute(self, path: str, project: str = "acme-llm") -> str:
        """Return the key of an object in Compute Engine."""
        return f"{COMPUTE}/compute/v1/projects/{project}/{path}".rstrip("/")

    def refuse(self, path: str, status: int, reason: str, message: str) -> None:
        """Answer `path` with an error in Google's form."""
        self.errors[path] = (status, error(status, message, reason))


def error(status: int, message: str, reason: str) -> dict[str, Any]:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}]
    return {"error": {"code": status, "message": message, "status": "STATUS", "details": details}}


def sku(
    description: str, unit: str, price: float, *regions: str, since: str = "2026-10-01T00:00:00Z"
) -> dict[str, Any]:
    money = {"currencyCode": "USD", "units": str(int(price)), "nanos": round(price % 1 * 10**9)}
    expression = {
        "usageUnit": unit,
        "baseUnit": "s" if unit == "h" else "By.s",
        "baseUnitConversionFactor": GIB_MONTH if unit == "GiBy.mo" else 3600,
        "tieredRates": [{"startUsageAmount": 0, "unitPrice": money}],
    }
    pricing = [{"pricingExpression": expression, "effectiveTime": since}]
    return {"description": description, "serviceRegions": list(regions), "pricingInfo": pricing}


def quotas(**limits: float) -> list[dict[str, Any]]:
    return [{"metric": metric, "limit": limit, "usage": 0.0} for metric, limit in limits.items()]


def policy(project: str, constraint: str) -> str:
    return f"v2/projects/{project}/policies/{constraint}:getEffectivePolicy"


def fill(cloud: Cloud, gcp: GoogleSettings) -> None:
    """Fill the cloud with a project in which the stack can be brought up."""
    compute, kind = cloud.compute, gcp.machine_type
    region, zone = f"regions/{gcp.region}", f"zones/{gcp.zone}"
    cloud.things = {
        f"{MANAGER}/v3/projects/{gcp.project}": {"projectId": gcp.project, "state": "ACTIVE"},
        f"{USAGE}/v1/projects/{gcp.project}/services/compute.googleapis.com": {"state": "ENABLED"},
        f"{USAGE}/v1/projects/{gcp.project}/services/iap.googleapis.com": {"state": "ENABLED"},
        f"{POLICIES}/{policy(gcp.project, 'compute.requireOsLogin')}": {"spec": {"rules": [{"enforce": False}]}},
        f"{POLICIES}/{policy(gcp.project, 'compute.vmExternalIpAccess')}": {"spec": {"rules": [{"allowAll": True}]}},
        compute(""): {"quotas": quotas(GPUS_ALL_REGIONS=8)},
        compute(region): {
            "quotas": quotas(
                CPUS=24,
                A2_CPUS=96,
                PREEMPTIBLE_CPUS=96,
                NVIDIA_A100_80GB_GPUS=8,
                PREEMPTIBLE_NVIDIA_A100_80GB_GPUS=4,
                SSD_TOTAL_GB=2000,
                STATIC_ADDRESSES=8,
            )
        },
        compute(zone): {"name": gcp.zone, "status": "UP"},
        compute(f"{zone}/machineTypes/{kind.name}"): {
            "name": kind.name,
            "guestCpus": kind.vcpus,
            "accelerators": [{"guestAcceleratorType": "nvidia-a100-80gb", "guestAcceleratorCount": kind.gpus}],
            "bundledLocalSsds": {"defaultInterface": "NVME", "partitionCount": kind.gpus},
        },
    }
    for name in ("container", "iam", "file"):
        cloud.things[f"{USAGE}/v1/projects/{gcp.project}/services/{name}.googleapis.com"] = {"state": "ENABLED"}
    if isinstance(gcp, GcpSettings):
        cloud.things[compute(gcp.image.split("/", 2)[2], gcp.image.split("/", 2)[1])] = {
            "name": gcp.image.rpartition("/")[2],
            "status": "READY",
            "diskSizeGb": "20",
        }
    there, elsewhere = gcp.region, "asia-southeast1"
    cloud.skus = [
        sku("A2 Instance Core running in Americas", "h", 0.03, there),
        sku("A2 Instance Ram running in Americas", "GiBy.h", 0.004, there),
        sku("Nvidia Tesla A100 80GB GPU running in Americas", "h", 4.0, there),
        sku("SSD backed Local Storage", "GiBy.mo", 0.0744, there),
        sku("Balanced PD Capacity", "GiBy.mo", 0.0744, there),
        # Entries that must not be mistaken for these:
        sku("Reserved Nvidia Tesla A100 80GB GPU in Americas", "h", 0.0, there),
        sku("Nvidia Tesla A100 GPU running in Americas", "h", 3.0, there),
        sku("Commitment v1: A2 Cpu in Americas for 1 Year", "h", 0.01, there),
        sku("Regional Balanced PD Capacity", "GiBy.mo", 0.15, there),
        sku("Nvidia Tesla A100 80GB GPU running in Singapore", "h", 5.0, elsewhere),
        # Entries of another capacity:
        sku("Spot Preemptible A2 Instance Core running in Americas", "h", 0.01, there),
        sku("Spot Preemptible A2 Instance Ram running in Americas", "GiBy.h", 0.001, there),
        sku("Nvidia Tesla A100 80GB GPU attached to Spot Preemptible VMs running in Americas", "h", 2.0, there),
        sku("SSD backed Local Storage attached to Spot Preemptible VMs", "GiBy.mo", 0.0372, there),
        sku("E2 Instance Core running in Americas", "h", 0.02, there),
        sku("E2 Instance Ram running in Americas", "GiBy.h", 0.003, there),
        sku("Spot Preemptible E2 Instance Core running in Americas", "h", 0.01, there),
    ]
    cloud.fees = [
        sku("Zonal Kubernetes Clusters", "h", 0.11, "global"),
        sku("Regional Kubernetes Clusters", "h", 0.12, "global"),
        sku("Autopilot Kubernetes Clusters", "h", 0.13, "global"),
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body in one packet: two would wait for each other
    cloud: Cloud

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer_for({})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        is_form = self.headers["Content-Type"] == "application/x-www-form-urlencoded"
        self.answer_for(parse_qs(content.decode()) if is_form else json.loads(content))

    def answer_for(self, body: dict[str, Any]) -> None:
        cloud, parts = self.cloud, urlsplit(self.path)
        path = parts.path.strip("/")
        cloud.asked.append(path)
        assert cloud.token not in self.path
        if path.startswith("hub/api/models/"):
            self.answer_as_hub(path.removeprefix("hub/api/models/"))
        elif cloud.busy.get(path):
            cloud.busy[path] -= 1
            self.send(503, error(503, "The service is currently unavailable.", "backendError"))
        elif path in cloud.errors:
            self.send(*cloud.errors[path])
        elif path == "www.googleapis.com/oauth2/v1/tokeninfo" and self.command == "POST":
            right = body == {"access_token": [cloud.token]}
            self.send(200, {"email": cloud.email}) if right else self.send(400, {"error": "invalid_token"})
        elif self.headers["Authorization"] != f"Bearer {cloud.token}":
            self.send(
                401, error(401, "Request had invalid authentication credentials.", "ACCESS_TOKEN_TYPE_UNSUPPORTED")
            )
        elif path.endswith(":testIamPermissions") and self.command == "POST":
            self.test_permissions(body["permissions"])
        elif path in {SKUS, FEES} and self.command == "GET":
            self.list_skus(cloud.skus if path == SKUS else cloud.fees, parse_qs(parts.query))
        elif path in cloud.things and self.command == "GET":
            self.send(200, cloud.things[path])
        else:
            what = path.partition("compute/v1/")[2]
            self.send(404, error(404, f"The resource '{what}' was not found", "notFound"))

    def test_permissions(self, names: list[str]) -> None:
        if len({name.split(".")[0] for name in names}) != 1:
            self.send(400, error(400, f"Permission {names[-1]} is not valid for this resource.", "badRequest"))
        held = [name for name in names if name not in self.cloud.denied]
        self.send(200, {"permissions": held} if held else {})

    def list_skus(self, skus: list[dict[str, Any]], query: dict[str, list[str]]) -> None:
        assert query["currencyCode"] == ["USD"]
        start, size = int(query.get("pageToken", ["0"])[0]), 5  # smaller pages than requested
        more = {"nextPageToken": str(start + size)} if start + size < len(skus) else {"nextPageToken": ""}
        self.send(200, {"skus": skus[start : start + size], **more})

    def answer_as_hub(self, path: str) -> None:
        name, _, rest = path.partition("/revision/")
        allowed = self.headers["Authorization"] == f"Bearer {HUB_TOKEN}"
        if self.headers["Authorization"] == "Bearer hf_revoked":
            why = "Invalid credentials in Authorization header"
            self.send(401, {"error": why}, X_Error_Message=why)
        elif name.removesuffix("/auth-check") != MODEL:
            self.send(401, {"error": "no"}, X_Error_Code="RepoNotFound")
        elif name.endswith("/auth-check") and not allowed:
            self.send(403 if self.headers["Authorization"] else 401, {"error": "no"}, X_Error_Code="GatedRepo")
        elif rest not in {"", COMMIT}:
            self.send(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        else:
            self.send(200, {"id": MODEL, "sha": COMMIT, "gated": self.cloud.gated, "private": False, "siblings": []})

    def send(self, status: int, document: dict[str, Any], /, **headers: str) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for key, value in {**headers, "Content_Length": str(len(content)), "Content_Type": "application/json"}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running() -> Iterator[Cloud]:
    """Run an empty cloud until the block ends."""
    cloud = Cloud()
    handler = type("Handler", (_Handler,), {"cloud": cloud})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    cloud.base = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

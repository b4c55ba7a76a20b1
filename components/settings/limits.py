"""Limits that Nginx enforces for each client."""

import math
from dataclasses import dataclass, replace

from components.settings.problems import Problems


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits: those with a setting first, then those that nobody has to tune."""

    concurrent_requests: int
    """Concurrent requests with one key, streams included; the next one gets 429 at once."""
    requests_per_minute: int
    """Requests with one key, evenly spread; see `burst`."""
    body_mib: int
    header_kib: int = 8
    """Size of one header line or of the request line; all header lines together may have four times as much."""
    header_seconds: int = 15
    """Time for all of a request's header to arrive (client_header_timeout)."""
    body_seconds: int = 60
    """Time between two pieces of a request's body (client_body_timeout)."""
    reader_seconds: int = 60
    """Time in which a client may read nothing of a waiting response (send_timeout)."""

    @property
    def burst(self) -> int:
        """Requests that may come at once beyond the even rate: ten seconds' worth."""
        return self.requests_per_minute // 6

    def shared_by(self, replicas: int) -> "Limits":
        """Return one replica's share, rounded up: each counts for itself."""
        return replace(
            self,
            concurrent_requests=math.ceil(self.concurrent_requests / replicas),
            requests_per_minute=math.ceil(self.requests_per_minute / replicas),
        )

    def as_output(self) -> dict[str, int]:
        """The limits that clients have to know, by the names of their settings."""
        return {
            "maxConcurrentRequests": self.concurrent_requests,
            "maxRequestsPerMinute": self.requests_per_minute,
            "maxBodyMib": self.body_mib,
        }


def limits(problems: Problems) -> Limits:
    """The limits as set."""
    integer = problems.integer
    return Limits(
        concurrent_requests=integer("maxConcurrentRequests", 1, 10_000),
        requests_per_minute=integer("maxRequestsPerMinute", 1, 600_000),
        body_mib=integer("maxBodyMib", 1, 1024),
    )

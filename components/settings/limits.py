"""How much the endpoint takes from a client before it refuses: the settings that Nginx enforces."""

from dataclasses import dataclass

from components.settings.problems import Problems


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Checked limits."""

    concurrent_requests: int
    """With one key, streams included; the next one gets 429 at once."""
    requests_per_minute: int
    """With one key, evenly spread; see `burst`."""
    body_mb: int
    header_kb: int
    """Of one header line or of the request line; all header lines together may have four times as much."""
    slow_header_seconds: int
    """Until all of a request's header has come."""
    slow_body_seconds: int
    """Between two pieces of a request's body."""
    slow_reader_seconds: int
    """Without the client taking anything of what waits for it."""

    @property
    def burst(self) -> int:
        """Requests that may come at once beyond the even rate: ten seconds' worth."""
        return self.requests_per_minute // 6

    @property
    def told(self) -> dict[str, int]:
        """What clients have to know of them, by the settings' names."""
        return {
            "maxConcurrentRequests": self.concurrent_requests,
            "maxRequestsPerMinute": self.requests_per_minute,
            "maxBodyMb": self.body_mb,
        }


def limits(problems: Problems) -> Limits:
    """The limits as set."""
    integer = problems.integer
    return Limits(
        concurrent_requests=integer("maxConcurrentRequests", 1, 10_000),
        requests_per_minute=integer("maxRequestsPerMinute", 1, 600_000),
        body_mb=integer("maxBodyMb", 1, 1024),
        header_kb=integer("maxHeaderKb", 2, 64),
        slow_header_seconds=integer("slowHeaderSeconds", 1, 600),
        slow_body_seconds=integer("slowBodySeconds", 1, 3600),
        slow_reader_seconds=integer("slowReaderSeconds", 1, 3600),
    )

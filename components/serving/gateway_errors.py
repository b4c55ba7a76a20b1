"""Nginx's own answers when it refuses a request or can't reach vLLM: errors in the format of OpenAI's API."""

from collections.abc import Mapping
from dataclasses import dataclass

from components.settings.limits import Limits

RETRY_SECONDS = 5
"""Retry-After of 429 and 503, which OpenAI's client obeys up to a minute."""


@dataclass(frozen=True)
class GatewayError:
    """Fields that describe an error; OpenAI's clients choose their exception by the status."""

    type: str
    code: str
    message: str
    """One or two sentences without `$`, which Nginx would treat as a variable."""

    @property
    def body(self) -> dict[str, object]:
        """Return the error as JSON of an answer."""
        return {"error": {"message": self.message, "type": self.type, "param": None, "code": self.code}}


def errors(limits: Limits) -> Mapping[int, GatewayError]:
    """Map each status to its error; a refusal by a limit names the limit."""

    def refused(code: str, message: str) -> GatewayError:
        return GatewayError("invalid_request_error", code, message)

    return {
        400: refused("bad_request", "The request could not be understood."),
        401: refused(
            "invalid_api_key", "Missing or wrong API key: send it as a bearer token in the Authorization header."
        ),
        403: refused(
            "client_certificate_refused",
            "This endpoint asks for a client certificate: none was shown, or it is not one of those it knows.",
        ),
        404: refused("not_found", "Not served here. Use /v1/chat/completions or /v1/models."),
        405: refused("method_not_allowed", "Method not allowed for this path."),
        413: refused("request_too_large", f"The request is larger than {limits.body_mib} MB."),
        414: refused("uri_too_long", f"The address of the request is longer than {limits.header_kib} kB."),
        429: GatewayError(
            "rate_limit_error",
            "too_many_requests",
            f"More than {limits.requests_per_minute} requests a minute with this key: wait and try again.",
        ),
        431: refused(
            "headers_too_large",
            f"A header line is longer than {limits.header_kib} kB, or all are longer than {4 * limits.header_kib} kB.",
        ),
        500: GatewayError("server_error", "internal_error", "Nginx could not handle the request."),
        503: GatewayError(
            "server_error", "model_unavailable", "The model is not ready: it is loading or was stopped. Try again."
        ),
        504: GatewayError("server_error", "model_timeout", "The model did not answer in time."),
    }


def too_many_at_once(limits: Limits) -> GatewayError:
    """Return the other 429: too many concurrent requests, as opposed to too high a rate."""
    return GatewayError(
        "rate_limit_error",
        "too_many_concurrent_requests",
        f"More than {limits.concurrent_requests} requests at a time with this key: wait for one to end and try again.",
    )

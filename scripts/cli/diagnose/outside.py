"""Checks of the endpoint as a client sees it: name, port, certificate, key, model, answers and streams."""

import email.utils
import ssl
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx2

from scripts.cli.diagnose.finding import Finding, Look, Rank
from scripts.lib.errors import ExitCode
from scripts.lib.verification import gateway, generation
from scripts.lib.verification.endpoint import Endpoint
from scripts.lib.verification.failures import Blocks, CheckFailedError, explain
from scripts.lib.verification.probe import Probe, probing

MOST_CLOCK_SECONDS = 60


class _Step(NamedTuple):
    name: str
    look: Callable[[Probe], str]
    kind: ExitCode
    rank: Rank


def _key(probe: Probe) -> str:
    answer = probe.request("GET", gateway.MODELS_PATH, probe.endpoint.key)
    if answer.status_code == httpx2.codes.FORBIDDEN:
        raise CheckFailedError(
            "the client certificate is missing or refused",
            "show one of the stack's clientCertificates (--client-pem)",
            blocks=Blocks.EVERYTHING,
        )
    if answer.status_code == httpx2.codes.UNAUTHORIZED:
        raise CheckFailedError(
            "the endpoint refuses the key (401)",
            "use the stack's connectorApiKey as it is, in small letters; has it been rotated (rotate --status)",
            blocks=Blocks.EVERYTHING,
        )
    return "accepted"


def _clock(probe: Probe) -> str:
    date = probe.request("GET", gateway.HEALTH_PATH, key=None).headers.get("date", "")
    parsed = email.utils.parsedate_to_datetime(date) if date else None
    away = abs(parsed.timestamp() - time.time()) if parsed else 0
    if away > MOST_CLOCK_SECONDS:
        raise CheckFailedError(
            f"the endpoint's clock is {away:.0f} s away from this machine's",
            "set both by NTP: certificates depend on it",
        )
    return f"{away:.0f} s apart"


STEPS = (
    _Step("certificate", gateway.certificate, ExitCode.TLS, Rank.ROUTE),
    _Step("health", gateway.health, ExitCode.CONTAINERS, Rank.SYMPTOM),
    _Step("clock", _clock, ExitCode.SERVER, Rank.REQUEST),
    _Step("key", _key, ExitCode.KEY, Rank.REQUEST),
    _Step("model", generation.models, ExitCode.REQUEST, Rank.REQUEST),
    _Step("answer", generation.chat, ExitCode.REQUEST, Rank.SYMPTOM),
    _Step("stream", generation.streamed_chat, ExitCode.REQUEST, Rank.REQUEST),
)


def look(endpoint: Endpoint, start: Callable[[str], None]) -> Iterator[Look]:
    """Yield one check after the other, as long as the next makes sense; `start` is called with its name."""
    with probing(endpoint) as probe:
        for step in STEPS:
            start(step.name)
            try:
                seen = step.look(probe)
            except Exception as error:
                failure = explain(error, endpoint, probe.served)
                fix = str(failure).removeprefix(f"{failure.cause}: ")
                kind = step.kind
                if step.name == "certificate" and not _is_tls(error, failure):
                    kind = ExitCode.NETWORK
                finding = Finding(kind, step.rank, endpoint.redact(failure.cause), endpoint.redact(fix))
                yield Look(step.name, "", (finding,))
                if failure.blocks is not Blocks.NOTHING or step.name in {"certificate", "health", "model"}:
                    return
            else:
                yield Look(step.name, endpoint.redact(seen), tuple(_soon(step.name, seen)))


def _is_tls(error: Exception, failure: CheckFailedError) -> bool:
    chain: list[BaseException | None] = [error]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    return any(isinstance(cause, ssl.SSLError) for cause in chain) or "TLS" in failure.cause


RENEW = (
    "tls private-ca: run up; provided: replace tlsCertificate; letsencrypt: the server renews it by itself and fails, "
    "see there: journalctl --unit 'elastic-vllm-*-acme'"
)


def _soon(name: str, seen: str) -> Iterator[Finding]:
    if name == "certificate" and "expires in" in seen:
        cause = seen.rpartition(", ")[2].partition(":")[0]
        yield Finding(ExitCode.TLS, Rank.SOON, f"the certificate {cause}", RENEW)

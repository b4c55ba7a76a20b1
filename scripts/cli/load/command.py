"""Command that finds out how much of Elastic's work an endpoint carries."""

import asyncio
import gc
import json
import math
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from components.errors import UserError
from scripts.cli.load.drive import UNFINISHED, Answer, Client, Step, connect, run_step
from scripts.cli.load.figures import (
    FAILED_SHARE,
    LATE_SHARE,
    RAISE_LIMITS,
    Figures,
    Limits,
    advice,
    carried,
    figures,
    is_late,
    is_own_limit,
)
from scripts.cli.load.profiles import CALIBRATION_WORDS, MIX, PROFILES, WORDS, Profile, Sizes, requests
from scripts.cli.load.result import Alone, Result, Run, page
from scripts.lib.errors import BadInputError, ExitCode
from scripts.lib.progress import Display
from scripts.lib.stack_outputs import Rehearsal, internal
from scripts.lib.verification import given
from scripts.lib.verification.endpoint import CHAT_PATH, Endpoint
from scripts.lib.verification.failures import CheckFailedError, explain, explain_status
from scripts.lib.verification.probe import GENERATION_SECONDS, Probe, probing

MIX_NAME = "mix"
KEY_NAME = "load"
"""Name of the key (setting keys) under which the requests stand in the access log, if the stack has it."""
BETWEEN = 2**0.5
"""Factor between two rates of the series."""
FIRST_LOAD = 0.5
"""Load of the first step: share of the rate that one request after the other would reach."""
LEAST_REQUESTS = 20
"""Requests in a step: fewer have no 95th percentile."""
MOST_UNDER_WAY = 2000
ROOM = 256
"""Tokens of a context for the prompt format, beside the profile's sizes."""


def main(
    *,
    url: given.Url = None,
    model: given.ModelName = None,
    ca: given.Ca = None,
    key_file: given.KeyFile = None,
    client_pem: given.ClientPem = None,
    outputs: given.Outputs = None,
    stack: given.Stack = None,
    rehearsal: Rehearsal = False,
    permitted: Annotated[
        bool, typer.Option("--permitted", help="With --url: you may put this endpoint under load.")
    ] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Work to do, each in a run of its own: {', '.join([MIX_NAME, *PROFILES])}.", show_default=MIX_NAME
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Factor for the sizes of all profiles; 1 is production.", min=0.001)
    ] = 1.0,
    first_token_seconds: Annotated[
        float, typer.Option(help="Time that people bear until an answer begins, for 95 % of the requests.", min=0.001)
    ] = 10.0,
    answer_seconds: Annotated[
        float | None,
        typer.Option(
            help="Kibana's limit for an answer, if not the profile's (60 s for streams, else 120 s).", min=0.001
        ),
    ] = None,
    per_person: Annotated[
        float,
        typer.Option(help="Pieces of work that a person starts in an hour: only to convert the answer.", min=0.01),
    ] = 10.0,
    first_rate: Annotated[
        float | None,
        typer.Option("--from", help="Pieces of work an hour in the first step (default: by the warm-up).", min=0.001),
    ] = None,
    step_seconds: Annotated[float, typer.Option(help="Least time of a step.", min=1)] = 60.0,
    minutes: Annotated[float, typer.Option(help="Longest time of the whole load.", min=0.1)] = 30.0,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of prompts and answers after which it ends (default: no limit).", min=1)
    ] = None,
    hourly_cost: Annotated[
        float | None, typer.Option(help="Cost of the machine an hour, as preflight shows it, to name a price.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of texts and arrivals: the same load again.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
    page_file: Annotated[
        Path | None, typer.Option("--page", help="Write the result with plots as one HTML file.")
    ] = None,
) -> None:
    """Find out how much of Elastic's work an endpoint carries, by putting it under rising load.

    Work arrives at random moments, whether earlier work was answered or not, at rates that double until answers begin
    too late, miss Kibana's limit, take longer and longer, or fail. Ctrl-C ends it early and reports what is known.

    Give --stack or --outputs for your own endpoint, or --url, --model and --permitted. People who use the endpoint
    meanwhile will feel the load.
    """
    if url is not None and not permitted:
        raise BadInputError(
            "--url is given without --permitted: this is a load generator",
            "add --permitted if you may load this endpoint",
        )
    chosen = _chosen(profile or [MIX_NAME], scale)
    found = given.given(
        url=url, outputs=outputs, stack=stack, rehearsal=rehearsal, model=model, ca=ca, client_pem=client_pem
    )
    found, key = _own_key(found, key_file)
    endpoint = given.endpoint(
        given.with_key(found, key_file), supports_tools=found.get("nativeFunctionCalling") is not False
    )
    if page_file is not None and not page_file.resolve().parent.is_dir():
        raise BadInputError(f"--page {page_file}: its directory does not exist", "create it")
    plan = Plan(
        endpoint=endpoint,
        limits=Limits(first_token_seconds=first_token_seconds, answer_seconds=answer_seconds),
        first_rate=first_rate,
        step_seconds=step_seconds,
        deadline=time.monotonic() + minutes * 60,
        most_tokens=tokens,
        seed=seed,
        requests_per_minute=internal(found).get("limits", {}).get("maxRequestsPerMinute"),
    )
    started, began = datetime.now(UTC), time.monotonic()
    with Display(results_on_stdout=True) as display, display.task("load") as task:
        plan.say = task.say
        plan.sizes = examine(plan, {each.name: each for run in chosen.values() for each in run}, found)
        runs = asyncio.run(_all_runs(plan, chosen))
    result = Result(
        host=endpoint.host,
        model=endpoint.model,
        started=started,
        seconds=time.monotonic() - began,
        scale=scale,
        seed=seed,
        limits=plan.limits,
        per_person=per_person,
        key=key,
        hourly_cost=hourly_cost,
        tokens=plan.tokens,
        interrupted=plan.interrupted,
        runs=runs,
    )
    if page_file is not None:
        page_file.write_text(page(result), encoding="utf-8")
    typer.echo(json.dumps(result.document(), indent=2) if as_json else result.text())
    if plan.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not all(carried(run.steps) for run in runs):
        raise typer.Exit(ExitCode.FAILED)


def _chosen(names: Sequence[str], scale: float) -> dict[str, list[Profile]]:
    """Map the runs to their profiles, scaled; a profile stands in the mix as often as its share."""
    chosen: dict[str, list[Profile]] = {}
    for name in names:
        if name != MIX_NAME and name not in PROFILES:
            raise BadInputError(
                f"--profile {name}: there is none of that name", f"use {', '.join([MIX_NAME, *PROFILES])}"
            )
        shares = MIX if name == MIX_NAME else {name: 1}
        chosen[name] = [PROFILES[each].scaled(scale) for each, share in shares.items() for _ in range(share)]
    return chosen


def _own_key(found: Mapping[str, object], key_file: Path | None) -> tuple[dict[str, object], str]:
    """Return the outputs with the key for load, if the stack has one, and whose key it is."""
    if key_file is not None:
        return dict(found), "the requests have the key of --key-file"
    keys = found.get("apiKeys")
    if isinstance(keys, dict) and KEY_NAME in keys:
        return {
            **found,
            "connectorApiKey": keys[KEY_NAME],
        }, f"the requests stand in the access log under the key {KEY_NAME}"
    return dict(found), (
        f"the requests stand in the access log under Elastic's own key: add {KEY_NAME}: [1] to the setting keys "
        "to tell them apart, and so that they do not use up Elastic's limits"
    )


@dataclass(kw_only=True)
class Plan:
    """A load's conditions, and what it used so far."""

    endpoint: Endpoint
    limits: Limits
    first_rate: float | None
    step_seconds: float
    deadline: float
    most_tokens: int | None
    seed: int
    sizes: Sizes = field(default_factory=lambda: Sizes(1.0))
    requests_per_minute: int | None = None
    """Limit of the gateway for one key; None if unknown."""
    tokens: int = 0
    interrupted: bool = False
    say: Callable[[str], None] = field(default=lambda _text: None)

    def over(self, tokens: int = 0) -> str:
        """Return why the load must end now; empty if it need not."""
        if self.interrupted:
            return "it was interrupted"
        if time.monotonic() > self.deadline:
            return "the time was up (--minutes)"
        if self.most_tokens is not None and self.tokens + tokens > self.most_tokens:
            return "the tokens were used up (--tokens)"
        return ""


# --- Before any load


def examine(plan: Plan, profiles: Mapping[str, Profile], found: Mapping[str, object]) -> Sizes:
    """Check that the endpoint can do this work, one small request after the other; return the sizes of texts.

    Raises BadInputError that names what is wrong.
    """
    endpoint = plan.endpoint
    plan.say("checking the endpoint")
    with probing(endpoint) as probe:
        try:
            longest = _longest_context(probe, found)
            _refuse_long(profiles, longest)
            sizes = Sizes(_tokens_of_a_word(probe))
            fixed = {name: _tokens_of_the_form(probe, profile, sizes) for name, profile in profiles.items()}
        except CheckFailedError as error:
            raise BadInputError(*_cause_and_fix(error)) from error
        except httpx2.HTTPError as error:
            raise BadInputError(*_cause_and_fix(explain(error, endpoint, ()))) from error
    return replace(sizes, fixed=fixed)


def _cause_and_fix(error: CheckFailedError) -> tuple[str, str]:
    return error.cause, str(error).removeprefix(f"{error.cause}: ")


def _longest_context(probe: Probe, found: Mapping[str, object]) -> int:
    """Return the longest context that the endpoint reports for the model; 0 if it reports none."""
    response = probe.request("GET", "/v1/models", probe.endpoint.key)
    if response.status_code != httpx2.codes.OK:
        raise explain_status(response, probe.endpoint, ())
    try:
        listed = {str(entry["id"]): entry for entry in response.json()["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{probe.endpoint.host} lists no models", "pass the URL of an OpenAI-compatible endpoint"
        ) from error
    if probe.endpoint.model not in listed:
        raise BadInputError(
            f"model {probe.endpoint.model!r} is not served", f"pass --model: {', '.join(sorted(listed))}"
        )
    known = listed[probe.endpoint.model].get("max_model_len") or found.get("maxModelLen") or 0
    return known if isinstance(known, int) else 0


def _refuse_long(profiles: Mapping[str, Profile], longest: int) -> None:
    for profile in profiles.values():
        needed = profile.longest_context + ROOM
        if 0 < longest < needed:
            factor = math.floor((longest - ROOM) / profile.longest_context * 95) / 100
            fix = f"multiply --scale by {factor:g} or less, or raise maxModelLen" if factor > 0 else "raise maxModelLen"
            raise BadInputError(
                f"profile {profile.name} needs a context of {needed:,} tokens, and the model serves {longest:,}", fix
            )


def _ask(probe: Probe, body: Mapping[str, Any]) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {probe.endpoint.key}"}
    return probe.http.post(probe.endpoint.root + CHAT_PATH, json=body, headers=headers, timeout=GENERATION_SECONDS)


def _tokens_of_a_word(probe: Probe) -> float:
    """Measure what the endpoint counts for the words that texts are made of."""
    counted = []
    for words in (1, CALIBRATION_WORDS):
        text = " ".join((WORDS * (words // len(WORDS) + 1))[:words])
        body = {"model": probe.endpoint.model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        counted.append(_prompt_tokens(probe, _ask(probe, body)))
    few, many = counted
    return max(0.1, (many - few) / (CALIBRATION_WORDS - 1))


def _tokens_of_the_form(probe: Probe, profile: Profile, sizes: Sizes) -> int:
    """Measure a profile's request with hardly any text. Raises BadInputError if the model has no tools for it."""
    if not profile.has_tools or probe.endpoint.supports_tools:
        same = random.Random(0)  # noqa: S311 - words, not secrets
        _, body = next(requests(profile.scaled(0), probe.endpoint.model, sizes, same, same))
        body = {key: value for key, value in body.items() if key not in {"stream_options", "min_tokens", "ignore_eos"}}
        response = _ask(probe, {**body, "stream": False, "max_tokens": 1})
        if not profile.has_tools or response.status_code != httpx2.codes.BAD_REQUEST:
            return _prompt_tokens(probe, response)
    without = [each for each in PROFILES if not PROFILES[each].has_tools]
    raise BadInputError(
        f"profile {profile.name} needs tool calls, and the model has none",
        f"serve a model with native function calling, or use --profile {', '.join(without)}",
    )


def _prompt_tokens(probe: Probe, response: httpx2.Response) -> int:
    """Return what the endpoint counts for a prompt."""
    if response.status_code != httpx2.codes.OK:
        raise explain_status(response, probe.endpoint, (probe.endpoint.model,))
    try:
        return int(response.json()["usage"]["prompt_tokens"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError("the endpoint's answers count no tokens (usage)", "load an endpoint of vLLM's") from error


# --- The load


async def _all_runs(plan: Plan, chosen: Mapping[str, Sequence[Profile]]) -> list[Run]:
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        plan.interrupted = True

    loop.add_signal_handler(signal.SIGINT, interrupt)
    # Otherwise a collection of everything that was imported stops this client for a tenth of a second.
    gc.collect()
    gc.freeze()
    try:
        async with connect(plan.endpoint, GENERATION_SECONDS) as http:
            client = Client(plan.endpoint, plan.sizes, http, seed=plan.seed)
            return [await _one_run(plan, client, name, profiles) for name, profiles in chosen.items()]
    finally:
        gc.unfreeze()
        loop.remove_signal_handler(signal.SIGINT)


async def _one_run(plan: Plan, client: Client, name: str, profiles: Sequence[Profile]) -> Run:
    """Double the rate until the endpoint is past its limit, then try the rate between the last two."""
    distinct = list({profile.name: profile for profile in profiles}.values())
    alone: dict[str, Alone] = {}
    for profile in distinct:
        if not plan.over() and (work := await _warm_up(plan, client, profile)):
            alone[profile.name] = work
    tried: dict[float, tuple[Figures, Step]] = {}
    ended = plan.over()
    mean = sum(alone[profile.name].seconds for profile in profiles if profile.name in alone) / len(profiles)
    mean_requests = sum(len(profile.turns) for profile in profiles) / len(profiles)
    rate = plan.first_rate or on_grid(FIRST_LOAD * 3600 / max(mean, 1e-3))
    cut_short: Figures | None = None
    is_between = is_refused = False
    while not ended:
        if plan.requests_per_minute and rate * mean_requests / 60 > plan.requests_per_minute:
            is_refused = True
            ended = f"the gateway allows {plan.requests_per_minute:,} requests a minute with one key"
            break
        duration = max(plan.step_seconds, LEAST_REQUESTS / mean_requests / rate * 3600)
        step = await _one_step(plan, client, name=name, profiles=profiles, rate=rate, duration=duration)
        plan.tokens += _tokens(step.answers)
        found = figures(step, plan.limits)
        ended = plan.over()
        if step.stopped and not ended and not found.past:
            found = replace(found, past=step.stopped)
        if found.past or not ended:
            tried[rate] = found, step
        else:
            cut_short = found
        if is_between or (found.past and len(tried) == 1):
            break
        if found.past:
            is_between = True
            rate /= BETWEEN
        else:
            rate *= BETWEEN**2
    steps = [tried[rate][0] for rate in sorted(tried)]
    kept = carried(steps)
    last = tried[kept.per_hour][1] if kept else Step(0.0)
    by_profile = {
        profile.name: figures(_part(last, profile.name), plan.limits)
        for profile in distinct
        if any(answer.profile == profile.name for answer in last.answers)
    }
    return Run(
        name=name,
        profiles=distinct,
        alone=alone,
        steps=steps,
        by_profile=by_profile,
        cut_short=cut_short,
        ended=ended,
        advice=RAISE_LIMITS if is_refused else advice(steps),
    )


async def _warm_up(plan: Plan, client: Client, profile: Profile) -> Alone | None:
    """Do one piece of work alone, without pauses; None if the load must end meanwhile."""
    plan.say(f"warm-up: {profile.name}")
    client.answers = []
    quick = replace(profile, turns=[replace(turn, pause_seconds=0.0) for turn in profile.turns])
    work = asyncio.create_task(client.work(quick, time.monotonic(), -1))
    while not work.done() and not plan.over():
        await asyncio.wait([work], timeout=0.5)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    plan.tokens += _tokens(client.answers)
    if plan.over():
        return None
    failed = next((answer for answer in client.answers if answer.error), None)
    if failed:
        raise UserError(
            f"profile {profile.name}: a single request failed ({failed.error})",
            "see scripts/elastic-vllm verify; nothing was loaded yet",
        )
    return Alone(
        seconds=sum(answer.ended - answer.intended for answer in client.answers),
        first_token=max((answer.first_token for answer in client.answers if answer.first_token), default=None),
        prompt_tokens=sum(answer.prompt_tokens for answer in client.answers),
        answer_tokens=sum(answer.answer_tokens for answer in client.answers),
    )


async def _one_step(
    plan: Plan, client: Client, *, name: str, profiles: Sequence[Profile], rate: float, duration: float
) -> Step:
    expected = rate / 3600 * duration * sum(len(profile.turns) for profile in profiles) / len(profiles)
    allowed_late = max(1, math.floor(LATE_SHARE * expected))
    allowed_failed = max(1, math.floor(FAILED_SHARE * expected))

    def enough(answers: Sequence[Answer]) -> str:
        late = sum(
            is_late(answer, plan.limits) for answer in answers if not answer.error or answer.error == "unfinished"
        )
        failed = sum(answer.error not in {"", UNFINISHED} for answer in answers)
        if any(map(is_own_limit, answers)):
            return "the gateway's own limit was reached"
        if late > allowed_late or failed > allowed_failed:
            return f"{late} late and {failed} failed of about {expected:.0f} requests"
        if len(client.under_way) > MOST_UNDER_WAY:
            return f"more than {MOST_UNDER_WAY} requests were in progress"
        return plan.over(_tokens(answers))

    def progress(step: Step, due: int) -> None:
        done = len(step.answers)
        plan.say(
            f"{name}: {rate:,.0f} an hour for {duration:.0f} s: {due} pieces of work due, {done} requests answered, "
            f"{len(client.under_way)} in progress"
        )

    # The same order of profiles in each step, spread evenly.
    order = sorted(range(len(profiles)), key=lambda place: (place * 7) % len(profiles))
    return await run_step(
        client,
        lambda number: profiles[order[number % len(order)]],
        rate,
        duration,
        enough=enough,
        on_progress=progress,
    )


def on_grid(per_hour: float) -> float:
    """Return the next lower rate of a fixed series, so that steps of different loads can be compared."""
    return float(BETWEEN ** math.floor(math.log(per_hour, BETWEEN) + 1e-9))


def _tokens(answers: Sequence[Answer]) -> int:
    return sum(answer.prompt_tokens + answer.answer_tokens for answer in answers)


def _part(step: Step, profile: str) -> Step:
    return Step(
        step.per_hour,
        step.seconds,
        [answer for answer in step.answers if answer.profile == profile],
        cpu_share=step.cpu_share,
    )

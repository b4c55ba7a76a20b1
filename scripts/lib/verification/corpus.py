"""Requests of Elastic's features, each as a check that names the feature."""

from collections.abc import Callable, Mapping

from components.catalogue.models import load_catalogue
from components.elastic.corpus import Form, refusals
from components.files.vllm import ask_vllm
from scripts.lib.verification.endpoint import CHAT_PATH
from scripts.lib.verification.failures import CheckFailedError, KnownLimitError, explain_status
from scripts.lib.verification.probe import GENERATION_SECONDS, Probe

QUICK_TOKENS = 8
REFUSED_FIX = (
    "use another model, tokenizer mode or chat template, or switch native function calling off "
    "(docs/adr/0025-default-model.md)"
)
BAD_REQUEST = 400


def form_check(form: Form) -> Callable[[Probe], str]:
    """Return the check that the model answers the form, well-formed and complete."""

    def check(probe: Probe) -> str:
        request = form.request(probe.endpoint.model, min(probe.form_tokens, probe.max_tokens))
        response = probe.http.post(
            probe.endpoint.root + CHAT_PATH,
            json=request,
            headers={"Authorization": f"Bearer {probe.endpoint.key}"},
            timeout=GENERATION_SECONDS,
        )
        limit = known_limits(probe).get(form.name)
        if response.status_code == BAD_REQUEST and limit:
            raise KnownLimitError(f"{form.feature}: {limit}")
        if response.is_error and response.status_code != BAD_REQUEST:
            raise explain_status(response, probe.endpoint, probe.served)
        probe.cost.add_answer(request, response.text)
        flaw = ask_vllm.flaw(request, response.status_code, response.text)
        if flaw:
            raise CheckFailedError(f"{form.feature}: {flaw}", REFUSED_FIX)
        return f"{form.feature}{', although it is listed as refused' if limit else ''}"

    return check


def known_limits(probe: Probe) -> Mapping[str, str]:
    """Map the forms that vLLM, or the served model by its catalogue entry, refuses to the consequences."""
    if probe.endpoint.refuses is not None:
        return refusals(probe.endpoint.refuses)
    models = load_catalogue().models
    return refusals(
        next((models[name].refuses for name in (probe.endpoint.model, *probe.served) if name in models), {})
    )

"""Checks of the model's hub."""

import os
from http import HTTPStatus

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from components.settings.stack import Settings
from scripts.cli.preflight.report import NotCheckedError, Outcome, failed, ok

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - a variable's name
ANSWER_SECONDS = 30.0


def model(settings: Settings) -> Outcome:
    """Check that the hub has the model and its revision, and that the token of $HF_TOKEN may read it."""
    name, revision = settings.model.name, settings.model_revision
    if settings.model_source != "hub":
        where = "weightsImage has the weights" if settings.gke else "modelSource is host: the weights are there already"
        raise NotCheckedError(where)
    token = os.environ.get(TOKEN_VARIABLE, "").strip() or False
    hub = HfApi(endpoint=settings.hf_endpoint)
    try:
        found = hub.model_info(name, revision=revision, timeout=ANSWER_SECONDS, token=token)
        if found.gated:
            hub.auth_check(name, token=token)
    except GatedRepoError:
        return _no_access(name, has_token=bool(token))
    except RevisionNotFoundError:
        return failed(f"{name} has no revision {revision}", "check modelRevision, or run scripts/elastic-vllm pin")
    except RepositoryNotFoundError:
        hidden = "" if token else f", or if it is private set ${TOKEN_VARIABLE}"
        return failed(f"{settings.hf_endpoint} shows no {name}", f"check model{hidden}")
    except HfHubHTTPError as error:
        if error.response.status_code == HTTPStatus.UNAUTHORIZED and token:
            return failed(f"{settings.hf_endpoint} refuses the token of ${TOKEN_VARIABLE}", "set it to a valid one")
        raise NotCheckedError(f"{settings.hf_endpoint} answered {error.response.status_code}") from error
    except (OSError, httpx2.HTTPError) as error:
        raise NotCheckedError(f"no answer from {settings.hf_endpoint} ({error})") from error
    return ok(f"{name} at {revision[:12]}, {'gated, may be read' if found.gated else 'open to everyone'}")


def _no_access(name: str, *, has_token: bool) -> Outcome:
    if has_token:
        return failed(f"{name} is gated and ${TOKEN_VARIABLE} may not read it", "ask for access on the model's page")
    return failed(f"{name} is gated and there is no token", f"set ${TOKEN_VARIABLE} to the one that hfToken holds")

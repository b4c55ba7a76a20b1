"""Access to a cluster by its official client, for what Pulumi's provider does not do: to look, to wait and to ask.

The client takes seconds to import, so only the functions that need it do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException

PROJECT_DIRECTORY = Path(__file__).resolve().parents[2]
CREDENTIALS_COMMAND = ("scripts/elastic-vllm", "gke-credentials")
"""Command of this project that gives a client of the cluster its token; from Pulumi's plugins, whose directory is the
project's, as much as from here."""
SECONDS = 20
"""Limit for one try to connect to the API server, and for its answer; a try is repeated once."""


class ClusterError(Exception):
    """The cluster can't be used as it is; the text has the cause and the fix."""


def connect(kubeconfig: str, context: str) -> ApiClient:
    """Return a client for `context` of a kubeconfig, which is a file's path or its content. Raises ClusterError."""
    import yaml
    from kubernetes import config
    from kubernetes.client import Configuration
    from kubernetes.config.config_exception import ConfigException

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would print each try
    settings = Configuration()
    settings.retries = 1
    where = kubeconfig if "\n" not in kubeconfig else "the kubeconfig"
    try:
        text = Path(kubeconfig).read_text(encoding="utf-8") if "\n" not in kubeconfig else kubeconfig
        document = yaml.safe_load(text)
        contexts = [each["name"] for each in document["contexts"]]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ClusterError(
            f"{where} is no kubeconfig ({type(error).__name__}); fix: set kubeconfig to the file that "
            "`kubectl config view` reads"
        ) from error
    if context not in contexts:
        raise ClusterError(
            f"{where} has no context {context!r}; fix: set kubeContext to one of {', '.join(contexts) or 'its own'}"
        )
    try:
        if "\n" in kubeconfig:
            for user in document.get("users", []):
                credentials = user["user"].get("exec", {})
                if credentials.get("command") == CREDENTIALS_COMMAND[0]:
                    credentials["command"] = str(PROJECT_DIRECTORY / CREDENTIALS_COMMAND[0])
            client = config.new_client_from_config_dict(document, context=context, client_configuration=settings)
        else:
            client = config.new_client_from_config(kubeconfig, context=context, client_configuration=settings)
    except (ConfigException, OSError) as error:
        raise ClusterError(f"the context {context!r} of {where} can't be used: {error}; fix: correct it") from error
    ask = client.rest_client.request
    # Else a cluster that does not answer would be waited for without end.
    client.rest_client.request = lambda *arguments, _request_timeout=None, **named: ask(
        *arguments, _request_timeout=_request_timeout or (SECONDS, SECONDS), **named
    )
    return client


def request_errors() -> tuple[type[Exception], ...]:
    """Return what a request may raise: a refusal, or no answer."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return (ApiException, HTTPError)


def explained(error: Exception, what: str) -> ClusterError:
    """Return the error of a request to `what` as one that a user can correct."""
    from kubernetes.client import ApiException

    if not isinstance(error, ApiException):
        reason = getattr(error, "reason", None) or error
        return ClusterError(
            f"no answer from the cluster for {what} ({reason}); fix: is the cluster up, does this machine reach it, "
            "and are kubeconfig and kubeContext right?"
        )
    if error.status == HTTPStatus.UNAUTHORIZED:
        return ClusterError(
            f"the cluster refuses the credentials of kubeContext ({what}); fix: renew them, or use another context"
        )
    if error.status == HTTPStatus.FORBIDDEN:
        return ClusterError(
            f"{message(error)}; fix: ask for the rights of docs/reference/kubernetes-role.yaml in the namespace"
        )
    return ClusterError(f"{what}: {message(error)}; fix: correct what the cluster names, and run the same again")


def message(error: ApiException) -> str:
    """Return the API server's own words for a refusal."""
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, LookupError, TypeError):
        return f"{error.status} {error.reason}"


def is_status(error: Exception, status: HTTPStatus) -> bool:
    """Return True for the API server's answer with this status."""
    return getattr(error, "status", None) == status


@contextmanager
def tolerated(status: HTTPStatus) -> Iterator[None]:
    """End the block without an error where the API server answers with this status."""
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as error:
        if not is_status(error, status):
            raise

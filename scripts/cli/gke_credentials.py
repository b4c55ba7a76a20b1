"""Credentials for a client of a cluster in Google Cloud, in the form of client-go's credential plugins.

The program writes this command into its kubeconfigs, in place of gke-gcloud-auth-plugin. The token goes from here to
the client through a pipe, and is in no command line, log or state.
"""

import json
import sys

import typer
from google.auth.exceptions import GoogleAuthError, RefreshError
from google.auth.transport.requests import Request

from components.errors import UserError
from scripts.lib.google import SCOPE, find_identity

API_VERSION = "client.authentication.k8s.io/v1"
SCOPES = (SCOPE, "https://www.googleapis.com/auth/userinfo.email")
"""Those of gke-gcloud-auth-plugin: without the second, RBAC knows a service account by its number alone."""


def main() -> None:
    """Give a Kubernetes client a token of Google's. The client runs this by its kubeconfig; it is not for terminals.

    Credentials: as for preflight.
    """
    if sys.stdout.isatty():
        raise UserError("a token would be shown on this terminal", "leave this command to the clients of the cluster")
    identity = find_identity(SCOPES)
    credentials = identity.credentials
    try:
        if not credentials.valid:
            credentials.refresh(Request())  # type: ignore[no-untyped-call]
    except RefreshError as error:
        cause = error.args[0] if error.args else error
        raise UserError(f"Google refuses the {identity.kind}: {cause}", identity.renewal) from error
    except GoogleAuthError as error:
        raise UserError(f"no answer from Google for the {identity.kind}", "check this machine's network") from error
    status = {"token": credentials.token}
    if credentials.expiry:
        status["expirationTimestamp"] = f"{credentials.expiry:%Y-%m-%dT%H:%M:%SZ}"
    typer.echo(json.dumps({"apiVersion": API_VERSION, "kind": "ExecCredential", "status": status}))

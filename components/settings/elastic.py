"""The Kibana and the Elasticsearch that `up` is to connect, where it is to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pulumi

from components.elastic import versions
from components.settings import pem
from components.settings.problems import Problems

LOOPBACK = ("127.0.0.1", "localhost", "::1")
VERSION = re.compile(r"\d{1,2}\.\d{1,2}(\.\d{1,3})?")
SPACE = re.compile(r"[a-z0-9_-]+")
DEPLOYMENTS = ("self-managed", "hosted", "serverless")


@dataclass(frozen=True, kw_only=True)
class ElasticProduct:
    """Kibana or Elasticsearch, as this machine reaches it."""

    url: str
    """Address without a slash at its end; empty to create nothing there."""
    key: pulumi.Output[str]
    """Secret."""


@dataclass(frozen=True, kw_only=True)
class ElasticSettings:
    """The Elastic that is connected, and what `up` creates there."""

    deployment: str
    """One of DEPLOYMENTS."""
    version: str
    """Such as 9.2, or `serverless`; empty: not known."""
    kibana: ElasticProduct
    space: str
    """Empty: the default space."""
    default_connector: bool
    """True if Kibana's AI features are to use the connector by default."""
    elasticsearch: ElasticProduct
    ca: str
    """PEM of the CA of both; empty: the system's store."""


def elastic_settings(
    problems: Problems, secrets: Mapping[str, pulumi.Output[str]], project_directory: Path
) -> ElasticSettings:
    """Read and check the settings of Kibana and Elasticsearch."""
    deployment = problems.choice("elasticDeployment", DEPLOYMENTS)
    ca = pem.text_or_file(problems, "elasticCa", project_directory)
    return ElasticSettings(
        deployment=deployment,
        version=_version(problems, deployment),
        default_connector=problems.boolean("kibanaDefaultConnector"),
        kibana=_product(problems, secrets, "kibana"),
        space=_pattern(problems, "kibanaSpace", SPACE, "use the space's identifier, as in its address: /s/SPACE"),
        elasticsearch=_product(problems, secrets, "elasticsearch"),
        ca=pem.as_text(pem.certificates(problems, "elasticCa", ca)) if ca else "",
    )


def _version(problems: Problems, deployment: str) -> str:
    text = problems.values["elasticVersion"]
    fix = "write major and minor version, such as 9.2, or leave it empty"
    if deployment == versions.SERVERLESS:
        if text:
            problems.add("elasticVersion", "set, but serverless has no version to choose", "leave it empty")
        return versions.SERVERLESS
    if not text:
        return ""
    if not VERSION.fullmatch(text):
        problems.add("elasticVersion", "not a version", fix)
        return ""
    version = versions.parse(text)
    if version < versions.OTHER_PROVIDER:
        problems.add("elasticVersion", "its OpenAI connector knows no provider 'Other'", "use Elastic 8.16 or newer")
    elif problems.values["clientCertificates"] != "[]" and not versions.accepts("certificateData", version):
        problems.add(
            "elasticVersion",
            "its connectors have no client certificate, which clientCertificates asks for",
            "use Elastic 8.19, 9.1 or newer, or set clientCertificates to []",
        )
    return text


def _product(problems: Problems, secrets: Mapping[str, pulumi.Output[str]], product: str) -> ElasticProduct:
    url_key, api_key = f"{product}Url", f"{product}ApiKey"
    url = problems.values[url_key].rstrip("/")
    if url:
        _url(problems, url_key, url)
    if re.search(r"[^!-~]", problems.values[api_key]):
        problems.add(
            api_key, "holds spaces or signs that no API key has", "give the text called `encoded`, and no more"
        )
    return ElasticProduct(url=url, key=secrets[api_key])


def _url(problems: Problems, key: str, url: str) -> None:
    fix = "give https://HOST[:PORT][/PATH], as this machine reaches it"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        problems.add(key, "not a URL", fix)
        return
    if parts.scheme not in {"http", "https"} or not parts.hostname or re.search(r"\s", url):
        problems.add(key, "not a URL", fix)
    elif "@" in parts.netloc or parts.query or parts.fragment:
        problems.add(key, "has a user, a query or a fragment", fix)
    elif parts.scheme == "http" and parts.hostname not in LOOPBACK:
        problems.add(key, "would send the API key unencrypted", "use https://")
    elif "/s/" in f"{parts.path}/":
        problems.add(key, "names a space", "leave /s/SPACE out and set kibanaSpace")
    elif "/api/" in f"{parts.path}/" or "_inference" in parts.path:
        problems.add(key, "is the address of an API", "give the address of the product itself, without the API's path")


def _pattern(problems: Problems, key: str, pattern: re.Pattern[str], fix: str) -> str:
    value = problems.values[key]
    if value and not pattern.fullmatch(value):
        problems.add(key, "invalid format", fix)
    return value

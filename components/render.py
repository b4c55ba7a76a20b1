"""Pure text: the files under files/ plus values. The same input always gives the same text."""

import base64
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

FILES = Path(__file__).with_name("files")

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FILES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - configuration files, not HTML; values are checked settings
)


def script(*names: str, **variables: str | int) -> str:
    """Shell scripts of files/, one after the other, with common.sh and `variables` (as upper-case names) in front.

    Variables are quoted, so any text is safe; never pass a secret, it would show in plans.
    """
    assignments = "".join(f"{name.upper()}={shlex.quote(str(value))}\n" for name, value in variables.items())
    return assignments + "".join((FILES / name).read_text(encoding="utf-8") for name in ("host/common.sh", *names))


def template(name: str, **values: Any) -> str:
    """A Jinja template of files/, filled. A missing value is an error."""
    return _templates.get_template(name).render(**values)


def url_host(host: str) -> str:
    """Return a name or address as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def files_as_lines(files: Mapping[str, str]) -> str:
    """Files as one text, a line each: `NAME BASE64`. What install-nginx-config.sh reads on its standard input."""
    return "".join(f"{name} {base64.b64encode(text.encode()).decode()}\n" for name, text in files.items())

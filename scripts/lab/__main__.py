"""`python -m scripts.lab`."""

import gc

# A run is short and keeps nearly all its objects to the end: collecting garbage would take a seventh of an `up` without
# changes.
gc.disable()

from scripts.lab.cli import app  # noqa: E402 (importing makes most of it)

app(prog_name="rehearse")

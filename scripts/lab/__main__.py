"""`python -m scripts.lab`."""

import gc

# A run keeps nearly all that it makes until its end, which is near: looking for garbage is a seventh of an `up` that
# has nothing to do.
gc.disable()

from scripts.lab.cli import app  # noqa: E402 (importing makes most of it)

app(prog_name="rehearse")

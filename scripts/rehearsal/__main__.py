"""`python -m scripts.rehearsal`."""

from scripts.rehearsal.cli import app

app(prog_name="rehearse")

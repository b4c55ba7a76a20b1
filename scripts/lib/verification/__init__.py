"""Proof that an endpoint keeps its promises, as seen by a client: `run.verify` runs every check."""

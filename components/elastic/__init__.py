"""Elastic: what it is given, and what `up` creates in it."""

"""Checks of `diagnose`: the endpoint from outside, its server over SSH, and Kibana."""

"""Certificates of the endpoint and of its clients."""

"""The price of the proxy: a stack's Nginx and the guide's, compared with direct access (docs/benchmarks.md)."""

"""Maintainers' tools: benchmarks, proofs, recordings."""

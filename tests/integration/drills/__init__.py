"""Failure drills: a fault, what clients saw, how long it took, and what the next `up` did. `make drills` runs all."""

"""A stack's settings: read, checked as a whole, and refused before anything is created."""

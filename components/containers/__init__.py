"""The container engine, and how it runs containers."""

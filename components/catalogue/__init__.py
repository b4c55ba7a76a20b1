"""Known models and machine types."""

"""Programs that users run besides pulumi."""

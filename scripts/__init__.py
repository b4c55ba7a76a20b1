"""What people run besides pulumi."""

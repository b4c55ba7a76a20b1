"""What Nginx costs: as a stack has it, and as the guide has it, against going direct (docs/benchmarks.md)."""

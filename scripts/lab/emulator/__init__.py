"""A stand-in for Pulumi's engine and providers, for machines without Pulumi."""

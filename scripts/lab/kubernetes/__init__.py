"""A real Kubernetes on this machine: one or two nodes in namespaces of their own, built from Go modules."""

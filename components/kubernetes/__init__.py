"""Components of an endpoint that runs in a cluster: its gateway, vLLM's pods, and what keeps them apart."""

"""Components that answer requests: model weights, vLLM, and Nginx in front of it."""

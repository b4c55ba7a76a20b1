"""What answers requests: model weights, vLLM, and Nginx in front of it."""

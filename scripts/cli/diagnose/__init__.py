"""What scripts/elastic-vllm diagnose looks at: the endpoint from outside, its server over SSH, and Kibana."""

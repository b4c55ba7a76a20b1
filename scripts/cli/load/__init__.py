"""Load of Elastic's kind on an endpoint, and how much of it the endpoint carries."""

"""The machine: a server that exists, or a VM in Google Cloud, and its GPU driver."""

"""The document for the Elastic admin."""

"""Bundle for a site without network."""

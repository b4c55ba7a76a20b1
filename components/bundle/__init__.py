"""The bundle of a site without network."""

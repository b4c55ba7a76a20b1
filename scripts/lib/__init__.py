"""Library of the operator's commands, the laboratory and the maintainers' tools."""

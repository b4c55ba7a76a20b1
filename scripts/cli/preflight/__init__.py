"""The checks of preflight: `run.checks_of` lists it, `run.run` does it; nothing here changes anything."""

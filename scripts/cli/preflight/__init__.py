"""Checks of preflight: `run.checks_of` lists them, `run.run` runs them; nothing here changes anything."""

"""A stack's own file in stacks/, read and written with its comments as `pulumi config set` would."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from scripts.lib.errors import BadInputError

PREFIX = "elastic-vllm:"
WRITE_IT = "write it, as docs/getting-started/server.md shows"


class StackFile:
    """The settings of one stack; a change is written by `save`."""

    def __init__(self, root: Path, stack: str) -> None:
        """Read it. Raises BadInputError."""
        self.path = root / "stacks" / f"Pulumi.{stack}.yaml"
        self.name = f"stacks/{self.path.name}"
        self._yaml = YAML()
        self._yaml.preserve_quotes = True
        self._yaml.width = 10_000
        self._yaml.indent(mapping=2, sequence=4, offset=2)  # as `pulumi config set` writes lists
        try:
            self._document = self._yaml.load(self.path)
        except FileNotFoundError as error:
            raise BadInputError(f"there is no {self.name} (--stack)", WRITE_IT) from error
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise BadInputError(f"{self.name} can't be read: {' '.join(str(error).split())}", "correct it") from error
        config = self._document.get("config") if isinstance(self._document, MutableMapping) else None
        if not isinstance(config, MutableMapping):
            raise BadInputError(f"{self.name} has no settings under config", WRITE_IT)
        self.config: MutableMapping[str, Any] = config

    def get(self, key: str) -> Any:
        """Return a setting's value, or None if the file leaves it to the default."""
        return self.config.get(PREFIX + key)

    def set(self, key: str, value: Any) -> None:
        """Change a setting, in memory."""
        self.config[PREFIX + key] = value

    def save(self) -> None:
        """Write the file, as a whole or not at all."""
        new = self.path.with_suffix(".new")
        self._yaml.dump(self._document, new)
        new.replace(self.path)

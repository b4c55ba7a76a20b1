"""Nginx's configuration language, as far as nginx.conf.j2 uses it: text -> directives."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(r"""\s+|\#[^\n]*|(?P<special>[{};])|'(?P<single>(?:\\.|[^'])*)'|"(?P<double>(?:\\.|[^"])*)"|"""
                   r"""(?P<word>(?:\$\{|[^\s{};'"])[^\s{};]*)""")  # fmt: skip


@dataclass
class Directive:
    name: str
    arguments: list[str]
    children: list["Directive"] = field(default_factory=list)

    def walk(self) -> Iterator["Directive"]:
        """Yield this directive and all nested ones."""
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, name: str) -> list["Directive"]:
        return [directive for directive in self.walk() if directive.name == name]

    def own(self, name: str) -> list[list[str]]:
        """Return the arguments of each child of that name."""
        return [child.arguments for child in self.children if child.name == name]


def parse(text: str) -> Directive:
    """Parse a whole file into one directive without a name."""
    root = Directive("", [])
    open_blocks, words, position = [root], list[str](), 0
    while position < len(text):
        match = TOKEN.match(text, position)
        assert match, f"not understood: {text[position : position + 40]!r}"
        position = match.end()
        if match["special"] == "}":
            assert not words, f"no semicolon after {' '.join(words)}"
            open_blocks.pop()
        elif match["special"]:
            directive = Directive(words[0], words[1:])
            open_blocks[-1].children.append(directive)
            words = []
            if match["special"] == "{":
                open_blocks.append(directive)
        elif match["single"] is not None or match["double"] is not None:
            words.append(_unescape(match["single"] or match["double"] or ""))
        elif match["word"]:
            words.append(match["word"])
    assert open_blocks == [root], "a block is not closed"
    return root


def _unescape(text: str) -> str:
    r"""Unescape a quoted text as Nginx does (ngx_conf_read_token): \n, \r and \t too, so JSON's own do not survive."""
    known = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\"}
    return re.sub(r"""\\([nrt"'\\])""", lambda match: known[match[1]], text)

"""Parse YAML into plain values and the line number of each."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import yaml

from qwenfleet.cluster.errors import ConfigError

Loc = tuple[str | int, ...]
"""The place of a value in the tree, such as ("models", 0, "replicas")."""

_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Document:
    """The values of one file, and the line of each key and list entry (from 1)."""

    file: str
    value: object
    lines: dict[Loc, int] = field(repr=False)

    def line(self, loc: Loc) -> int:
        """Return the line of `loc`, or of its nearest parent in the file."""
        while loc not in self.lines:
            loc = loc[:-1]
        return self.lines[loc]


def parse(text: str, file: str) -> Document:
    """Parse one YAML document with the safe loader. Raises `ConfigError`."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError("the file is empty", "List at least one model under 'models:'.", file)
        lines = _Lines(loader, file)
        lines.collect(node, (), ())
        return Document(file, loader.construct_document(node), lines.of)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character {chr(error.character)!r} is not allowed in YAML"
        raise ConfigError(problem, "Remove it.", file, line) from error


class _Lines:
    """Collects the line of each key, and refuses keys that YAML would silently convert."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self.of: dict[Loc, int] = {}
        self._loader = loader
        self._file = file
        self._checked: set[int] = set()

    def collect(self, node: yaml.Node, loc: Loc, around: tuple[yaml.Node, ...]) -> None:
        self.of.setdefault(loc, _line(node))
        if any(node is outer for outer in around):
            self._refuse(node, f"{spell(loc)} contains itself", "Remove the alias.", loc)
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node, loc)
            self._loader.flatten_mapping(node)
            for key, value in node.value:
                self.of[(*loc, key.value)] = _line(key)
                self.collect(value, (*loc, key.value), (*around, node))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.collect(value, (*loc, index), (*around, node))
        else:
            self._check_scalar(node, loc)

    def _check_scalar(self, node: yaml.Node, loc: Loc) -> None:
        try:
            self._loader.construct_object(node)
        except ValueError as error:  # a date with month 13
            problem = f"{spell(loc)} {node.value} cannot be read: {error}"
            self._refuse(node, problem, "Put it in quotes if it is text.", loc)

    def _check_keys(self, node: yaml.MappingNode, loc: Loc) -> None:
        if id(node) in self._checked:  # an alias: it already contains the merged keys
            return
        self._checked.add(id(node))
        first: dict[Hashable, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE_TAG:
                continue
            if key.tag != _TEXT_TAG:
                name = key.value if isinstance(key, yaml.ScalarNode) else "[…]"
                problem = f"key {name} {within(loc)} is not text in YAML"
                self._refuse(key, problem, "Put it in quotes.", loc)
            if key.value in first:
                problem = f"key '{key.value}' {within(loc)} is already on line {first[key.value]}"
                self._refuse(key, problem, "Keep one of the two.", (*loc, key.value))
            first[key.value] = _line(key)

    def _refuse(self, node: yaml.Node, problem: str, remedy: str, loc: Loc) -> None:
        raise ConfigError(problem, remedy, self._file, _line(node), spell(loc))


def spell(loc: Loc) -> str:
    """Return a place as people write it: `models[0].replicas`; the root is "the file"."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "the file"


def within(loc: Loc) -> str:
    return f"in {spell(loc)}" if loc else "at the top level"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_error(error: yaml.MarkedYAMLError, file: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    line = None if mark is None else mark.line + 1
    what = error.problem or "the text is not YAML"
    if "'\\t'" in what:
        return ConfigError("a tab is used for indentation", "Use spaces.", file, line)
    if error.context:
        what = f"{what} ({error.context})"
    return ConfigError(f"invalid YAML: {what}", "Correct this line or the one above.", file, line)

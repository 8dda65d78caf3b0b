"""Read YAML safely: reject duplicate keys, and documents far larger than anyone would write by hand."""

from __future__ import annotations

import re
from typing import Any

import yaml

from audit.errors import UsageError

Lines = dict[tuple[str, ...], int]

# Large enough for a list of 100,000 paths, small enough to reject aliases that expand exponentially.
MOST_NODES = 200_000
MOST_BYTES = 64 << 20
DEEPEST = 50


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, changed to read `1e-3` as a number and dates as text, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str) -> tuple[Any, Lines]:
    """Parse a YAML document.

    Returns:
        The value of the document, and the line of each key by its path.

    Raises:
        UsageError: The text is not YAML, has a duplicate key, contains itself, or would be too large or too deep after
            its aliases are expanded. The size is computed before the expansion.
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"is longer than {MOST_BYTES >> 20} MiB", where=where)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        walk = _Walk(where)
        walk.count(node)
        walk.keys(node, ())
        return loader.construct_document(node), walk.lines
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"is not YAML: {' '.join(str(error).split())}", where=where) from error
    except RecursionError:
        raise UsageError(f"is nested deeper than {DEEPEST} levels", where=where) from None
    finally:
        loader.dispose()


class _Walk:
    """Count the nodes of a document, with aliases expanded, and record the lines of its keys."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()
        self.lines: Lines = {}

    def count(self, node: yaml.Node, depth: int = 0) -> int:
        """Return the number of nodes in a subtree. A node counts once per reference to it."""
        if id(node) in self._open:
            raise UsageError(f"line {_line(node)}: an alias refers to a node that contains it", where=self._where)
        if depth > DEEPEST:
            raise UsageError(f"line {_line(node)}: is nested deeper than {DEEPEST} levels", where=self._where)
        if id(node) not in self._sizes:
            self._open.add(id(node))
            self._sizes[id(node)] = 1 + sum(self.count(child, depth + 1) for child in _children(node))
            self._open.discard(id(node))
        if self._sizes[id(node)] > MOST_NODES:
            what = f"line {_line(node)}: aliases expand it to more than {MOST_NODES:,} values"
            raise UsageError(what, where=self._where, hint="Write the values out instead.")
        return self._sizes[id(node)]

    def keys(self, node: yaml.Node, at: tuple[str, ...]) -> None:
        """Record the lines of keys. Raises UsageError for a duplicate key."""
        if not isinstance(node, yaml.MappingNode):
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (*at, key.value)
            if key.value in seen and key.value != "<<":
                what = f"{'.'.join(name)} is given twice, in line {seen[key.value]} and in line {_line(key)}"
                raise UsageError(what, where=self._where, hint="Keep only one of them.")
            seen[key.value] = _line(key)
            self.lines.setdefault(name, _line(key))
            self.keys(value, name)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1

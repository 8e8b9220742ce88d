"""YAML text -> plain values, and the line each key stands on.

Scalars follow the YAML 1.2 core schema rather than PyYAML's 1.1: `2e-4` is a number, while `no`, `on` and dates stay
text. What the reader dislikes is collected as problems, so that one look at a file reports everything in it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recipe_kit.errors import Problem, RecipeError

Keys = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
# (tag, what a plain scalar must look like, the characters it may start with)
CORE_SCALARS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (f"{_TAG}int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        f"{_TAG}float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    (_MERGE, re.compile(r"^<<$"), ["<"]),
)


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2; it only composes nodes and never builds objects."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML declares it so)


for _tag, _pattern, _first in CORE_SCALARS:
    _CoreLoader.add_implicit_resolver(_tag, _pattern, _first)


@dataclass
class Document:
    """One YAML file: its values, the 1-based line of every key and list item, and what is wrong with its text."""

    file: str
    data: dict[str, Any]
    lines: dict[Keys, int]
    problems: list[Problem]


def read_document(path: Path, shown: str) -> Document:
    """Read a recipe file. `shown` is how messages name it. Raises RecipeError when nothing can be made of the file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise RecipeError([Problem("not UTF-8 text; save the file as UTF-8", file=shown, line=line)]) from error
    except OSError as error:
        raise RecipeError([Problem(f"cannot be read: {error.strerror}", file=shown)]) from error
    node = _compose(text, shown)
    if node is None:
        raise RecipeError([Problem("the file is empty; a recipe starts with `name:`", file=shown)])
    reader = _Reader(shown)
    data = reader.value(node, ())
    if not isinstance(data, dict):
        message = f"expected `key: value` lines, got {_kind(node)}"
        raise RecipeError([*reader.problems, Problem(message, file=shown, line=_line(node))])
    return Document(shown, data, reader.lines, reader.problems)


def read_value(text: str) -> Any:
    """The value of a `--set key=value`, read like a value in a file. Raises RecipeError."""
    node = _compose(text, "")
    if node is None:
        return None
    reader = _Reader("")
    value = reader.value(node, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return value


def _compose(text: str, shown: str) -> yaml.Node | None:
    try:
        loader = _CoreLoader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax_problem(error, text, shown)]) from error
    except RecursionError as error:
        raise RecipeError([Problem("not valid YAML: nested too deeply", file=shown)]) from error
    except yaml.reader.ReaderError as error:
        message = f"not valid YAML: the character U+{error.character:04X} is not allowed in it"
        line = text[: error.position].count("\n") + 1
        raise RecipeError([Problem(message, file=shown, line=line)]) from error


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, shown: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    index = mark.line if mark else 0
    lines = text.splitlines()
    # A tab may end the line before the one PyYAML stumbles over.
    for number in (index, index - 1):
        if 0 <= number < len(lines) and re.match(r"[ -]*\t", lines[number]):
            return Problem("a tab indents this line; YAML takes spaces only", file=shown, line=number + 1)
    cause = error.problem or "cannot be parsed"
    if "single document" in (error.context or ""):
        message = "a recipe file holds one document; remove the second `---`"
    elif cause.startswith("mapping values are not allowed"):
        message = (
            "not valid YAML: a second `: ` on this line; put quotes around text that contains it, or fix the indent"
        )
    else:
        message = f"not valid YAML: {cause}" + (f" ({error.context})" if error.context else "")
    return Problem(message, file=shown, line=index + 1 if shown else 0)


@dataclass
class _Reader:
    """Walks composed nodes and keeps the lines and problems met on the way."""

    file: str
    lines: dict[Keys, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    open_nodes: set[int] = field(default_factory=set)

    def problem(self, message: str, node: yaml.Node, keys: Keys) -> None:
        line = _line(node) if self.file else 0
        self.problems.append(Problem(message, key=dotted(keys), file=self.file, line=line))

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, keys)
        if id(node) in self.open_nodes:
            return self.problem("this alias points to a value that contains it", node, keys)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            return self.problem(f"the tag {_short(node.tag)} is not known here; write a plain value", node, keys)
        self.open_nodes.add(id(node))
        try:
            return self.mapping(node, keys) if isinstance(node, yaml.MappingNode) else self.sequence(node, keys)
        finally:
            self.open_nodes.discard(id(node))

    def sequence(self, node: yaml.Node, keys: Keys) -> list[Any]:
        items = []
        for index, child in enumerate(node.value):
            self.lines[(*keys, index)] = _line(child)
            items.append(self.value(child, (*keys, index)))
        return items

    def mapping(self, node: yaml.Node, keys: Keys) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                data.update(self.merged(value_node, keys))
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            if key_node.tag != f"{_TAG}str":
                hint = f'; write "{key_node.value}" in quotes' if isinstance(key_node, yaml.ScalarNode) else ""
                self.problem(f"keys are text{hint}", key_node, keys)
                continue
            key = key_node.value
            if key in seen:
                message = f"written twice, here and on line {seen[key]}; keep one of them"
                self.problem(message, key_node, (*keys, key))
                continue
            seen[key] = self.lines[(*keys, key)] = _line(key_node)
            data[key] = self.value(value_node, (*keys, key))
        return data

    def merged(self, node: yaml.Node, keys: Keys) -> dict[str, Any]:
        """What `<<: *anchor` or `<<: [*first, *second]` brings in; the first of several wins."""
        bases = node.value if isinstance(node, yaml.SequenceNode) else [node]
        data: dict[str, Any] = {}
        for base in reversed(bases):
            value = self.value(base, keys)
            if isinstance(value, dict):
                data.update(value)
            else:
                self.problem("`<<` takes an alias of a mapping", base, keys)
        return data

    def scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        text = str(node.value)
        kind = _short(node.tag)
        try:
            if kind == "!!null":
                return None
            if kind == "!!bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "!!int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "!!float":
                number = float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
                if math.isnan(number):
                    self.problem("not-a-number is no value for a recipe", node, keys)
                return number
            if kind in ("!!str", "!!merge"):
                return text
        except (ValueError, KeyError):
            return self.problem(f"{text[:60]!r} does not fit its tag {kind}", node, keys)
        return self.problem(f"the tag {kind} is not known here; write a plain value", node, keys)


def dotted(keys: Keys) -> str:
    """`("data", "train", 0, "id")` as people write it: `data.train.0.id`."""
    return ".".join(str(key) for key in keys)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "plain text"

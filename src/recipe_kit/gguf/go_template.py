"""Ollama's template language (Go's text/template): written for the turns of a chat template, and read back.

`write` keeps to the forms Ollama's own templates are made of: `range` over `.Messages`, `if` on a role, `$last`.
`render` understands these forms and nothing else, as Go does: it is the check of what was written, before Ollama
is there to tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from recipe_kit.gguf.turns import Turns

# Text that Go or Ollama's parser of Modelfiles would not take as it stands: an action's opening, a text's closing
# quotes, and characters that are not printed, which that parser leaves out.
_HELD = re.compile(r'\{{2,}|\{\Z|"{3,}|[^\n\t -~]')
_ACTION = re.compile(r'\{\{(- )?\s*((?:"(?:\\.|[^"\\])*"|[^"{}])*?)\s*\}\}')
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|\(|\)|:=|=|,|[$.\w]+')


def write(turns: Turns, *, system: str | None = None) -> str:
    """The template that writes a chat as `turns` say, with `system` in a chat that has no system message."""
    own_turn = turns.system is not None and not turns.folded
    opening = turns.opening
    if turns.system and own_turn and system is not None:
        opening = turns.system[0] + system + turns.system[1]
    pieces: list[tuple[bool, str]] = []  # (is an action, what)

    def text(value: str) -> None:
        pieces.extend(_split(value))

    def do(*actions: str) -> None:
        pieces.extend((True, action) for action in actions)

    if not own_turn:
        text(opening)
    if turns.system and turns.folded:
        do("$system := .System")
        if system is not None:
            do("if not $system", f"$system = {quoted(system)}", "end")
    do("range $i, $_ := .Messages", "$last := eq (len (slice $.Messages $i)) 1")
    if own_turn and opening:
        do('if and (eq $i 0) (ne .Role "system")')
        text(opening)
        do("end")
    if turns.system and own_turn:
        do('if eq .Role "system"')
        text(turns.system[0])
        do(".Content")
        text(turns.system[1])
    do(f'{"else if" if own_turn else "if"} eq .Role "user"')
    text(turns.user[0])
    if turns.system and turns.folded:
        do("if $system")
        text(turns.system[0])
        do("$system")
        text(turns.system[1])
        do('$system = ""', "end")
    do(".Content")
    text(turns.user[1])
    if turns.answer:
        do("if $last")
        text(turns.answer)
        do("end")
    do('else if eq .Role "assistant"')
    text(turns.assistant[0])
    do(".Content")
    if turns.assistant[1]:
        do("if not $last")
        text(turns.assistant[1])
        do("end")
    do("end", "end")
    return _joined(pieces)


def _split(value: str) -> Iterator[tuple[bool, str]]:
    """Text as it stands, and what cannot stand so as the action that writes it."""
    place = 0
    for match in _HELD.finditer(value):
        held = match.group()
        if not held.isascii() and held.isprintable():
            continue
        if plain := value[place : match.start()]:
            yield False, plain
        yield True, quoted(held)
        place = match.end()
    if plain := value[place:]:
        yield False, plain


def _joined(pieces: Sequence[tuple[bool, str]]) -> str:
    """Actions on lines of their own where no text is beside them: `{{-` takes away the line break and nothing else."""
    written = ""
    after_action = True
    for is_action, what in pieces:
        if is_action:
            written += ("\n" if written and after_action else "") + ("{{- " if after_action else "{{ ") + what + " }}"
        else:
            written += what
        after_action = is_action
    return written


def quoted(value: str) -> str:
    """A string as Go writes it, in printable characters."""
    escapes = {"\n": r"\n", "\t": r"\t", '"': r"\"", "\\": r"\\"}
    return f'"{"".join(escapes.get(c) or (c if c.isprintable() else _code(c)) for c in value)}"'


def _code(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def render(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama makes of a chat with a template that `write` wrote. Raises ValueError for any other form."""
    collected: list[dict[str, str]] = []
    for message in messages:  # as Ollama does, neighbours of one role are one message
        if collected and collected[-1]["Role"] == message["role"]:
            collected[-1]["Content"] += "\n\n" + message["content"]
        else:
            collected.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    data = {"Messages": collected, "System": system}
    nodes, rest = _block(_nodes(template))
    if rest:
        raise ValueError(f"unexpected {rest[0][1]!r}")
    return "".join(_execute(nodes, {"$": data, ".": data}))


def _nodes(template: str) -> list[tuple[bool, str]]:
    nodes: list[tuple[bool, str]] = []
    place = 0
    for match in _ACTION.finditer(template):
        text = template[place : match.start()]
        nodes += [(False, text.rstrip() if match.group(1) else text), (True, match.group(2))]
        place = match.end()
    nodes.append((False, template[place:]))
    if any("{{" in what for is_action, what in nodes if not is_action):
        raise ValueError("an action is not closed")
    return nodes


def _block(nodes: list[tuple[bool, str]]) -> tuple[list[Any], list[tuple[bool, str]]]:
    """Nodes up to `else` or `end`, which stands first in the rest."""
    block: list[Any] = []
    while nodes:
        is_action, what = nodes[0]
        if not is_action:
            block.append(("text", what))
        elif what == "end" or what.startswith("else"):
            return block, nodes
        elif what.startswith("range "):
            inner, nodes = _block(nodes[1:])
            block.append(("range", what, inner))
        elif what.startswith("if "):
            node, nodes = _branches(nodes)
            block.append(node)
        else:
            block.append(("do", what))
        nodes = nodes[1:]
    return block, []


def _branches(nodes: list[tuple[bool, str]]) -> tuple[Any, list[tuple[bool, str]]]:
    """An `if` with its `else if`s; the rest begins with its `end`."""
    branches: list[tuple[str | None, list[Any]]] = []
    while nodes[0][1] != "end":
        condition = nodes[0][1].removeprefix("else").strip().removeprefix("if ").strip() or None
        inner, nodes = _block(nodes[1:])
        branches.append((condition, inner))
        if not nodes:
            raise ValueError("an if has no end")
    return ("if", branches), nodes


def _execute(block: list[Any], scope: dict[str, Any]) -> Iterator[str]:
    for node in block:
        if node[0] == "text":
            yield node[1]
        elif node[0] == "do":
            yield _do(node[1], scope)
        elif node[0] == "if":
            taken = (inner for condition, inner in node[1] if condition is None or _value(condition, scope))
            yield from _execute(next(taken, []), scope)
        else:
            index, _, values = node[1].removeprefix("range ").partition(" := ")
            key = index.split(",")[0]
            before = scope["."]
            for number, item in enumerate(_value(values, scope)):
                scope |= {key: number, ".": item}
                yield from _execute(node[2], scope)
            scope["."] = before


def _do(action: str, scope: dict[str, Any]) -> str:
    """Set a variable, or write a value."""
    if found := re.fullmatch(r"(\$\w+) :?= (.+)", action, re.DOTALL):
        scope[found.group(1)] = _value(found.group(2), scope)
        return ""
    return str(_value(action, scope))


def _value(expression: str, scope: dict[str, Any]) -> Any:
    words = _WORD.findall(expression)
    value = _pipeline(words, scope)
    if words:
        raise ValueError(f"unexpected {words[0]!r} in {expression!r}")
    return value


def _pipeline(words: list[str], scope: dict[str, Any]) -> Any:
    """A value, or a function and its arguments, up to a closing bracket; takes the words it used."""
    functions: dict[str, Callable[..., Any]] = {
        "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "not": lambda a: not a, "len": len,
        "and": lambda a, b: a and b, "slice": lambda a, start: a[start:],
    }  # fmt: skip
    function = functions[words.pop(0)] if words[0] in functions else None
    values = []
    while words and words[0] != ")":
        values.append(_operand(words, scope))
    if function:
        return function(*values)
    (value,) = values
    return value


def _operand(words: list[str], scope: dict[str, Any]) -> Any:
    word = words.pop(0)
    if word == "(":
        value = _pipeline(words, scope)
        words.pop(0)
        return value
    if word.startswith('"'):
        return re.sub(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)", _character, word[1:-1])
    if word.isdigit():
        return int(word)
    head, *fields = word.split(".")
    value = scope[head or "."]
    for field in fields:
        value = value[field]
    return value


def _character(match: re.Match[str]) -> str:
    code = match.group(1)
    return chr(int(code[1:], 16)) if len(code) > 1 else {"n": "\n", "t": "\t"}.get(code, code)

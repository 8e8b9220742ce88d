"""Options of the installed LoraConfig, BitsAndBytesConfig and SFTConfig, read from their source without importing it.

Importing trl takes seconds and pulls in torch; parsing the few files that declare its options takes milliseconds, and
gives exactly what is installed. Where a library is missing or has moved its files, `options` returns None and names
go unchecked.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# (library, file, class): later ones override earlier ones, as children override parents.
_DATACLASSES = {
    "training": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "lora": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
}
_BITS_AND_BYTES = ("transformers", "utils/quantization_config.py", "BitsAndBytesConfig")
_ENUM_FILES = (("transformers", "trainer_utils.py"), ("transformers", "training_args.py"))
_SCALARS = frozenset({"int", "float", "bool", "str", "None"})
# `fsdp: str | None` is annotated so and documented to take `true` (transformers 5.23).
_ANNOTATION_IS_WRONG = frozenset({"fsdp"})


@dataclass(frozen=True)
class Option:
    """One option of an installed config class, as far as its source tells."""

    name: str
    types: frozenset[str] | None = None  # among int, float, bool, str, None; None when it takes anything else too
    choices: tuple[str, ...] = ()
    default: Any = None
    help: str = ""
    settable: bool = True


@cache
def options(section: str) -> dict[str, Option] | None:
    """Options of the class behind `lora`, `quantization` or `training`, by name; None when its source is not found."""
    if section == "quantization":
        return _init_arguments(*_BITS_AND_BYTES)
    found: dict[str, Option] = {}
    for library, file, name in _DATACLASSES[section]:
        node = _class(library, file, name)
        if node is None:
            return None
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                option = _dataclass_field(statement.target.id, statement)
                found[option.name] = option
    return found


@cache
def _module(library: str, file: str) -> ast.Module | None:
    # Only the top-level name: find_spec("trl.trainer") would import trl.
    spec = find_spec(library)
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / file
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _class(library: str, file: str, name: str) -> ast.ClassDef | None:
    module = _module(library, file)
    nodes = module.body if module else []
    return next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name), None)


def _dataclass_field(name: str, statement: ast.AnnAssign) -> Option:
    keywords: dict[str, Any] = {}
    if isinstance(statement.value, ast.Call):
        keywords = {keyword.arg: _literal(keyword.value) for keyword in statement.value.keywords if keyword.arg}
    metadata = keywords.get("metadata")
    details = metadata if isinstance(metadata, dict) else {}
    option = Option(
        name,
        default=keywords.get("default"),
        help=str(details.get("help") or ""),
        settable=keywords.get("init") is not False,
    )
    if name in _ANNOTATION_IS_WRONG:
        return option
    parts = _union(statement.annotation)
    choices = tuple(c for c in details.get("choices") or () if isinstance(c, str)) or _choices(parts)
    types = {ast.unparse(part) for part in parts}
    if choices:
        return replace(option, choices=choices, types=frozenset({"str"} | ({"None"} & types)))
    return replace(option, types=frozenset(types) if types <= _SCALARS else None)


def _init_arguments(library: str, file: str, name: str) -> dict[str, Option] | None:
    node = _class(library, file, name)
    init = (
        next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None) if node else None
    )
    if init is None:
        return None
    names = [argument.arg for argument in init.args.args[1:]]
    return {
        name: Option(name, _types_of_default(default), default=default)
        for name, default in zip(names, map(_literal, init.args.defaults), strict=False)
    }


def _types_of_default(default: Any) -> frozenset[str] | None:
    """What an argument without annotation takes: its default tells, unless that is None."""
    return None if default is None else frozenset({type(default).__name__})


def _union(annotation: ast.expr) -> list[ast.expr]:
    """`A | B`, `Union[A, B]` and `Optional[A]` as a list of their parts."""
    if isinstance(annotation, ast.BinOp):
        return _union(annotation.left) + _union(annotation.right)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        inner = annotation.slice
        if annotation.value.id == "Union" and isinstance(inner, ast.Tuple):
            return [part for element in inner.elts for part in _union(element)]
        if annotation.value.id == "Optional":
            return [*_union(inner), ast.Constant(None)]
    return [annotation]


def _choices(parts: list[ast.expr]) -> tuple[str, ...]:
    """Allowed texts: `Literal["a", "b"]` with nothing beside it but None, or the values of an enum of strings."""
    for part in parts:
        if isinstance(part, ast.Name) and part.id in _enums():
            return _enums()[part.id]
    others = [part for part in parts if not (isinstance(part, ast.Constant) and part.value is None)]
    if len(others) == 1 and isinstance(others[0], ast.Subscript) and ast.unparse(others[0].value) == "Literal":
        values = _literal(others[0].slice)
        values = values if isinstance(values, tuple) else (values,)
        return values if all(isinstance(value, str) for value in values) else ()
    return ()


@cache
def _enums() -> dict[str, tuple[str, ...]]:
    found = {}
    for library, file in _ENUM_FILES:
        module = _module(library, file)
        for node in module.body if module else []:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
                values = [_literal(statement.value) for statement in node.body if isinstance(statement, ast.Assign)]
                found[node.name] = tuple(value for value in values if isinstance(value, str))
    return found


def _literal(node: ast.expr) -> Any:
    """The value of a constant expression; None for one that has to be run to be known."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None

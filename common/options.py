"""Options: one typed pydantic model per command, a YAML file, and dotted overrides (`--optimizer.lr 3e-4`).

All problems of an invocation are reported together, each as one line that names the key and what would be right. Commands
with a handful of options have a plain `Parser`.
"""

import argparse
import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator
from pydantic_core import PydanticUndefined

from common.errors import UserError


class Options(BaseModel):
    """Base of every option group: unknown keys are errors, values do not change after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


T = TypeVar("T", bound=Options)
YAML_LIMIT = 1 << 20
# What PyYAML raises for text that is no YAML: dates and numbers that do not exist, and nesting without end, included.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake as one line (`UserError`) in place of a usage text, and no option by half its name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        said = re.sub(r"^argument (--?\w[^:]*): ", r"\1: ", message)
        if unknown := re.match(r"unrecognized arguments: (--[\w.-]+)", said):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            said = f"{unknown[1]}: there is no such option" + (f"; did you mean {near[0]}?" if near else "")
        raise UserError(f"{' '.join(said.split())} (see {self.prog} --help)")


def out_file(text: str) -> Path:
    """The type of an option that names a file to write: UserError before the work, not after it, if that cannot be."""
    path = Path(text)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path}: cannot be written, for {folder} is no folder that may be written to; name another file")
    return path


class _Loader(yaml.SafeLoader):
    """YAML of plain values. An alias (`*name`) may stand for a list of aliases of lists …, a few lines for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read: write the value out")
        return super().compose_node(parent, index)


def load_yaml(path: Path, said: str = "--config ") -> dict[str, Any]:
    """A YAML file as a nested dict; a missing, broken or non-mapping file is one clear line that begins with `said`."""
    try:
        with path.open("rb") as file:
            text = file.read(YAML_LIMIT + 1)
        if len(text) > YAML_LIMIT:
            raise UserError(f"{said}{path}: is larger than {YAML_LIMIT >> 20} MB, which no options are")
        value = yaml.load(text.decode("utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{said}{path}: no such file") from None
    except (*_NO_YAML, OSError) as error:
        raise UserError(f"{said}{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{said}{path}: expected keys and values, found {type(value).__name__}")
    if strange := [key for key in _keys(value) if not isinstance(key, str)]:
        raise UserError(f"{said}{path}: the key {strange[0]!r} is no text; keys are the names of options")
    return value


def _keys(value: dict[Any, Any]) -> list[Any]:
    return [each for key, item in value.items() for each in (key, *(_keys(item) if isinstance(item, dict) else ()))]


def parse(
    schema: type[T], arguments: Sequence[str], *, name: str, description: str, default_config: Path
) -> tuple[T, dict[str, Any]]:
    """Parse `--config FILE` and `--dotted.key value` pairs against `schema`.

    Returns the validated options and the nested dict of only what the command line itself said.
    Raises UserError with one line per problem; prints help and exits on `--help`.
    """
    parser = Parser(prog=f"python -m {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=default_config)
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(list(arguments))
    if known.help:
        print(help_text(schema, name=name, description=description, default_config=default_config))
        sys.exit(0)
    problems: list[str] = []
    said = _dotted(schema, rest, problems)
    merged = _merge(load_yaml(known.config), said)
    problems += mistakes(schema, merged)
    if problems:
        raise UserError("\n".join(problems))
    return schema.model_validate(merged), said


def _dotted(schema: type[Options], arguments: list[str], problems: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    known = fields(schema)
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--"):
            problems.append(f"{word!r} stands alone: options are written --key value")
            continue
        key, equals, text = word[2:].partition("=")
        if not equals:
            if position == len(arguments) or arguments[position].startswith("--"):
                problems.append(f"{word}: needs a value ({word} VALUE)")
                continue
            text = arguments[position]
            position += 1
        node = result
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                problems.append(f"--{key}: {parent} was already given a value")
                break
        else:
            node[leaf] = _value(text, _kinds(known[key].annotation) if key in known else set())
    return result


def _value(text: str, kinds: set[Any]) -> Any:
    # Where text is wanted, what was written is what is meant: `--run 2024-01-01` is no date and `--note 7` no number.
    wants_text = bool(kinds & {str, Path})
    if wants_text and not (kinds & {list, tuple} and text.startswith("[")):
        return None if text == "null" and types.NoneType in kinds else text
    try:
        value = yaml.load(text, yaml.BaseLoader if wants_text else _Loader) if text else ""
    except _NO_YAML:
        return text
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types inside an annotation: those of unions, of the items of lists, of the choices of literals."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {type(choice) for choice in arguments}
    if origin is None:
        return {annotation}
    return {origin}.union(*(_kinds(argument) for argument in arguments))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def mistakes(schema: type[Options], values: dict[str, Any]) -> list[str]:
    """Everything that is wrong with the values of a schema, a line each; empty if `schema` accepts them.

    pydantic judges options together (`model_validator(mode="after")`) only where each is right by itself, and stops at the
    first such complaint. Here wrong values are left out, so that defaults stand in for them, and every validator of the
    schema then has its say; what one says of an option that is itself wrong is about a value nobody gave, and is dropped.
    Only where a required option is missing are the options not judged together.
    """
    names = [name for name, each in schema.__pydantic_decorators__.model_validators.items() if each.info.mode == "after"]
    silent: dict[str, Any] = {name: model_validator(mode="after")(lambda self: self) for name in names}
    apart = create_model(schema.__name__, __base__=schema, __validators__=silent)
    found: list[str] = []
    wrong: list[str] = []
    while True:
        try:
            options = apart.model_validate(values)
            break
        except ValidationError as error:
            details: Any = error.errors()
        lines = "\n".join(_explain(schema, values, detail) for detail in details).splitlines()
        found += [line for line in _joined(lines) if line not in found and not _names(line, wrong)]
        paths = {path for detail in details if (path := _given(values, detail["loc"]))}
        if not paths:
            return found
        values = _without(values, paths)
        wrong += [".".join(path) for path in paths]
    for name in names:
        try:
            getattr(schema, name)(options)
        except ValueError as error:
            found += [line for line in str(error).splitlines() if not _names(line, wrong)]
    return found


def _names(line: str, keys: list[str]) -> bool:
    return any(re.search(rf"--{re.escape(key)}(?!\w)", line) for key in keys)


def _given(values: Any, place: Sequence[str | int]) -> tuple[str, ...]:
    """The keys of the innermost value that was given at a place where pydantic found something wrong."""
    path: list[str] = []
    for part in place:
        if not isinstance(values, dict) or part not in values:
            break
        values = values[part]
        path.append(str(part))
    return tuple(path)


def _without(values: dict[str, Any], paths: set[tuple[str, ...]]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        deeper = {path[1:] for path in paths if path[0] == key}
        if () not in deeper:
            kept[key] = _without(value, deeper) if deeper else value
    return kept


_EXPECTED = " is not valid; expected "


def _joined(lines: list[str]) -> list[str]:
    """One line for an option that may be one thing or another, of which pydantic complains once for each."""
    joined: list[str] = []
    for line in lines:
        start, expected, rest = line.partition(_EXPECTED)
        if expected and joined and joined[-1].startswith(start + expected):
            joined[-1] += f" or {rest}"
        else:
            joined.append(line)
    return joined


def _explain(schema: type[Options], values: dict[str, Any], detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        valid = list(fields(schema))
        near = difflib.get_close_matches(".".join(path), valid, n=1, cutoff=0.5)
        hint = f"did you mean --{near[0]}?" if near else "see --help for the keys"
        return f"--{'.'.join(path)}: there is no such option; {hint}"
    if detail["type"] == "missing":
        return f"--{'.'.join(path)}: is required"
    # What pydantic puts behind the keys are places in a list, which help, and names of types, which do not.
    depth = len(_given(values, detail["loc"]))
    path = path[:depth] + [part for part in path[depth:] if part.isdecimal()]
    key = "--" + ".".join(path)
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        # A group's complaint names the options that it is about.
        return f"{key}: {message}" if ".".join(path) in fields(schema) else message
    if detail["type"] in {"model_type", "dict_type", "model_attributes_type"}:
        return f"{key}: is a group of options, not a value; write {key}.KEY VALUE"
    if detail["type"] == "path_type":
        message = "a path (in YAML, quote one that looks like a number or a date)"
    return f"{key}: {detail['input']!r}{_EXPECTED}{message}"


def fields(schema: type[Options], prefix: str = "") -> dict[str, Any]:
    """Every leaf option of a schema as dotted key → pydantic FieldInfo."""
    found: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        nested = _nested(info.annotation)
        found.update(fields(nested, f"{prefix}{name}.") if nested else {prefix + name: info})
    return found


def _nested(annotation: Any) -> type[Options] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Options) else None


def help_text(schema: type[Options], *, name: str, description: str, default_config: Path) -> str:
    """The help of a command: every key with type, default (from the default config) and meaning."""
    lines = [
        f"usage: python -m {name} [--config FILE] [--key value | --group.key value]…", "", description, "",
        f"  --config FILE  YAML with any of the keys below (default {default_config})", "",
    ]
    configured = _flat(load_yaml(default_config)) if default_config.exists() else {}
    for key, info in fields(schema).items():
        default = configured.get(key, None if info.default is PydanticUndefined else info.default)
        shown = "" if default is None else f" (default {default})"
        lines.append(f"  --{key} {_type_name(info.annotation)}{shown}")
        if info.description:
            lines.append(f"        {info.description}")
    return "\n".join(lines)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return flat


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_name(choice) for choice in typing.get_args(annotation) if choice is not type(None))
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is not None:
        return f"[{', '.join(_type_name(choice) for choice in typing.get_args(annotation) if choice is not ...)}…]"
    return {"int": "N", "float": "X", "str": "TEXT", "bool": "true|false", "Path": "PATH"}.get(
        getattr(annotation, "__name__", ""), str(annotation))

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

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


OptionsT = TypeVar("OptionsT", bound=Options)
MAX_YAML_BYTES = 1 << 20
# What PyYAML raises for text that is no YAML: dates and numbers that do not exist, and nesting without end, included.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


class CommandParser(argparse.ArgumentParser):
    """argparse, with a mistake as one line (`UserError`) in place of a usage text, and no option by half its name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        text = re.sub(r"^argument (--?\w[^:]*): ", r"\1: ", message)
        if unknown_option := re.match(r"unrecognized arguments: (--[\w.-]+)", text):
            near = difflib.get_close_matches(unknown_option[1], self._option_string_actions, n=1)
            text = f"{unknown_option[1]}: there is no such option" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        raise UserError(f"{' '.join(text.split())} (see {self.prog} --help)")


def writable_path(text: str) -> Path:
    """The type of an option that names a file to write: UserError before the work, not after it, if that cannot be."""
    path = Path(text)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"{path}: cannot be written, for {folder} is no folder that may be written to; name another file"
        )
    return path


class _NoAliasLoader(yaml.SafeLoader):
    """YAML of plain values. An alias (`*name`) may stand for a list of aliases of lists …, a few lines for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read: write the value out")
        return super().compose_node(parent, index)


def load_yaml(path: Path, error_prefix: str = "--config ") -> dict[str, Any]:
    """A YAML file as a nested dict; a missing, broken or non-mapping file is one clear line that begins with `error_prefix`."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_YAML_BYTES + 1)
        if len(text) > MAX_YAML_BYTES:
            raise UserError(
                f"{error_prefix}{path}: is larger than {MAX_YAML_BYTES >> 20} MB, which no options are"
            )
        value = yaml.load(text.decode("utf-8"), _NoAliasLoader)
    except FileNotFoundError:
        raise UserError(f"{error_prefix}{path}: no such file") from None
    except (*_YAML_ERRORS, OSError) as error:
        raise UserError(
            f"{error_prefix}{path}: not readable as YAML: {' '.join(str(error).split())}"
        ) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            f"{error_prefix}{path}: expected keys and values, found {type(value).__name__}"
        )
    if non_text_keys := [key for key in _all_keys(value) if not isinstance(key, str)]:
        raise UserError(
            f"{error_prefix}{path}: the key {non_text_keys[0]!r} is no text; keys are the names of options"
        )
    return value


def _all_keys(value: dict[Any, Any]) -> list[Any]:
    return [
        each
        for key, item in value.items()
        for each in (key, *(_all_keys(item) if isinstance(item, dict) else ()))
    ]


def parse_options(
    schema: type[OptionsT],
    arguments: Sequence[str],
    *,
    name: str,
    description: str,
    default_config: Path,
) -> tuple[OptionsT, dict[str, Any]]:
    """Parse `--config FILE` and `--dotted.key value` pairs against `schema`.

    Returns the validated options and the nested dict of only what the command line itself said.
    Raises UserError with one line per problem; prints help and exits on `--help`.
    """
    parser = CommandParser(prog=f"python -m {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=default_config)
    parser.add_argument("-h", "--help", action="store_true")
    known_arguments, option_arguments = parser.parse_known_args(list(arguments))
    if known_arguments.help:
        print(
            format_help(schema, name=name, description=description, default_config=default_config)
        )
        sys.exit(0)
    problems: list[str] = []
    overrides = _parse_dotted(schema, option_arguments, problems)
    merged = _deep_merge(load_yaml(known_arguments.config), overrides)
    problems += find_option_errors(schema, merged)
    if problems:
        raise UserError("\n".join(problems))
    return schema.model_validate(merged), overrides


def _parse_dotted(
    schema: type[Options], arguments: list[str], problems: list[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    known_fields = option_fields(schema)
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
            node[leaf] = _parse_value(
                text,
                _annotation_types(known_fields[key].annotation) if key in known_fields else set(),
            )
    return result


def _parse_value(text: str, value_types: set[Any]) -> Any:
    # Where text is wanted, what was written is what is meant: `--run 2024-01-01` is no date and `--note 7` no number.
    wants_text = bool(value_types & {str, Path})
    if wants_text and not (value_types & {list, tuple} and text.startswith("[")):
        return None if text == "null" and types.NoneType in value_types else text
    try:
        value = yaml.load(text, yaml.BaseLoader if wants_text else _NoAliasLoader) if text else ""
    except _YAML_ERRORS:
        return text
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


def _annotation_types(annotation: Any) -> set[Any]:
    """The plain types inside an annotation: those of unions, of the items of lists, of the choices of literals."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {type(choice) for choice in arguments}
    if origin is None:
        return {annotation}
    return {origin}.union(*(_annotation_types(argument) for argument in arguments))


def _deep_merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _deep_merge(merged[key], value) if both else value
    return merged


def find_option_errors(schema: type[Options], values: dict[str, Any]) -> list[str]:
    """Everything that is wrong with the values of a schema, a line each; empty if `schema` accepts them.

    pydantic judges options together (`model_validator(mode="after")`) only where each is right by itself, and stops at the
    first such complaint. Here wrong values are left out, so that defaults stand in for them, and every validator of the
    schema then has its say; what one says of an option that is itself wrong is about a value nobody gave, and is dropped.
    Only where a required option is missing are the options not judged together.
    """
    names = [
        name
        for name, each in schema.__pydantic_decorators__.model_validators.items()
        if each.info.mode == "after"
    ]
    disabled_validators: dict[str, Any] = {
        name: model_validator(mode="after")(lambda self: self) for name in names
    }
    unvalidated_class = create_model(
        schema.__name__, __base__=schema, __validators__=disabled_validators
    )
    problems: list[str] = []
    invalid_keys: list[str] = []
    while True:
        try:
            options = unvalidated_class.model_validate(values)
            break
        except ValidationError as error:
            details: Any = error.errors()
        lines = "\n".join(_explain_error(schema, values, detail) for detail in details).splitlines()
        problems += [
            line
            for line in _join_alternatives(lines)
            if line not in problems and not _mentions_any(line, invalid_keys)
        ]
        paths = {path for detail in details if (path := _given_path(values, detail["loc"]))}
        if not paths:
            return problems
        values = _remove_paths(values, paths)
        invalid_keys += [".".join(path) for path in paths]
    for name in names:
        try:
            getattr(schema, name)(options)
        except ValueError as error:
            problems += [
                line for line in str(error).splitlines() if not _mentions_any(line, invalid_keys)
            ]
    return problems


def _mentions_any(line: str, keys: list[str]) -> bool:
    return any(re.search(rf"--{re.escape(key)}(?!\w)", line) for key in keys)


def _given_path(values: Any, location: Sequence[str | int]) -> tuple[str, ...]:
    """The keys of the innermost value that was given at a place where pydantic found something wrong."""
    path: list[str] = []
    for part in location:
        if not isinstance(values, dict) or part not in values:
            break
        values = values[part]
        path.append(str(part))
    return tuple(path)


def _remove_paths(values: dict[str, Any], paths: set[tuple[str, ...]]) -> dict[str, Any]:
    remaining = {}
    for key, value in values.items():
        deeper = {path[1:] for path in paths if path[0] == key}
        if () not in deeper:
            remaining[key] = _remove_paths(value, deeper) if deeper else value
    return remaining


_EXPECTED_PHRASE = " is not valid; expected "


def _join_alternatives(lines: list[str]) -> list[str]:
    """One line for an option that may be one thing or another, of which pydantic complains once for each."""
    merged_lines: list[str] = []
    for line in lines:
        start, expected, rest = line.partition(_EXPECTED_PHRASE)
        if expected and merged_lines and merged_lines[-1].startswith(start + expected):
            merged_lines[-1] += f" or {rest}"
        else:
            merged_lines.append(line)
    return merged_lines


def _explain_error(schema: type[Options], values: dict[str, Any], detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        valid = list(option_fields(schema))
        near = difflib.get_close_matches(".".join(path), valid, n=1, cutoff=0.5)
        hint = f"did you mean --{near[0]}?" if near else "see --help for the keys"
        return f"--{'.'.join(path)}: there is no such option; {hint}"
    if detail["type"] == "missing":
        return f"--{'.'.join(path)}: is required"
    # What pydantic puts behind the keys are places in a list, which help, and names of types, which do not.
    depth = len(_given_path(values, detail["loc"]))
    path = path[:depth] + [part for part in path[depth:] if part.isdecimal()]
    key = "--" + ".".join(path)
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        # A group's complaint names the options that it is about.
        return f"{key}: {message}" if ".".join(path) in option_fields(schema) else message
    if detail["type"] in {"model_type", "dict_type", "model_attributes_type"}:
        return f"{key}: is a group of options, not a value; write {key}.KEY VALUE"
    if detail["type"] == "path_type":
        message = "a path (in YAML, quote one that looks like a number or a date)"
    return f"{key}: {detail['input']!r}{_EXPECTED_PHRASE}{message}"


def option_fields(schema: type[Options], prefix: str = "") -> dict[str, Any]:
    """Every leaf option of a schema as dotted key → pydantic FieldInfo."""
    fields_by_key: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        nested = _nested_options(info.annotation)
        fields_by_key.update(
            option_fields(nested, f"{prefix}{name}.") if nested else {prefix + name: info}
        )
    return fields_by_key


def _nested_options(annotation: Any) -> type[Options] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Options) else None


def format_help(schema: type[Options], *, name: str, description: str, default_config: Path) -> str:
    """The help of a command: every key with type, default (from the default config) and meaning."""
    lines = [
        f"usage: python -m {name} [--config FILE] [--key value | --group.key value]…",
        "",
        description,
        "",
        f"  --config FILE  YAML with any of the keys below (default {default_config})",
        "",
    ]
    configured = _flatten(load_yaml(default_config)) if default_config.exists() else {}
    for key, info in option_fields(schema).items():
        default = configured.get(key, None if info.default is PydanticUndefined else info.default)
        default_text = "" if default is None else f" (default {default})"
        lines.append(f"  --{key} {_type_name(info.annotation)}{default_text}")
        if info.description:
            lines.append(f"        {info.description}")
    return "\n".join(lines)


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(
            _flatten(item, f"{prefix}{key}.")
            if isinstance(item, dict)
            else {f"{prefix}{key}": item}
        )
    return flat


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return "|".join(
            _type_name(choice) for choice in typing.get_args(annotation) if choice is not type(None)
        )
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is not None:
        return f"[{', '.join(_type_name(choice) for choice in typing.get_args(annotation) if choice is not ...)}…]"
    return {"int": "N", "float": "X", "str": "TEXT", "bool": "true|false", "Path": "PATH"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )

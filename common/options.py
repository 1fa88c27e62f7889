"""Options of every command: one frozen pydantic model for each.

Four layers are merged, and later layers win: the defaults of the model, the recorded options of a
run that is resumed, the file of `--config`, the command line. Values of files and of the command
line are text that the type of the field converts, by the same rules in both. pydantic-settings
builds the command line and its help from the model, and pydantic validates the merged values. Each
mistake is one line of a `UserError`.
"""

import argparse
import difflib
import json
import re
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    CliPositionalArg,
    CliSettingsSource,
    CliSuppress,
    CliVariadicArg,
    SettingsError,
)
from typing_extensions import Self

from common.errors import UserError
from common.flat_tables import flatten

__all__ = [
    "CliPositionalArg",
    "CliSuppress",
    "CliVariadicArg",
    "CommaSeparated",
    "Device",
    "Options",
    "OutputFile",
    "OutputPage",
    "default_values",
    "merge_layers",
    "option_fields",
    "parse_options",
    "validate_options",
]

_MAX_VALUE_CHARACTERS = 80  # of a wrong value in a message
# Phrases of pydantic's messages, and the plainer ones that replace them.
_PLAIN_PHRASES = {
    "Value error, ": "",
    "Input should be ": "",
    "a valid integer, unable to parse string as an integer": "a whole number",
    "a valid number, unable to parse string as a number": "a number",
    "a valid boolean, unable to interpret input": "true or false",
    "greater than or equal to": "at least",
    "greater than": "more than",
    "less than or equal to": "at most",
}
_CONFIG_DEST = ":config"  # a name that a field cannot have
# CliPositionalArg[T] is Annotated[T, MARK]; pydantic puts MARK into the metadata of the field.
_POSITIONAL_MARK = get_args(CliPositionalArg[str])[1]


class Options(BaseModel):
    """Base class of the options of a command, and of a group of them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        # Do not build a validator for each group of options: --help does not need them.
        defer_build=True,
    )

    def find_conflicts(self) -> list[str]:
        """Return one line for each pair of options that contradict each other.

        Subclasses extend the list of `super()`. The method is called only if each value is valid by
        itself. A line begins with the options that it is about: `--rows 6 is not a multiple of …`.
        """
        return []

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        # An error type of our own, so that validate_options can tell conflicts from wrong values.
        if lines := self.find_conflicts():
            raise PydanticCustomError("conflict", "{lines}", {"lines": "\n".join(lines)})
        return self


T = TypeVar("T", bound=Options)


def _check_output_file(path: Path) -> Path:
    """Return `path`. Raises ValueError unless `write_atomic` can make or replace a file there."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    # The write would replace a device, or a link such as /dev/stdout, by a file; root could do it.
    is_special = path.absolute().parent in (Path("/dev"), Path("/dev/fd"))
    if is_special or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is a device or a pipe; name a file to write")
    # Folders that are missing are created by the write. The permissions of an existing file do not
    # matter, because it is replaced and not opened.
    nearest_existing = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        # Tried, because root has all permissions and yet cannot write everywhere.
        with tempfile.TemporaryFile(dir=nearest_existing):
            pass
    except OSError:
        raise ValueError(
            f"{path} cannot be written: {nearest_existing} is not a writable folder; "
            "name another file"
        ) from None
    return path


def _check_output_page(path: Path) -> Path:
    """Return `path`. Raises ValueError unless a page can be written as PATH.md and PATH.html."""
    _check_output_file(path)
    for suffix in (".md", ".html"):
        _check_output_file(path.with_name(path.name + suffix))
    return path


def _split_commas(value: Any) -> Any:
    """Return the items of a string or list of strings: "a, b" and ["a", "b"] become ["a", "b"].

    Other values are returned unchanged, for pydantic to report.
    """
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple):
        return value
    if not all(isinstance(string, str) for string in strings):
        return value
    return [item.strip() for item in ",".join(strings).split(",") if item.strip()]


# The type of an output file: a path that cannot be written is refused before the work begins.
OutputFile = Annotated[Path, AfterValidator(_check_output_file)]
# The same for the files of a page.
OutputPage = Annotated[Path, AfterValidator(_check_output_page)]
Device = Literal["auto", "cpu", "cuda"]
# Annotates a tuple field whose values are written with commas: `a,b` is two items.
CommaSeparated = BeforeValidator(_split_commas)


def parse_options(
    schema: type[T],
    arguments: Sequence[str],
    *,
    name: str,
    description: str,
    has_config_file: bool = False,
    ignores_unknown_keys: bool = False,
    find_recorded_options: Callable[[dict[str, Any]], Path | None] | None = None,
) -> T:
    """Return the validated options of a command.

    Args:
        schema: the pydantic model of the options.
        arguments: the command line without the name of the program.
        name: the module that `python -m` runs.
        description: the text at the top of the help.
        has_config_file: whether the command has `--config FILE`.
        ignores_unknown_keys: whether that file may hold the options of another command, of which
            only those of `schema` are read.
        find_recorded_options: called with the merged values; returns the YAML file of the options
            of the run that they resume, or None if they do not resume a run.

    Prints the help and exits with status 0 on `--help`.
    Raises UserError with one line for each option that is wrong by itself or, if none is, for each
    conflict between options.
    """
    command_line = _CommandLine(schema, name, description, has_config_file)
    typed_values = command_line.parse(arguments)
    from common.yaml_files import load_yaml  # here, so that --help does not import PyYAML

    try:
        config_file = command_line.config_file
        config_values = load_yaml(config_file, as_text=True) if config_file else {}
        if ignores_unknown_keys:
            config_values = _select_known_keys(schema, config_values)
        defaults = default_values(schema)
        values = merge_layers(defaults, config_values, typed_values)
        # The other layers name the run to resume, so its options can be merged only now.
        recorded_file = find_recorded_options(values) if find_recorded_options else None
        if recorded_file is not None:
            recorded_values = load_yaml(recorded_file, error_prefix="", as_text=True)
            values = merge_layers(defaults, recorded_values, config_values, typed_values)
    except UserError as error:
        # Report the mistakes of the command line together with the file that cannot be read.
        raise UserError("\n".join([*command_line.problems, str(error)])) from None
    return validate_options(schema, values, command_line.problems)


def validate_options(schema: type[T], values: dict[str, Any], problems: Sequence[str] = ()) -> T:
    """Return the options that a nested dict describes.

    Raises UserError with the lines `problems` of the caller and one line for each value that is
    wrong by itself or, if there are no such lines, with one line for each conflict.
    """
    details: list[ErrorDetails] = []
    try:
        options = schema.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Conflicts are reported only if nothing else is wrong: beside a misspelt option, a conflict may
    # come from the default that replaces it.
    value_errors = [detail for detail in details if detail["type"] != "conflict"]
    if lines := [*problems, *_explain_errors(schema, values, value_errors)]:
        raise UserError("\n".join(lines))
    if details:
        raise UserError("\n".join(detail["msg"] for detail in details))
    return options


def default_values(schema: type[Options]) -> dict[str, Any]:
    """Return the defaults of a schema as a nested dict, without its required options."""
    # model_construct does not validate, so the values of required options may be missing.
    return schema.model_construct().model_dump(mode="json", by_alias=True, warnings=False)


def _select_known_keys(schema: type[Options], values: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a nested dict that are options of a schema, or groups of them."""
    selected = {}
    for name, field in schema.model_fields.items():
        key, group = field.alias or name, field.annotation
        if key not in values:
            continue
        value = values[key]
        if isinstance(value, dict) and isinstance(group, type) and issubclass(group, Options):
            value = _select_known_keys(group, value)
        selected[key] = value
    return selected


def merge_layers(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return a new dict of nested dicts merged key by key; values of later layers win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            earlier = merged.get(key)
            if isinstance(value, dict) and isinstance(earlier, dict):
                value = merge_layers(earlier, value)
            merged[key] = value
    return merged


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wrap each line of an option's help by itself: bilingual help has a line for each language."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Overrides a method of argparse that joins all lines before it wraps them.
        return [part for line in text.splitlines() for part in textwrap.wrap(line, width)]


class _CommandLine:
    """The command line of a schema, built by pydantic-settings on argparse.

    argparse stops at the first mistake. Therefore `parse` removes mistakes from the arguments
    before argparse runs, and collects them in `problems`, so that all are reported together.
    `config_file` is the file of `--config`, after `parse`.
    """

    def __init__(
        self, schema: type[Options], name: str, description: str, has_config_file: bool
    ) -> None:
        self.problems: list[str] = []
        self.config_file: Path | None = None
        self._fields = option_fields(schema)
        self._defaults = flatten(default_values(schema))
        # `--flag` alone is true; other options need a value.
        self._needs_value = {
            f"--{key}": field.annotation is not bool for key, field in self._fields.items()
        }
        self._source: CliSettingsSource[Any] = CliSettingsSource(
            # The declared type is BaseSettings, which would also read environment variables; any
            # BaseModel works.
            schema,  # type: ignore[arg-type]
            cli_prog_name=f"python -m {name}",
            cli_parse_none_str="null",
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_exit_on_error=False,
            add_argument_method=self._add_argument,
            parse_args_method=self._parse_known,
            formatter_class=_HelpFormatter,
        )
        parser = self._source.root_parser
        positionals = [key.upper() for key, field in self._fields.items() if _is_positional(field)]
        parser.usage = " ".join(["%(prog)s", *positionals, "[--option value] ..."])
        parser.description = description
        if has_config_file:
            self._needs_value["--config"] = True
            parser.add_argument(
                "--config",
                dest=_CONFIG_DEST,
                metavar="FILE",
                help="YAML with any of these options",
            )

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the values of the command line as a nested dict of strings, lists and None.

        Mistakes go to `problems`. Raises UserError if pydantic-settings refuses the rest.
        """
        try:
            source: Any = self._source(args=self._check_arguments(list(arguments)))
            return source()
        except SettingsError as error:
            raise UserError(" ".join(str(error).split())) from None

    def _check_arguments(self, arguments: list[str]) -> list[str]:
        """Return the arguments for argparse, without unknown options and options without a value.

        These go to `problems`. Values that argparse would misread are joined to their option:
        `--offset -1` becomes `--offset=-1`.
        """
        checked = []
        position = 0
        while position < len(arguments):
            argument = arguments[position]
            position += 1
            # After the last argument, as before the next option, there is no value.
            next_argument = arguments[position] if position < len(arguments) else "--"
            key, equals, _ = argument.partition("=")
            if not argument.startswith("--") or argument == "--help":
                checked.append(argument)
            elif key not in self._needs_value:
                self.problems.append(_explain_unknown(key, self._fields))
                # Skip the value, too.
                if not equals and not next_argument.startswith("--"):
                    position += 1
            elif equals:
                checked.append(argument)
            elif next_argument.startswith("--"):
                if self._needs_value[key]:
                    self.problems.append(f"{key}: needs a value ({key} VALUE)")
                else:
                    checked.append(f"{key}=true")
            elif next_argument.startswith("-") and next_argument not in ("-h", "-"):
                # argparse would take the value for an option.
                checked.append(f"{key}={next_argument}")
                position += 1
            else:
                # The value is the next argument, which the loop appends like a positional one.
                checked.append(argument)
        return checked

    def _add_argument(self, parser: Any, *names: str, **settings: Any) -> Any:
        """Add an argument to the parser with our help text; pydantic-settings calls this method."""
        # pydantic-settings gives positional arguments a name, and options a `dest`.
        is_positional = "dest" not in settings
        key = names[0] if is_positional else settings["dest"]
        if field := self._fields.get(key):
            if settings["help"] != argparse.SUPPRESS:
                settings["help"] = self._format_help(key, field)
            # Show the values as they are typed, not the Python types `tuple[str,...]` and `bool`.
            metavar = re.sub(r"^tuple\[(.*),\.\.\.\]$", r"\1", settings["metavar"])
            if metavar == "bool" and field.annotation is bool:
                metavar = "[true|false]"
            settings["metavar"] = metavar
            if is_positional:
                # Optional for argparse, so that pydantic reports a missing one.
                settings["nargs"] = "*" if settings.get("nargs") in ("*", "+") else "?"
        return argparse.ArgumentParser.add_argument(parser, *names, **settings)

    def _format_help(self, key: str, field: FieldInfo) -> str:
        """Return the description of an option with its default, or with `(required)`."""
        default = self._defaults.get(key)
        suffix = " (required)" if field.is_required() else ""
        if default not in (None, "", []):
            if CommaSeparated in field.metadata:
                default = ",".join(map(str, default))
            text = default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
            suffix = f" (default: {text})"
        # argparse formats help with the operator %.
        return f"{field.description or ''}{suffix}".replace("%", "%%").strip()

    def _parse_known(
        self, parser: argparse.ArgumentParser, arguments: list[str]
    ) -> argparse.Namespace:
        """Parse checked arguments for pydantic-settings; unexpected ones go to `problems`."""
        namespace, unexpected = parser.parse_known_args(arguments)
        self.problems += [
            f"{argument!r} stands alone: options are written --key value" for argument in unexpected
        ]
        values = vars(namespace)
        if path := values.pop(_CONFIG_DEST, None):
            self.config_file = Path(path)
        # pydantic-settings would split the items of lists at commas; it leaves JSON as it is.
        for key, value in values.items():
            if isinstance(value, list):
                from common.yaml_files import parse_items

                items = [item for text in value for item in parse_items(text)]
                values[key] = json.dumps(items)
        return namespace


def _explain_errors(
    schema: type[Options], values: dict[str, Any], details: list[ErrorDetails]
) -> list[str]:
    """Return one line for each option that is wrong, with the kinds of values that are valid."""
    fields = option_fields(schema)
    lines: dict[str, str] = {}
    for detail in details:
        path = _error_path(values, detail)
        option = f"--{path}"
        if path in fields and _is_positional(fields[path]):
            option = path.upper()
        # "Input should be greater than or equal to 1" becomes "at least 1".
        message = detail["msg"]
        for phrase, plain_phrase in _PLAIN_PHRASES.items():
            message = message.replace(phrase, plain_phrase)
        value = repr(detail["input"])
        if len(value) > _MAX_VALUE_CHARACTERS:
            value = f"{value[:_MAX_VALUE_CHARACTERS]}…"
        match detail["type"]:
            case "extra_forbidden":
                lines[option] = _explain_unknown(option, fields)
            case "missing":
                lines[option] = f"{option}: is required"
            case "model_type" | "model_attributes_type":
                lines[option] = _explain_group(option)
            case "value_error":
                lines[option] = f"{option}: {message}"
            case _ if option in lines:
                # For a union type, pydantic reports an error for each alternative.
                lines[option] += f" or {message}"
            case _:
                lines[option] = f"{option}: {value} is not valid; expected {message}"
    return list(lines.values())


def _error_path(values: Any, detail: ErrorDetails) -> str:
    """Return the dotted path of an error's value: keys and list indices.

    Pydantic's location also has the alternatives of union types at its end (`rows.int`), which are
    not keys of `values` and are left out.
    """
    path = []
    for part in detail["loc"]:
        # A missing option is not in `values` either, but its key is the end of the path.
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif detail["type"] != "missing" and not isinstance(part, int):
            break
        path.append(str(part))
    return ".".join(path)


def _explain_unknown(option: str, fields: dict[str, FieldInfo]) -> str:
    """Return the error line for an option that the command does not have."""
    key = option.removeprefix("--")
    # The key of a group, such as `lora` of `lora.rank`.
    if any(name.startswith(f"{key}.") for name in fields):
        return _explain_group(option)
    similar = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean --{similar[0]}?" if similar else "see --help"
    return f"{option}: unknown option; {hint}"


def _explain_group(option: str) -> str:
    """Return the error line for a group of options that is given a value."""
    return f"{option}: is a group of options, not a value; write {option}.KEY VALUE"


def _is_positional(field: FieldInfo) -> bool:
    return _POSITIONAL_MARK in field.metadata


def option_fields(schema: type[Options], prefix: str = "") -> dict[str, FieldInfo]:
    """Return dotted key -> field for all options of a schema, those of its groups included."""
    fields: dict[str, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Options):
            fields.update(option_fields(group, f"{prefix}{name}."))
        else:
            fields[prefix + (field.alias or name)] = field
    return fields

"""Programs of several commands: the first argument names one, the rest are its options."""

import difflib
from collections.abc import Mapping, Sequence

from common.errors import UserError
from common.options import Options, parse_options


def parse_subcommand(
    arguments: Sequence[str],
    commands: Mapping[str, tuple[type[Options], str]],
    *,
    program: str,
    examples: str,
) -> tuple[str, Options]:
    """Return the command that the first argument names, and its options.

    Args:
        arguments: the command line without the name of the program.
        commands: the options model and the description of each command, by its name.
        program: the module that `python -m` runs.
        examples: text at the end of the help.

    Prints the help of the program, or of a command, and exits with status 0 on `--help`. Raises
    UserError if no command is given, or an unknown one, and for options as `parse_options` does.
    """
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(_format_help(commands, program, examples))
        raise SystemExit(0)
    if name not in commands:
        close_matches = difflib.get_close_matches(name, commands, n=1)
        hint = f"the commands are {', '.join(commands)}"
        if close_matches:
            hint = f"did you mean {close_matches[0]}?"
        problem = f"unknown command {name!r}" if name else "no command is given"
        raise UserError(f"{problem}; {hint}")
    schema, description = commands[name]
    options = parse_options(
        schema, arguments[1:], name=f"{program} {name}", description=description
    )
    return name, options


def _format_help(
    commands: Mapping[str, tuple[type[Options], str]], program: str, examples: str
) -> str:
    """Return the usage, the first lines of the commands' descriptions, and the examples."""
    command_lines = [
        f"  {name:8} {description.splitlines()[0]}" for name, (_, description) in commands.items()
    ]
    return "\n".join(
        [
            f"usage: python -m {program} COMMAND [--option value] ...",
            "",
            *command_lines,
            "",
            f"python -m {program} COMMAND --help explains a command and its options.",
            "",
            examples,
        ]
    )

"""`python -m data.tokenizer`: train, import, export or inspect a tokenizer."""

import difflib
import sys
from collections.abc import Callable
from typing import Any

from common.errors import UserError, run_main
from common.options import Options, parse_options
from data.tokenizer.options import ExportOptions, ImportOptions, InspectOptions, TrainOptions

COMMANDS: dict[str, tuple[type[Options], str]] = {
    "train": (TrainOptions, "Learn a vocabulary from text."),
    "import": (ImportOptions, "Normalize a stock SentencePiece BPE model."),
    "export": (ExportOptions, "Write tokenizer.json for transformers."),
    "inspect": (InspectOptions, "Print size, special ids and characters per token."),
}
EXAMPLES = """  python -m data.tokenizer train --input wikipedia=wiki.jsonl more.txt --out tokenizer
  python -m data.tokenizer import --input llama-chinese-65k.model --out tokenizer
  python -m data.tokenizer export --tokenizer tokenizer --out exported
  python -m data.tokenizer inspect --tokenizer tokenizer --text 你好，世界"""


def main() -> None:
    """Run the command that the first argument names."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("-h", "--help"):
        print(_format_help())
        return
    if command not in COMMANDS:
        close_matches = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"the commands are {', '.join(COMMANDS)}"
        if close_matches:
            hint = f"did you mean {close_matches[0]}?"
        problem = f"unknown command {command}" if command else "no command is given"
        raise UserError(f"{problem}; {hint}")
    schema, description = COMMANDS[command]
    options = parse_options(
        schema, sys.argv[2:], name=f"data.tokenizer {command}", description=description
    )
    # Imported here so that --help and invalid options answer without loading SentencePiece and
    # NumPy.
    from data.tokenizer import commands

    functions: dict[str, Callable[[Any], None]] = {
        "train": commands.run_train,
        "import": commands.run_import,
        "export": commands.run_export,
        "inspect": commands.run_inspect,
    }
    functions[command](options)


def _format_help() -> str:
    """Return the help: usage, the commands with their descriptions, and examples."""
    command_lines = [f"  {name:8} {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m data.tokenizer COMMAND [--option value] ...",
            "",
            *command_lines,
            "",
            "python -m data.tokenizer COMMAND --help lists the options of a command.",
            "",
            EXAMPLES,
        ]
    )


if __name__ == "__main__":
    run_main(main)

"""`python -m data.tokenizer`: train, import, export or inspect a tokenizer."""

import sys
from collections.abc import Callable
from typing import Any

from common.errors import run_main
from common.options import Options
from common.subcommands import parse_subcommand
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
    command, options = parse_subcommand(
        sys.argv[1:], COMMANDS, program="data.tokenizer", examples=EXAMPLES
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


if __name__ == "__main__":
    run_main(main)

"""The options that the evaluation commands share."""

import argparse
from pathlib import Path

from common.errors import UserError
from common.options import CommandParser, writable_path

_COUNT_OPTIONS = ("limit", "beams", "max_new_tokens", "batch")


def build_eval_parser(
    name: str, description: str, *, limit_help: str, is_checkpoint_required: bool = False
) -> argparse.ArgumentParser:
    """Return the parser of `python -m evaluate.NAME`; `limit_help` is the help of `--limit`."""
    parser = CommandParser(
        prog=f"python -m evaluate.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=is_checkpoint_required,
        help="a run, one of its steps, or an exported folder",
    )
    parser.add_argument("--source", help="source of --input, such as csl, redgpt, wikipedia, jsonl")
    parser.add_argument("--input", nargs="+", help="native files, folders or globs")
    parser.add_argument("--limit", type=int, help=limit_help)
    add_device_options(parser)
    parser.add_argument(
        "--json", type=writable_path, metavar="OUT.json", help="write the metrics to this file too"
    )
    return parser


def build_generation_parser(
    name: str, description: str, *, max_new_tokens: int
) -> argparse.ArgumentParser:
    """Return the parser of a command that generates answers, of `max_new_tokens` by default."""
    parser = build_eval_parser(
        name, description, limit_help="only the first so many records (or lines of --score)"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help=f"longest answer, in tokens (default: {max_new_tokens})",
    )
    parser.add_argument(
        "--batch", type=int, default=16, help="answers decoded together (default: 16)"
    )
    parser.add_argument(
        "--predictions",
        type=writable_path,
        metavar="OUT.jsonl",
        help="write the inputs and answers to this file",
    )
    return parser


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--quantize`."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device (default: auto, which is a GPU if there is one)",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        help="evaluate with int8 weights, a quarter of the memory of fp32 (see docs/inference.md)",
    )


def parse_eval_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line.

    Raises UserError for a count below one, and for one of `--source` and `--input` without the
    other.
    """
    options = parser.parse_args()
    check_positive_counts(options)
    if bool(options.source) != bool(options.input):
        raise UserError("--source and --input belong together: --source csl --input FILE")
    return options


def check_positive_counts(options: argparse.Namespace) -> None:
    """Raise UserError for a count below one."""
    for name in _COUNT_OPTIONS:
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: at least 1")

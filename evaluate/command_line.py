"""The options that all commands share which let a checkpoint answer."""

import argparse
from pathlib import Path

import torch

from common.errors import UserError
from common.options import Parser, out_file
from model import checkpoints
from model.llama import Llama
from model.quantize import quantize_int8
from model.tokenizer import Tokenizer

_COUNTS = ("limit", "beams", "max_new_tokens", "batch")


def answering_parser(name: str, description: str, *, max_new_tokens: int) -> argparse.ArgumentParser:
    """A parser for `python -m evaluate.NAME`, with the default length of its answers."""
    parser = Parser(prog=f"python -m evaluate.{name}", description=description,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a run, one of its steps, or an exported folder")
    parser.add_argument("--source", help="source of --input, such as csl, lcsts, redgpt")
    parser.add_argument("--input", nargs="+", help="native files, folders or globs")
    parser.add_argument("--limit", type=int, help="only the first so many records (or lines of --score)")
    parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens,
                        help=f"tokens of an answer at most (default: {max_new_tokens})")
    parser.add_argument("--batch", type=int, default=16, help="answers decoded together (default: 16)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_quantize(parser)
    parser.add_argument("--predictions", type=out_file, metavar="OUT.jsonl", help="write what was asked and answered here")
    parser.add_argument("--json", type=out_file, metavar="OUT.json", help="write the figures here too")
    return parser


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """The option `--quantize`."""
    parser.add_argument("--quantize", choices=("int8",),
                        help="measure the model with int8 weights: a quarter of the memory of fp32 (see docs/inference.md)")


def load(options: argparse.Namespace, device: torch.device) -> tuple[Llama, Tokenizer]:
    """The model and the tokenizer of `--checkpoint`, the model quantised where `--quantize` says so."""
    model, tokenizer = checkpoints.load(options.checkpoint, device)
    return quantize_int8(model) if options.quantize else model, tokenizer


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's options. UserError for a count below one, and for a source without files or files without one."""
    options = parser.parse_args()
    for name in _COUNTS:
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: at least 1")
    if bool(options.source) != bool(options.input):
        raise UserError("--source and --input belong together: --source csl --input FILE")
    return options

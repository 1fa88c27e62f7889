"""`python -m model.export`: export a checkpoint in Hugging Face or GGUF format."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, run_main
from common.options import CommandParser

if TYPE_CHECKING:
    from model.interop.gguf.export import GGUFType

HF_DTYPES = ("float32", "float16", "bfloat16")
GGUF_DTYPES = ("f32", "f16", "q8_0")
DESCRIPTION = """Export a checkpoint.

  --format hf    a folder for transformers and whatever reads its files (vLLM, lm_eval …): config,
                 safetensors, tokenizer, chat template, model card. Every --checkpoint option takes
                 such a folder, too.
  --format gguf  one file for llama.cpp, NAME.gguf, and NAME.Modelfile for Ollama beside it.

  python -m model.export --checkpoint runs/sft-csl --format hf --out exports/summarizer \\
      --dtype bfloat16
  python -m model.export --checkpoint runs/sft-csl --format gguf --out exports/summarizer.gguf \\
      --dtype q8_0"""


def main() -> None:
    """Export as the command line says, and print what was written."""
    options = _parse_options()
    if options.format == "hf":
        _export_hf(options)
    else:
        _export_gguf(options)


def _parse_options() -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m model.export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a run, one of its steps, or an exported folder",
    )
    parser.add_argument("--format", choices=("hf", "gguf"), required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder (hf) or file (gguf) to write"
    )
    parser.add_argument(
        "--dtype",
        help=f"of the weights; hf: {', '.join(HF_DTYPES)} (default float32); gguf: "
        f"{', '.join(GGUF_DTYPES)} (default f32)",
    )
    parser.add_argument(
        "--max_shard_size",
        metavar="SIZE",
        help="hf: split the weights into files of at most this size, such as 200MB (default 5GB)",
    )
    options = parser.parse_args()
    valid = HF_DTYPES if options.format == "hf" else GGUF_DTYPES
    if options.dtype is not None and options.dtype not in valid:
        raise UserError(
            f"--dtype {options.dtype}: for --format {options.format} one of {', '.join(valid)}"
        )
    if options.format == "gguf" and options.max_shard_size is not None:
        raise UserError("--max_shard_size is for --format hf: a GGUF is one file")
    return options


# The exporters are imported late: with PyTorch they take seconds, which --help need not wait for.


def _export_hf(options: argparse.Namespace) -> None:
    from model.interop.hf_export import export_hf

    result = export_hf(
        options.checkpoint,
        options.out,
        dtype=options.dtype or "float32",
        max_shard_size=options.max_shard_size or "5GB",
    )
    files = f"{len(result.weights_files)} weights files"
    if len(result.weights_files) == 1:
        files = result.weights_files[0]
    print(
        f"{options.out}: {result.num_parameters / 1e6:.1f}M parameters, "
        f"{result.num_bytes / 1e6:.1f} MB in {files}"
    )


def _export_gguf(options: argparse.Namespace) -> None:
    from model.interop.gguf.export import export_gguf

    dtype: GGUFType = options.dtype or "f32"
    model = export_gguf(options.checkpoint, options.out, dtype=dtype)
    print(
        f"{options.out}: {model.config.num_parameters / 1e6:.1f}M parameters, "
        f"{options.out.stat().st_size / 1e6:.1f} MB, {dtype}"
    )


if __name__ == "__main__":
    run_main(main)

"""`python -m model.export`: a run for the tools that the rest of the world uses."""

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

  --format hf    a folder for transformers and whatever reads its files (vLLM, lm_eval …): config, safetensors, tokenizer,
                 chat template, model card. Every --checkpoint here takes it too.
  --format gguf  one file for llama.cpp, NAME.gguf, and beside it NAME.Modelfile for Ollama.

  python -m model.export --checkpoint runs/sft-csl --format hf --out exports/summariser --dtype bfloat16
  python -m model.export --checkpoint runs/sft-csl --format gguf --out exports/summariser.gguf --dtype q8_0"""


def main() -> None:
    """Entry point."""
    options = _parse_options()
    if options.format == "gguf":
        _export_gguf(options.checkpoint, options.out, options.dtype or "f32")
        return
    from model.interop.hf_export import export_hf

    done = export_hf(
        options.checkpoint,
        options.out,
        dtype=options.dtype or "float32",
        max_shard_size=options.max_shard_size or "5GB",
    )
    files = (
        done.weights_files[0]
        if len(done.weights_files) == 1
        else f"{len(done.weights_files)} files of weights"
    )
    print(
        f"{options.out}: {done.num_parameters / 1e6:.1f}M parameters, {done.num_bytes / 1e6:.1f} MB in {files}"
    )


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
        "--out", type=Path, required=True, help="the folder (hf) or file (gguf) to make"
    )
    parser.add_argument(
        "--dtype",
        help=f"of the weights; hf: {', '.join(HF_DTYPES)} (default float32); gguf: "
        f"{', '.join(GGUF_DTYPES)} (default f32)",
    )
    parser.add_argument(
        "--max_shard_size",
        metavar="SIZE",
        help="hf: cut the weights into files of at most this size, such as 200MB (default 5GB)",
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


def _export_gguf(checkpoint: Path, out: Path, dtype: "GGUFType") -> None:
    import torch

    from model.chat_template.template import Template
    from model.chat_template.to_jinja import build_jinja_template
    from model.checkpoint import locate, weights
    from model.interop.gguf.export import export_gguf
    from model.tokenizer.imported import ImportedTokenizer

    source = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(source, torch.device("cpu"))
    template = Template.load(source)
    # An imported chat template, if there is one, says what the imported words say.
    own = (
        tokenizer.tokenizer_config["chat_template"]
        if isinstance(tokenizer, ImportedTokenizer) and tokenizer.template_fields
        else None
    )
    export_gguf(
        model,
        tokenizer,
        own or build_jinja_template(template),
        out,
        dtype=dtype,
        name=out.stem,
        template=template,
    )
    print(
        f"{out}: {model.config.num_parameters / 1e6:.1f}M parameters, {out.stat().st_size / 1e6:.1f} MB, {dtype}"
    )


if __name__ == "__main__":
    run_main(main)

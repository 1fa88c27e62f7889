"""`python -m model.export`: export a checkpoint in Hugging Face or GGUF format."""

import sys
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import Field

from common.errors import run_main
from common.options import Options, parse_options
from model.lora_options import Merge
from model.rope_scaling import ContextExtension, ExtensionType

HFDtype = Literal["float32", "float16", "bfloat16"]
GGUFDtype = Literal["f32", "f16", "q8_0"]
DESCRIPTION = """Export a checkpoint.

  --format hf    a folder for transformers and programs that read its files (vLLM, lm_eval …):
                 config, safetensors, tokenizer, chat template, model card. Every --checkpoint
                 option takes such a folder, too.
  --format gguf  one file for llama.cpp, NAME.gguf, and NAME.Modelfile for Ollama beside it.

  python -m model.export --checkpoint runs/sft-csl --format hf --out exports/summarizer \\
      --dtype bfloat16
  python -m model.export --checkpoint runs/sft-csl --format gguf --out exports/summarizer.gguf \\
      --dtype q8_0"""


class ExportOptions(Options):
    """Options of `python -m model.export`."""

    checkpoint: Path = Field(description="a run, one of its steps, or an exported folder")
    format: Literal["hf", "gguf"] = Field(description="layout of the export")
    out: Path = Field(description="the folder (hf) or file (gguf) to write")
    dtype: HFDtype | GGUFDtype | None = Field(
        None,
        description=f"number format of the weights; hf: {', '.join(get_args(HFDtype))} (default "
        f"float32); gguf: {', '.join(get_args(GGUFDtype))} (default f32)",
    )
    max_shard_size: str | None = Field(
        None,
        description="hf: split the weights into files of at most this size, such as 200MB "
        "(default 5GB)",
    )
    merge: Merge | None = Field(
        None,
        description="of an adapter that was trained beside 4-bit weights: dequantized, into the "
        "weights that it was trained beside (default); original, into those of the base. "
        "python -m evaluate.merge measures both",
    )
    rope_scaling: ExtensionType | None = Field(
        None,
        description="extend the context without training, to --context: yarn, llama3, linear, or "
        "none for more positions alone (docs/long-context.md)",
    )
    context: int | None = Field(
        None, gt=1, description="tokens that the model is extended to, with --rope_scaling"
    )

    @property
    def extension(self) -> ContextExtension | None:
        """Return how to extend the context of the model, None to leave it."""
        if self.rope_scaling is None or self.context is None:
            return None
        return ContextExtension(self.rope_scaling, self.context)

    def find_conflicts(self) -> list[str]:
        """See `Options.find_conflicts`."""
        lines = super().find_conflicts()
        valid_dtypes = get_args(HFDtype if self.format == "hf" else GGUFDtype)
        if self.dtype is not None and self.dtype not in valid_dtypes:
            lines.append(
                f"--dtype {self.dtype}: for --format {self.format} one of {', '.join(valid_dtypes)}"
            )
        if self.format == "gguf" and self.max_shard_size is not None:
            lines.append("--max_shard_size is for --format hf: a GGUF is one file")
        if (self.rope_scaling is None) != (self.context is None):
            lines.append("--rope_scaling and --context extend a model together: give both")
        return lines


def main() -> None:
    """Export the checkpoint in the format on the command line, and print what was written."""
    options = parse_options(
        ExportOptions, sys.argv[1:], name="model.export", description=DESCRIPTION
    )
    if options.format == "hf":
        _export_hf(options)
    else:
        _export_gguf(options)


def _export_hf(options: ExportOptions) -> None:
    """Write a folder in Hugging Face format, and print its size."""
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from model.interop.hf_export import export_hf

    result = export_hf(
        options.checkpoint,
        options.out,
        dtype=cast("HFDtype", options.dtype or "float32"),
        max_shard_size=options.max_shard_size or "5GB",
        merge=options.merge,
        extension=options.extension,
    )
    files = f"{len(result.weights_files)} weights files"
    if len(result.weights_files) == 1:
        files = result.weights_files[0]
    print(
        f"{options.out}: {result.num_parameters / 1e6:.1f}M parameters, "
        f"{result.num_bytes / 1e6:.1f} MB in {files}"
    )


def _export_gguf(options: ExportOptions) -> None:
    """Write a GGUF file with its Modelfile, and print its size."""
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from model.interop.gguf.export import export_gguf

    dtype = cast("GGUFDtype", options.dtype or "f32")
    model = export_gguf(
        options.checkpoint,
        options.out,
        dtype=dtype,
        merge=options.merge,
        extension=options.extension,
    )
    print(
        f"{options.out}: {model.config.num_parameters / 1e6:.1f}M parameters, "
        f"{options.out.stat().st_size / 1e6:.1f} MB, {dtype}"
    )


if __name__ == "__main__":
    run_main(main)

"""`python -m model.import_hf`: import a Llama in Hugging Face format as a run."""

import sys
from pathlib import Path

from pydantic import Field

from common.errors import run_main
from common.options import CliPositionalArg, Options, parse_options

DESCRIPTION = """Import a folder in Hugging Face's layout as a run: config.json of a Llama without
biases, safetensors (one file or several), tokenizer.json. Nothing in it is unpickled; its chat
template is run once, in a sandbox.

  python -m model.import_hf ~/models/SmolLM2-135M-Instruct --run runs/smollm2
  python -m chat --checkpoint runs/smollm2
  python -m train.pretrain --base runs/smollm2 --data corpus.jsonl --run runs/smollm2-zh
  python -m train.sft --base runs/smollm2 --data csl --run runs/smollm2-csl"""


class ImportOptions(Options):
    """Options of `python -m model.import_hf`."""

    folder: CliPositionalArg[Path] = Field(description="the folder of the model")
    run: Path = Field(description="the run directory to write, such as runs/NAME")


def main() -> None:
    """Import the folder on the command line, and print the run's size and chat template."""
    options = parse_options(
        ImportOptions, sys.argv[1:], name="model.import_hf", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from model.interop.hf_import import import_hf

    model, tokenizer, template_note = import_hf(options.folder, options.run)
    config = model.config
    print(
        f"{options.run}: {config.num_parameters / 1e6:.1f}M parameters, "
        f"{config.max_position_embeddings:,} positions, vocabulary {tokenizer.vocab_size:,}; "
        f"{template_note}"
    )


if __name__ == "__main__":
    run_main(main)

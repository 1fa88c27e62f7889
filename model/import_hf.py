"""`python -m model.import_hf`: import a Llama in Hugging Face format as a run."""

import argparse
from pathlib import Path

from common.errors import run_main
from common.options import CommandParser

DESCRIPTION = """Make a run of a folder in Hugging Face's layout: config.json of a Llama without
biases, safetensors (one file or several), tokenizer.json. Nothing in it is unpickled; its chat
template is run once, in a sandbox.

  python -m model.import_hf ~/models/SmolLM2-135M-Instruct --run runs/smollm2
  python -m chat --checkpoint runs/smollm2
  python -m train.pretrain --base runs/smollm2 --data corpus.jsonl --run runs/smollm2-zh
  python -m train.sft --base runs/smollm2 --data csl --run runs/smollm2-csl"""


def main() -> None:
    """Import the folder on the command line, and print the run's size and chat template."""
    parser = CommandParser(
        prog="python -m model.import_hf",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument(
        "--run", type=Path, required=True, help="the run to make, such as runs/NAME"
    )
    options = parser.parse_args()
    # Late: with PyTorch it takes seconds, which --help need not wait for.
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

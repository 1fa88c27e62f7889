"""`python -m bench.qlora`: QLoRA on a CPU beside PEFT, bitsandbytes and transformers."""

import sys

from bench.options import QloraOptions
from common.errors import run_main
from common.options import parse_options

DESCRIPTION = """Compare QLoRA on a CPU with that of PEFT, bitsandbytes and transformers.

Both load the same random bf16 Llama in NF4 with double quantization, and train the same adapter of
rank 64 on all linear layers but the head: one row a step, bf16, gradient checkpointing, AdamW in 8
bits. Every measurement is a process of its own, and the contenders alternate. They must report the
same losses, up to the rounding of bf16; otherwise the comparison is refused. The peak of memory
while the model is loaded and that of the steps are measured apart.

The default shape needs about 6 GB of disk and memory, and some minutes for each contender."""


def main() -> None:
    """Run the command."""
    options = parse_options(QloraOptions, sys.argv[1:], name="bench.qlora", description=DESCRIPTION)
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from bench.qlora_speed import compare_qlora

    compare_qlora(options)


if __name__ == "__main__":
    run_main(main)

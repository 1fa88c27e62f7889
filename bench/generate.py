"""`python -m bench.generate`: prefill and decode speed on a CPU beside other projects."""

import sys

from bench.options import GenerateSpeedOptions
from common.errors import run_main
from common.options import parse_options

DESCRIPTION = """Compare prefill and decode speed on a CPU with other projects.

Each contender continues one prompt, and batches of 16 and 64 of unequal lengths. Every measurement
is a process of its own, and the contenders alternate, A B C A B C ..., because the speed of a
machine drifts: only ratios within one run count. All decode the same prompts with the same random
weights of the 43M model; in fp32 they must generate the same ids, or the comparison is refused; for
bf16 and int8 the share of ids that change is printed. Beside each speed stands its limit: the
memory bandwidth measured in the run, divided by the bytes of weights and of the KV cache that every
step reads."""


def main() -> None:
    """Run the command."""
    options = parse_options(
        GenerateSpeedOptions, sys.argv[1:], name="bench.generate", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from bench.generate_speed import compare_decoding

    compare_decoding(options)


if __name__ == "__main__":
    run_main(main)

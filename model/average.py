"""`python -m model.average`: average the last checkpoints of a run into a new run."""

import sys
from pathlib import Path

from pydantic import Field

from common.errors import run_main
from common.options import CliPositionalArg, Options, parse_options

DESCRIPTION = """Average the weights of the last checkpoints of a run, and write them as a run.

  python -m model.average runs/sft-csl --last 3                # runs/sft-csl-average
  python -m evaluate.rouge --checkpoint runs/sft-csl-average

The run has to keep them: train with --checkpoint.keep 3, or all, and --checkpoint.every. Everything
that reads a run reads the new one: chat, evaluation, export, --base. It cannot be resumed.

python -m evaluate.average says on the dev split whether it is better."""


class AverageOptions(Options):
    """Options of `python -m model.average`."""

    source: CliPositionalArg[Path] = Field(description="the run whose checkpoints are averaged")
    last: int = Field(ge=2, description="how many of its newest checkpoints")
    run: Path | None = Field(
        None, description="the run directory to write (default: that of the run, with -average)"
    )

    @property
    def out(self) -> Path:
        """Return the run directory to write."""
        return self.run or self.source.with_name(f"{self.source.name}-average")


def main() -> None:
    """Average the checkpoints on the command line, and print what was written."""
    options = parse_options(
        AverageOptions, sys.argv[1:], name="model.average", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from model.checkpoint.averaging import write_average

    steps = write_average(options.source, options.last, options.out)
    print(f"{options.out}: average of the steps {', '.join(f'{step:,}' for step in steps)}")


if __name__ == "__main__":
    run_main(main)

"""`python -m train.sft`: fine-tune on conversations and summaries."""

from common.errors import run_main
from train.cli import parse_train_options, training_session
from train.options import SftOptions

DESCRIPTION = (
    "Fine-tune on conversations and summaries: the loss is on the answers and their <eos>, and "
    "several examples share a row without attending to each other. A run that exists is resumed "
    "from its newest checkpoint; Ctrl-C saves first."
)


def main() -> int:
    """Fine-tune a model with the options of the command line; return the exit code."""
    with training_session():
        options = parse_train_options(SftOptions, "sft", DESCRIPTION)
        # Imported here so that --help and invalid options answer without loading PyTorch.
        from train.sft_run import fine_tune

        return fine_tune(options)


if __name__ == "__main__":
    run_main(main)

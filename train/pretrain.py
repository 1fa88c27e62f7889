"""`python -m train.pretrain`: train a Llama on text, from random weights or from a base."""

from common.errors import run_main
from train.cli import parse_train_options, training_session
from train.options import PretrainOptions

DESCRIPTION = (
    "Pretrain a Llama from scratch, or continue from the weights of --base, such as an imported "
    "run. A run that exists is resumed from its newest checkpoint; Ctrl-C saves first. Watch it "
    "with: make tensorboard"
)


def main() -> int:
    """Pretrain a model with the options of the command line; return the exit code."""
    with training_session():
        options = parse_train_options(PretrainOptions, "pretrain", DESCRIPTION)
        # Imported here so that --help and invalid options answer without loading PyTorch.
        from train.pretrain_run import pretrain

        return pretrain(options)


if __name__ == "__main__":
    run_main(main)

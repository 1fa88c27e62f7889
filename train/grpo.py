"""`python -m train.grpo`: learn from rewards that a program computes of the model's own answers."""

from common.errors import run_main
from train.cli import parse_train_options, training_session
from train.options import GrpoOptions

DESCRIPTION = (
    "Learn from rewards: the model draws several answers to each question, a program scores them, "
    "and answers that are better than the others to the same question become more probable (GRPO). "
    "A run that exists is resumed from its newest checkpoint; Ctrl-C saves first."
)


def main() -> int:
    """Train with the options of the command line; return the exit code."""
    with training_session():
        options = parse_train_options(GrpoOptions, "grpo", DESCRIPTION)
        # Imported here so that --help and invalid options answer without loading PyTorch.
        from train.grpo_run import learn_from_rewards

        return learn_from_rewards(options)


if __name__ == "__main__":
    run_main(main)

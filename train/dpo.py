"""`python -m train.dpo`: learn from preferences, pairs of a better and a worse answer."""

from common.errors import run_main
from train.cli import parse_train_options, training_session
from train.options import DpoOptions

DESCRIPTION = (
    "Learn from preferences: the model comes to prefer the chosen answer of a pair to the rejected "
    "one, relative to its base, whose log-probabilities are computed once. Both answers of a pair "
    "share one prompt. A run that exists is resumed from its newest checkpoint; Ctrl-C saves first."
)


def main() -> int:
    """Train with the options of the command line; return the exit code."""
    with training_session():
        options = parse_train_options(DpoOptions, "dpo", DESCRIPTION)
        # Imported here so that --help and invalid options answer without loading PyTorch.
        from train.dpo_run import learn_preferences

        return learn_preferences(options)


if __name__ == "__main__":
    run_main(main)

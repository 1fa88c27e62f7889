"""`python -m evaluate.rules`: probes with rules that no one has seen."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.rules.options import RulesOptions

DESCRIPTION = """Ask questions whose answers follow from an invented rule.

Each question is asked in three forms, which differ in the rule alone: with an invented rule (each
apple that is eaten makes another one vanish), without one, and with a rule against common sense
(eating makes more apples). Rule use is the rate of right answers with the rule, minus the rate at
which the same answer is given without it. A model that recites answers with common sense in all
three forms.

The items are drawn with a seed, and their answers are computed. A rule is given to the model as the
reference (资料) of its chat template; an imported template has it in the system turn.

Likelihood: of the candidates of an item, the answer is the one with the largest sum of the
log-probabilities of its tokens and of the <eos> after them. Generation: greedy; the answer is the
last number or, in families without numbers, the last candidate in the text.

--export writes items of other values as conversations to train on. With --trained_on, the families
in that file and all others are reported apart: a family that was trained on measures memory of the
family."""


def main() -> None:
    """Measure a checkpoint, or export items, with the options of the command line."""
    options = parse_options(
        RulesOptions, sys.argv[1:], name="evaluate.rules", description=DESCRIPTION
    )
    if options.export:
        from evaluate.rules.export import export_items

        export_items(options, options.export)
    else:
        # Imported here so that --help and invalid options answer without loading PyTorch.
        from evaluate.rules.measure import run_rules

        run_rules(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)

"""The registry of record kinds: each half in `data`, joined with the half in this package.

A kind is two modules of one name: `data.kinds.NAME` (clean, encode, examples) and
`evaluate.kinds.NAME` (score, commands, answers). No other module lists them.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from data.kinds.base import RecordKind

if TYPE_CHECKING:
    # Not imported at run time, because it loads PyTorch, which --help does not need.
    from evaluate.kinds.base import KindEvaluation


def find_evaluation(kind: RecordKind[Any]) -> "KindEvaluation":
    """Return the half of a kind in this package. Raises UserError if there is none."""
    if kind.name not in (module.name for module in pkgutil.iter_modules(__path__)):
        raise UserError(
            f"records of the kind {kind.name} cannot be measured: no {__name__}.{kind.name} "
            "defines how"
        )
    evaluation: KindEvaluation = importlib.import_module(f"{__name__}.{kind.name}").EVALUATION
    return evaluation

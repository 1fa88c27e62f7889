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
    # Importing it takes torch, for which the help of a command need not wait.
    from evaluate.kinds.base import KindEvaluation


def find_evaluation(kind: RecordKind[Any]) -> "KindEvaluation":
    """Return the half in `evaluate` of a kind. Raises UserError if it has none."""
    if kind.name not in (module.name for module in pkgutil.iter_modules(__path__)):
        raise UserError(
            f"records of the kind {kind.name} cannot be measured: there is no "
            f"{__name__}.{kind.name}"
        )
    evaluation: KindEvaluation = importlib.import_module(f"{__name__}.{kind.name}").EVALUATION
    return evaluation

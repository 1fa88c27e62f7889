"""Say how much past the tokens of long rows have, and whether the base of a run knows such rows."""

import numpy as np

from train.options import PretrainOptions, SftOptions
from train.run.model_config import read_base_config
from train.run.spec import RunSpec, TrainingPlan

# Pasts that the tokens of longer rows are counted by.
_PASTS = (1024, 4096, 16384, 65536)
# With a smaller share of tokens behind half a row of their own document, shorter rows would do.
_MIN_LONG_SHARE = 0.01


def describe_pasts(spec: RunSpec, plan: TrainingPlan) -> str | None:
    """Return the counts of tokens by their past, None for short rows and without documents.

    The past of a token is what stands before it in its row of its own document.
    """
    length = spec.options.sequence_length
    pasts = {past for past in (_trained_length(spec), *_PASTS) if past < length}
    if plan.document_parts is None or not pasts:
        return None
    pasts.add(length // 2)
    parts = plan.document_parts
    counts = ", ".join(f"{past:,}: {share_behind(parts, past):.1%}" for past in sorted(pasts))
    return f"tokens with at least so many before them in their document and row: {counts}"


def advise_on_row_length(spec: RunSpec, plan: TrainingPlan) -> list[str]:
    """Return a line if documents or rows are too short, and one if the base does not know them."""
    length, trained_length = spec.options.sequence_length, _trained_length(spec)
    lines = []
    parts = plan.document_parts
    is_long = length > min(trained_length, *_PASTS)
    if parts is not None and is_long and share_behind(parts, length // 2) < _MIN_LONG_SHARE:
        lines.append(
            f"almost no document fills half of a row (the longest part in one has {parts.max():,} "
            "tokens): from these rows a model does not learn to use a long past; take longer "
            "documents, or a shorter --sequence_length (docs/long-context.md)"
        )
    if length < trained_length and spec.command in ("pretrain", "sft"):
        lines.append(
            f"rows have {length:,} tokens, and the base was trained with {trained_length:,}: chat "
            f"and server will read {length:,} from now on; --sequence_length {trained_length} "
            "keeps what the base reads (docs/long-context.md)"
        )
    what = "rows have"
    if plan.example_lengths is not None:
        # Positions begin again with every example of a row.
        length, what = int(plan.example_lengths.max(initial=0)), "the longest example has"
    if length > trained_length and not _extends_context(spec):
        remedy = "--model.rope_scaling yarn prepares it for them"
        if spec.command not in ("pretrain", "sft"):
            remedy = "extend it first, with make pretrain and --model.rope_scaling yarn"
        lines.append(
            f"{what} {length:,} tokens, and the base was trained with {trained_length:,}: it does "
            f"not know the other positions; {remedy} (docs/long-context.md)"
        )
    return lines


def share_behind(parts: np.ndarray, past: int) -> float:
    """Return the share of tokens that have at least `past` of their own document before them.

    `parts`, int64[n], are the lengths of the parts that rows cut documents into.
    """
    return float(np.maximum(parts - past, 0).sum() / parts.sum())


def _trained_length(spec: RunSpec) -> int:
    """Return the length of the rows that the base was trained with; without a base, the run's."""
    if spec.base.folder is None:
        return spec.options.sequence_length
    return read_base_config(spec.base)[1]


def _extends_context(spec: RunSpec) -> bool:
    """Return whether the options say what becomes of the positions of longer rows."""
    options = spec.options
    if not isinstance(options, PretrainOptions | SftOptions):
        return False
    return options.model.rope_scaling is not None

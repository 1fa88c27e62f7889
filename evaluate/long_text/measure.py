"""Score windows of long documents with more and more of the text before them."""

from collections.abc import Iterator, Sequence

import numpy as np

from common.errors import UserError
from common.machine import resolve_device
from common.progress import progress_bar
from data.shards import ShardSet, load_run_shard_sets
from evaluate.input_records import iter_texts
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.long_text.figures import compute_figures
from evaluate.long_text.options import LongTextOptions
from evaluate.long_text.page import format_figures, write_long_text_page
from evaluate.longer_context import allow_positions, warn_of_untrained_length
from evaluate.metrics.loss_by_past import cut_windows, mean_by_document, score_by_past
from evaluate.result import EvalResult, report_result

_SHORTEST_PAST = 64
# With fewer documents an interval says little.
_FEW_DOCUMENTS = 10


def run_long_text(options: LongTextOptions) -> None:
    """Score windows of long documents with each past; report the result.

    Raises UserError if no document is long enough.
    """
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    pasts = options.pasts or default_pasts(loaded.model.trained_context, options.targets)
    length = max(pasts) + options.targets
    warn_of_untrained_length(loaded.model, length)
    allow_positions(loaded.model, length)
    label, texts = _find_texts(options)
    documents = _encode_long(loaded, texts, length, options.windows)
    windows = cut_windows(documents, length, options.windows, options.seed)
    if not len(windows.ids):
        raise UserError(
            f"{label}: no document has {length:,} tokens, the longest past and the scored ones: "
            "give shorter --pasts, or longer documents"
        )
    total = len(windows.ids) * (sum(pasts) + len(pasts) * options.targets)
    with progress_bar("scoring", total, "tokens") as bar:
        by_past, by_position = score_by_past(
            loaded.model, windows.ids, pasts, options.targets, on_progress=bar.update
        )
    characters = loaded.tokenizer.characters_per_id[windows.ids[:, -options.targets :]].sum()
    figures = compute_figures(
        pasts,
        mean_by_document(by_past, windows.documents),
        mean_by_document(by_position, windows.documents),
        bits=(by_past.sum(0) * options.targets / np.log(2) / max(int(characters), 1)).tolist(),
    )
    num_documents = len(np.unique(windows.documents))
    headline = (
        f"{options.checkpoint} on {label}: {len(windows.ids):,} windows of {num_documents:,} "
        f"documents, the last {options.targets} tokens of each scored"
    )
    lines = [headline, *format_figures(figures)]
    if num_documents < _FEW_DOCUMENTS:
        lines.append(
            f"only {num_documents} documents are long enough: the intervals say little; give more "
            "text"
        )
    metrics = {
        "text": label,
        "documents": num_documents,
        "windows": len(windows.ids),
        "targets": options.targets,
        "trained_context": loaded.model.trained_context,
        **figures.to_json(),
    }
    report_result(EvalResult(lines, metrics, loaded.provenance, device=device), options.json_file)
    if options.page:
        write_long_text_page(options.page, headline, figures)


def default_pasts(trained_context: int, num_targets: int) -> tuple[int, ...]:
    """Return 64, 128, 256 … as long as the scored tokens fit the context behind them."""
    pasts = [_SHORTEST_PAST]
    while 2 * pasts[-1] + num_targets <= trained_context:
        pasts.append(2 * pasts[-1])
    return tuple(pasts)


def _find_texts(options: LongTextOptions) -> tuple[str, Iterator[str]]:
    """Return what the text is called, and the documents that the options name.

    Raises UserError if the shard sets have none.
    """
    if options.source:
        return " ".join(options.input), iter_texts(options.source, options.input)
    if options.data:
        shard_sets = [ShardSet.open(options.data)]
    else:
        shard_sets = load_run_shard_sets(
            options.checkpoint, hint="name text with --data DIR or --source NAME --input FILE"
        )
    of_text = [shards for shards in shard_sets if shards.kind.is_text]
    if not of_text:
        raise UserError(
            f"{shard_sets[0].folder} has no documents: name text with --source NAME --input FILE"
        )
    label = f"{', '.join(str(shards.folder) for shards in of_text)} {options.split}"
    return label, _iter_shard_texts(of_text, options.split)


def _iter_shard_texts(shard_sets: Sequence[ShardSet], split: str) -> Iterator[str]:
    """Yield the documents of a split of each shard set."""
    for shards in shard_sets:
        tokenizer, sequences = shards.load_tokenizer(), shards.load_text(split)
        for index in range(len(sequences)):
            yield tokenizer.decode(sequences.tokens(index).tolist())


def _encode_long(
    loaded: LoadedCheckpoint, texts: Iterator[str], length: int, max_documents: int
) -> list[np.ndarray]:
    """Return the ids of the first documents of at least `length` tokens, int64[n] each.

    Without bos and eos, as a row of training is, which begins and ends anywhere in a text.
    """
    documents: list[np.ndarray] = []
    for text in texts:
        # A shorter text has fewer tokens than that: a token of one character may have four bytes.
        if 4 * len(text) < length:
            continue
        ids = loaded.tokenizer.encode(text)
        if len(ids) >= length:
            documents.append(np.array(ids, np.int64))
            if len(documents) == max_documents:
                break
    return documents

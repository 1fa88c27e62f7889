"""Loss, perplexity, accuracy and bits per character of a checkpoint on text."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, resolve_device
from common.progress import progress_bar
from data.batching.examples import RequestSampling, build_examples, encode_records
from data.records import Document
from data.shards import InMemorySequences, Sequences, ShardSet, load_run_shard_set
from data.sources import find_source
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.options import PerplexityOptions
from evaluate.scores.lm import BLOCK_TOKENS, WINDOW_TOKENS, LMScore, score_examples, score_stream
from evaluate.usable_records import UsableRecords, read_records
from model.chat_template.template import load_template
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# Longest conversation whose answers are scored.
MAX_ROW_TOKENS = 1024


def run_perplexity(options: PerplexityOptions) -> None:
    """Score text and print the figures; write the file that the options name."""
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options.quantize, device)
    if loaded.model.config.max_position_embeddings < WINDOW_TOKENS:
        raise UserError(
            f"{options.checkpoint}: its context of {loaded.model.config.max_position_embeddings} tokens is shorter "
            f"than the window of {WINDOW_TOKENS} that figures here are measured in"
        )
    shards = (
        None
        if options.input
        else ShardSet.open(options.data)
        if options.data
        else load_run_shard_set(options.checkpoint)
    )
    if shards:
        kind = shards.kind
    else:
        assert options.source is not None
        kind = find_source(options.source).kind
    counts: dict[str, int] = {}
    if kind == "documents":
        name, result = _score_documents(options, shards, loaded.model, loaded.tokenizer)
        method = f"windows of {WINDOW_TOKENS}"
    else:
        name, result, counts = _score_answers(options, shards, loaded)
        method = f"answers only, rows of {min(MAX_ROW_TOKENS, loaded.model.trained_context)}"
    if not result.num_tokens:
        reason = (
            "fewer than two tokens" if kind == "documents" else "no record whose answer fits a row"
        )
        raise UserError(
            f"{name}: {reason}, nothing to score; name other text with --data DIR or --source NAME --input FILE"
        )
    measures = result.compute_metrics()
    print(
        f"{options.checkpoint} on {name}: {result.num_tokens:,} tokens, {result.num_characters:,} characters, {method}"
    )
    print(
        f"loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.3f}  accuracy {measures['accuracy']:.2%}  "
        f"bits/character {measures['bits_per_character']:.4f}"
    )
    if options.json_file:
        provenance = {
            **loaded.provenance,
            "text": name,
            "measured": method,
            "characters": result.num_characters,
        }
        write_json(
            options.json_file,
            {**provenance, **counts, **measures, "made": collect_environment(device)},
        )


def _score_documents(
    options: PerplexityOptions, shards: ShardSet | None, model: Llama, tokenizer: Tokenizer
) -> tuple[str, LMScore]:
    if options.limit == 1:
        raise UserError("--limit 1: at least 2 tokens of text are needed to score one")
    records = None
    if options.source:
        records = UsableRecords(options.source, options.input, ("documents",))
    name, total, stream = _open_token_stream(options, shards, records, tokenizer)
    result = LMScore(0.0, 0, 0, 0)
    with progress_bar("scoring", total, "tokens") as bar:
        for block in _overlapping_blocks(stream, options.limit):
            result += score_stream(
                model, block, tokenizer.characters_per_id, on_progress=bar.update
            )
    if records:
        records.print_skipped()
    return name, result


def _score_answers(
    options: PerplexityOptions, shards: ShardSet | None, loaded: LoadedCheckpoint
) -> tuple[str, LMScore, dict[str, int]]:
    """The answers of a set's split, or of native files, of the first `--limit` records.

    And the counts that are printed: `records` that were scored, `left_out` because no answer fits, `cut` to the row.
    """
    model, tokenizer, template = loaded.model, loaded.tokenizer, load_template(loaded.folder)
    length = min(MAX_ROW_TOKENS, model.trained_context)
    sequences: Sequences | InMemorySequences
    if options.source:
        name, kind = " ".join(options.input), find_source(options.source).kind
        records = read_records(options.source, options.input, (kind,), options.limit)
        sequences = encode_records(records, tokenizer, template)
    else:
        assert shards is not None
        if shards.load_tokenizer().fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{shards.folder} was prepared with another tokenizer than {options.checkpoint} has: score the "
                "native files with --source NAME --input FILE"
            )
        name, kind, split = (
            f"{shards.folder} {options.split}",
            shards.kind,
            shards.load_split(options.split),
        )
        sequences = _take_records(split, options.limit) if options.limit else split
    examples = build_examples(
        kind, sequences, length, tokenizer, template, RequestSampling(None, template.lead_ins)
    )
    fits = examples.lengths(0) > 0
    with progress_bar("scoring", int(fits.sum()), "examples") as bar:
        result = score_examples(
            model, examples, length, tokenizer.characters_per_id, on_progress=bar.update
        )
    counts = {
        "records": int(fits.sum()),
        "left_out": int((~fits).sum()),
        "cut": examples.num_truncated,
    }
    print(
        f"{counts['records']:,} records scored, {counts['left_out']:,} left out (no answer fits a row of {length} tokens), "
        f"{counts['cut']:,} cut to the row"
    )
    return name, result, counts


def _take_records(split: Sequences, count: int) -> InMemorySequences:
    """The first `count` records of a split."""
    return InMemorySequences(
        [
            (split.tokens(index).tolist(), split.spans(index).tolist())
            for index in range(min(count, len(split)))
        ]
    )


def _open_token_stream(
    options: PerplexityOptions,
    shards: ShardSet | None,
    records: UsableRecords | None,
    tokenizer: Tokenizer,
) -> tuple[str, int | None, Iterator[np.ndarray]]:
    """What is scored, in words; its tokens if they are known; and the ids in pieces."""
    if records is not None:
        pieces = (
            _encode_document(record.text, tokenizer)
            for record in records
            if isinstance(record, Document)
        )
        return " ".join(options.input), options.limit, pieces
    assert shards is not None
    split = shards.load_split(options.split)
    if shards.load_tokenizer().fingerprint == tokenizer.fingerprint:
        pieces = (
            split.read_stream(start, start + BLOCK_TOKENS)
            for start in range(0, split.num_tokens, BLOCK_TOKENS)
        )
        return (
            f"{shards.folder} {options.split}",
            min(split.num_tokens, options.limit or split.num_tokens),
            pieces,
        )
    # Another tokenizer's ids: back to text and through the checkpoint's own.
    source_tokenizer = shards.load_tokenizer()
    texts = (source_tokenizer.decode(split.tokens(index).tolist()) for index in range(len(split)))
    return (
        f"{shards.folder} {options.split} (encoded anew)",
        None,
        (_encode_document(text, tokenizer) for text in texts),
    )


def _encode_document(text: str, tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eod_id], dtype=np.int64)


def _overlapping_blocks(pieces: Iterator[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """Pieces of any size → blocks of BLOCK + 1 ids that overlap by one, so that windows lie as in one long stream."""
    pending: list[np.ndarray] = []
    num_pending, num_remaining = 0, limit if limit is not None else None
    for piece in pieces:
        piece = piece if num_remaining is None else piece[:num_remaining]
        num_remaining = None if num_remaining is None else num_remaining - len(piece)
        pending.append(piece)
        num_pending += len(piece)
        while num_pending > BLOCK_TOKENS:
            joined = np.concatenate(pending)
            yield joined[: BLOCK_TOKENS + 1]
            pending, num_pending = [joined[BLOCK_TOKENS:]], num_pending - BLOCK_TOKENS
        if num_remaining == 0:
            break
    remainder: Any = np.concatenate(pending) if pending else np.zeros(0, np.int64)
    if len(remainder) > 1:
        yield remainder

"""`python -m evaluate.perplexity`: loss, perplexity, accuracy and bits per character of a checkpoint on any text."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import collect_environment, resolve_device
from common.progress import progress_bar
from data.batching.examples import RequestSampling, build_examples, encode_records
from data.records import Document
from data.shards import SPLITS, InMemorySequences, Sequences, ShardSet, load_run_shard_set
from data.sources import find_source
from evaluate.cli import build_eval_parser, parse_eval_options
from evaluate.runner import LoadedCheckpoint, load_checkpoint
from evaluate.scores.lm import BLOCK_TOKENS, WINDOW_TOKENS, LMScore, score_examples, score_stream
from evaluate.usable_records import UsableRecords, read_records
from model.chat_template.template import Template
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# Longest conversation whose answers are scored.
MAX_ROW_TOKENS = 1024
DESCRIPTION = f"""Measure a checkpoint on text.

The text is either a split of a prepared shard set (--data DIR --split validation) or native files of a source
(--source jsonl --input FILE…), encoded with the checkpoint's own tokenizer. Documents are `<bos> text <eos>`, written
one after another and cut into windows of {WINDOW_TOKENS} tokens; every token but the first is scored once, with what precedes
it in its window as context. Of conversations and summaries only the answers are scored, each with the whole
conversation before it as context, in rows of {MAX_ROW_TOKENS} tokens, or of as many as the model was trained on where that is less.
A conversation that is longer is cut after its last answer that fits, an article loses its end; a record of which no
answer fits is left out. Both are counted.

Loss and perplexity are per token and compare only models with the same tokenizer; bits per character compares all."""


def main() -> None:
    """Entry point."""
    parser = build_eval_parser(
        "perplexity",
        DESCRIPTION,
        limit_help="only the first so many records (of text: about so many tokens)",
        is_checkpoint_required=True,
    )
    parser.add_argument(
        "--data", type=Path, help="a prepared shard set (default: the one the run was trained on)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="split of the shard set"
    )
    options = parse_eval_options(parser)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, device, quantize=options.quantize)
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
    kind = shards.kind if shards else find_source(options.source).kind
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
    if options.json:
        provenance = {
            **loaded.provenance,
            "text": name,
            "measured": method,
            "characters": result.num_characters,
        }
        write_json(
            options.json, {**provenance, **counts, **measures, "made": collect_environment(device)}
        )


def _score_documents(
    options: argparse.Namespace, shards: ShardSet | None, model: Llama, tokenizer: Tokenizer
) -> tuple[str, LMScore]:
    if options.limit == 1:
        raise UserError("--limit 1: at least 2 tokens of text are needed to score one")
    records = (
        UsableRecords(options.source, options.input, ("documents",)) if shards is None else None
    )
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
    options: argparse.Namespace, shards: ShardSet | None, loaded: LoadedCheckpoint
) -> tuple[str, LMScore, dict[str, int]]:
    """The answers of a set's split, or of native files, of the first `--limit` records.

    And the counts that are printed: `records` that were scored, `left_out` because no answer fits, `cut` to the row.
    """
    model, tokenizer, template = loaded.model, loaded.tokenizer, Template.load(loaded.folder)
    length, source = (
        min(MAX_ROW_TOKENS, model.trained_context),
        find_source(options.source) if options.input else None,
    )
    sequences: Sequences | InMemorySequences
    if source:
        name, kind = " ".join(options.input), source.kind
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
    options: argparse.Namespace,
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


if __name__ == "__main__":
    run_main(main)

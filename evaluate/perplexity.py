"""`python -m evaluate.perplexity`: loss, perplexity, accuracy and bits per character of a checkpoint on any text."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import describe, resolve_device
from common.progress import progress
from data.batching.examples import Phrasings, encode_records, examples_of
from data.records import Document
from data.shards import SPLITS, HeldSequences, Sequences, ShardSet, shards_of_run
from data.sources import find_source
from evaluate.cli import Measured, load, measuring_parser, parse
from evaluate.scores.lm import BLOCK, WINDOW, Score, score_examples, score_stream
from evaluate.usable_records import Records, read_records
from model.llama import Llama
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# Longest conversation whose answers are scored.
ROW = 1024
DESCRIPTION = f"""Measure a checkpoint on text.

The text is either a split of a prepared shard set (--data DIR --split validation) or native files of a source
(--source jsonl --input FILE…), encoded with the checkpoint's own tokenizer. Documents are `<bos> text <eos>`, written
one after another and cut into windows of {WINDOW} tokens; every token but the first is scored once, with what precedes
it in its window as context. Of conversations and summaries only the answers are scored, each with the whole
conversation before it as context, in rows of {ROW} tokens, or of as many as the model was trained on where that is less.
A conversation that is longer is cut after its last answer that fits, an article loses its end; a record of which no
answer fits is left out. Both are counted.

Loss and perplexity are per token and compare only models with the same tokenizer; bits per character compares all."""


def main() -> None:
    """Entry point."""
    parser = measuring_parser("perplexity", DESCRIPTION, limit="only the first so many records (of text: about so many tokens)",
                              required=True)
    parser.add_argument("--data", type=Path, help="a prepared shard set (default: the one the run was trained on)")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="split of the shard set")
    options = parse(parser)
    device = resolve_device(options.device)
    loaded = load(options, device)
    if loaded.model.config.max_position_embeddings < WINDOW:
        raise UserError(f"{options.checkpoint}: its context of {loaded.model.config.max_position_embeddings} tokens is shorter "
                        f"than the window of {WINDOW} that figures here are measured in")
    shards = None if options.input else ShardSet.open(options.data) if options.data else shards_of_run(options.checkpoint)
    kind = shards.kind if shards else find_source(options.source).kind
    counts: dict[str, int] = {}
    if kind == "documents":
        name, result = _score_texts(options, shards, loaded.model, loaded.tokenizer)
        how = f"windows of {WINDOW}"
    else:
        name, result, counts = _score_answers(options, shards, loaded)
        how = f"answers only, rows of {min(ROW, loaded.model.context)}"
    if not result.tokens:
        why = "fewer than two tokens" if kind == "documents" else "no record whose answer fits a row"
        raise UserError(f"{name}: {why}, nothing to score; name other text with --data DIR or --source NAME --input FILE")
    measures = result.measures()
    print(f"{options.checkpoint} on {name}: {result.tokens:,} tokens, {result.characters:,} characters, {how}")
    print(f"loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.3f}  accuracy {measures['accuracy']:.2%}  "
          f"bits/character {measures['bits_per_character']:.4f}")
    if options.json:
        facts = {**loaded.facts, "text": name, "measured": how, "characters": result.characters}
        write_json(options.json, {**facts, **counts, **measures, "made": describe(device)})


def _score_texts(
    options: argparse.Namespace, shards: ShardSet | None, model: Llama, tokenizer: Tokenizer
) -> tuple[str, Score]:
    if options.limit == 1:
        raise UserError("--limit 1: at least 2 tokens of text are needed to score one")
    records = Records(options.source, options.input, ("documents",)) if shards is None else None
    name, total, stream = _texts(options, shards, records, tokenizer)
    result = Score(0.0, 0, 0, 0)
    with progress("scoring", total, "tokens") as bar:
        for block in _blocks(stream, options.limit):
            result += score_stream(model, block, tokenizer.characters_per_id, on_progress=bar.update)
    if records:
        records.print_left_out()
    return name, result


def _score_answers(
    options: argparse.Namespace, shards: ShardSet | None, loaded: Measured
) -> tuple[str, Score, dict[str, int]]:
    """The answers of a set's split, or of native files, of the first `--limit` records.

    And the counts that are printed: `records` that were scored, `left_out` because no answer fits, `cut` to the row.
    """
    model, tokenizer, template = loaded.model, loaded.tokenizer, Template.load(loaded.folder)
    length, source = min(ROW, model.context), find_source(options.source) if options.input else None
    sequences: Sequences | HeldSequences
    if source:
        name, kind = " ".join(options.input), source.kind
        records = read_records(options.source, options.input, (kind,), options.limit)
        sequences = encode_records(records, tokenizer, template)
    else:
        assert shards is not None
        if shards.tokenizer().fingerprint != tokenizer.fingerprint:
            raise UserError(f"{shards.folder} was prepared with another tokenizer than {options.checkpoint} has: score the "
                            "native files with --source NAME --input FILE")
        name, kind, split = f"{shards.folder} {options.split}", shards.kind, shards.split(options.split)
        sequences = _first(split, options.limit) if options.limit else split
    examples = examples_of(kind, sequences, length, tokenizer, template, Phrasings(None, template.lead_ins))
    fits = examples.lengths(0) > 0
    with progress("scoring", int(fits.sum()), "examples") as bar:
        result = score_examples(model, examples, length, tokenizer.characters_per_id, on_progress=bar.update)
    counts = {"records": int(fits.sum()), "left_out": int((~fits).sum()), "cut": examples.cut}
    print(f"{counts['records']:,} records scored, {counts['left_out']:,} left out (no answer fits a row of {length} tokens), "
          f"{counts['cut']:,} cut to the row")
    return name, result, counts


def _first(split: Sequences, count: int) -> HeldSequences:
    """The first `count` records of a split."""
    return HeldSequences([(split.tokens(index).tolist(), split.spans(index).tolist())
                          for index in range(min(count, len(split)))])


def _texts(
    options: argparse.Namespace, shards: ShardSet | None, records: Records | None, tokenizer: Tokenizer
) -> tuple[str, int | None, Iterator[np.ndarray]]:
    """What is scored, in words; its tokens if they are known; and the ids in pieces."""
    if records is not None:
        pieces = (_ids(record.text, tokenizer) for record in records if isinstance(record, Document))
        return " ".join(options.input), options.limit, pieces
    assert shards is not None
    split = shards.split(options.split)
    if shards.tokenizer().fingerprint == tokenizer.fingerprint:
        pieces = (split.stream(start, start + BLOCK) for start in range(0, split.total_tokens, BLOCK))
        return f"{shards.folder} {options.split}", min(split.total_tokens, options.limit or split.total_tokens), pieces
    # Another tokenizer's ids: back to text and through the checkpoint's own.
    theirs = shards.tokenizer()
    texts = (theirs.decode(split.tokens(index).tolist()) for index in range(len(split)))
    return f"{shards.folder} {options.split} (encoded anew)", None, (_ids(text, tokenizer) for text in texts)


def _ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.document_end_id], dtype=np.int64)


def _blocks(pieces: Iterator[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """Pieces of any size → blocks of BLOCK + 1 ids that overlap by one, so that windows lie as in one long stream."""
    pending: list[np.ndarray] = []
    held, left = 0, limit if limit is not None else None
    for piece in pieces:
        piece = piece if left is None else piece[:left]
        left = None if left is None else left - len(piece)
        pending.append(piece)
        held += len(piece)
        while held > BLOCK:
            joined = np.concatenate(pending)
            yield joined[: BLOCK + 1]
            pending, held = [joined[BLOCK:]], held - BLOCK
        if left == 0:
            break
    rest: Any = np.concatenate(pending) if pending else np.zeros(0, np.int64)
    if len(rest) > 1:
        yield rest


if __name__ == "__main__":
    run_main(main)

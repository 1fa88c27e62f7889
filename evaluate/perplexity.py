"""`python -m evaluate.perplexity`: loss, perplexity, accuracy and bits per character of a checkpoint on any text."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import describe, resolve_device
from common.options import Parser, out_file
from common.progress import progress
from data.examples import Phrasings, encode_records, examples_of
from data.reading import expand
from data.records import Document
from data.shards import SPLITS, HeldSequences, Sequences, ShardSet, shards_of_run
from data.sources import find_source
from evaluate.answers import read_records
from evaluate.command_line import add_quantize, load
from evaluate.metrics import BLOCK, WINDOW, Score, score_examples, score_stream
from model import checkpoints
from model.llama import Llama
from model.template import Template
from model.tokenizer import Tokenizer

# Longest conversation whose answers are scored.
ROW = 1024
DESCRIPTION = f"""Measure a checkpoint on text.

The text is either a split of a prepared shard set (--data DIR --split validation) or native files of a source
(--source jsonl --input FILE…), encoded with the checkpoint's own tokenizer. Documents are `<bos> text <eos>`, written
one after another and cut into windows of {WINDOW} tokens; every token but the first is scored once, with what precedes
it in its window as context. Of conversations and summaries only the answers are scored, each with the whole
conversation before it as context (cut at a turn where it is longer than {ROW} tokens).

Loss and perplexity are per token and compare only models with the same tokenizer; bits per character compares all."""


def main() -> None:
    """Entry point."""
    parser = Parser(prog="python -m evaluate.perplexity", description=DESCRIPTION,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, one of its steps, or an exported folder")
    parser.add_argument("--data", type=Path, help="a prepared shard set (default: the one the run was trained on)")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="split of the shard set")
    parser.add_argument("--source", help="source of --input, such as jsonl, text, wikipedia")
    parser.add_argument("--input", nargs="+", help="native files, folders or globs")
    parser.add_argument("--limit", type=int, help="score only about so many tokens (of conversations and summaries: records)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_quantize(parser)
    parser.add_argument("--json", type=out_file, help="write the figures here too")
    options = parser.parse_args()
    if bool(options.source) != bool(options.input):
        raise UserError("--source and --input belong together: --source jsonl --input FILE")
    if options.limit is not None and options.limit < 2:
        raise UserError(f"--limit {options.limit}: at least 2 tokens are needed to score one")
    device = resolve_device(options.device)
    model, tokenizer = load(options, device)
    if model.config.max_position_embeddings < WINDOW:
        raise UserError(f"{options.checkpoint}: its context of {model.config.max_position_embeddings} tokens is shorter than "
                        f"the window of {WINDOW} that figures here are measured in")
    shards = None if options.input else ShardSet.open(options.data) if options.data else shards_of_run(options.checkpoint)
    kind = shards.kind if shards else find_source(options.source).kind
    if kind == "documents":
        name, result = _score_texts(options, shards, model, tokenizer)
        how = f"windows of {WINDOW}"
    else:
        name, result = _score_answers(options, shards, model, tokenizer)
        how = f"answers only, rows of {min(ROW, model.context)}"
    if not result.tokens:
        why = "fewer than two tokens" if kind == "documents" else "no record whose answer fits a row"
        raise UserError(f"{name}: {why}, nothing to score; name other text with --data DIR or --source NAME --input FILE")
    measures = result.measures()
    print(f"{options.checkpoint} on {name}: {result.tokens:,} tokens, {result.characters:,} characters, {how}")
    print(f"loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.3f}  accuracy {measures['accuracy']:.2%}  "
          f"bits/character {measures['bits_per_character']:.4f}")
    if options.json:
        facts = {"checkpoint": str(options.checkpoint), "text": name, "measured": how, "characters": result.characters}
        write_json(options.json, {**facts, **measures, "made": describe(device)})


def _score_texts(
    options: argparse.Namespace, shards: ShardSet | None, model: Llama, tokenizer: Tokenizer
) -> tuple[str, Score]:
    name, total, stream = _texts(options, shards, tokenizer)
    result = Score(0.0, 0, 0, 0)
    with progress("scoring", total, "tokens") as bar:
        for block in _blocks(stream, options.limit):
            result += score_stream(model, block, tokenizer.characters_per_id, on_progress=bar.update)
    return name, result


def _score_answers(
    options: argparse.Namespace, shards: ShardSet | None, model: Llama, tokenizer: Tokenizer
) -> tuple[str, Score]:
    """The answers of a set's split, or of native files; `--limit` counts records."""
    template = Template.load(checkpoints.find(options.checkpoint))
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
        name, kind, sequences = f"{shards.folder} {options.split}", shards.kind, shards.split(options.split)
    examples = examples_of(kind, sequences, length, tokenizer, template, Phrasings(None, template.lead_ins))
    fitting = int((examples.lengths(0) > 0).sum())
    with progress("scoring", min(fitting, options.limit or fitting), "examples") as bar:
        return name, score_examples(
            model, examples, length, tokenizer.characters_per_id, limit=options.limit, on_progress=bar.update)


def _texts(
    options: argparse.Namespace, shards: ShardSet | None, tokenizer: Tokenizer
) -> tuple[str, int | None, Iterator[np.ndarray]]:
    """What is scored, in words; its tokens if they are known; and the ids in pieces."""
    if shards is None:
        return " ".join(options.input), options.limit, _encode(options.source, options.input, tokenizer)
    split = shards.split(options.split)
    if shards.tokenizer().fingerprint == tokenizer.fingerprint:
        pieces = (split.stream(start, start + BLOCK) for start in range(0, split.total_tokens, BLOCK))
        return f"{shards.folder} {options.split}", min(split.total_tokens, options.limit or split.total_tokens), pieces
    # Another tokenizer's ids: back to text and through the checkpoint's own.
    theirs = shards.tokenizer()
    texts = (theirs.decode(split.tokens(index).tolist()) for index in range(len(split)))
    return f"{shards.folder} {options.split} (encoded anew)", None, (_ids(text, tokenizer) for text in texts)


def _encode(source: str, inputs: list[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    bad = 0
    reader = find_source(source)
    for path in expand(inputs):
        for record in reader.open(path):
            if isinstance(record, Document):
                yield _ids(record.text, tokenizer)
            else:
                bad += 1
    if bad:
        print(f"{bad} unreadable records left out")


def _ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], dtype=np.int64)


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

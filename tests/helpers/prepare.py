"""Prepare the files of a single source, and read shard sets back."""

from pathlib import Path
from typing import Any

from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import load_template


def prepare_source(
    source: str, inputs: list[str], out: Path, tokenizer: Path, options: PrepareOptions
) -> dict[str, Any]:
    """Prepare the inputs of one source as the shard set `out`, and return the report."""
    return prepare_groups([SourceGroup(source, tuple(inputs))], out, tokenizer, options)


def encode_split(folder: Path, split: str) -> list[list[int]]:
    """Return the ids of each record of a split, in the set's own tokenizer and chat template."""
    shards = ShardSet.open(folder, checksums=True)
    if shards.kind.is_text:
        sequences = shards.load_text(split)
        return [sequences.tokens(index).tolist() for index in range(len(sequences))]
    records = shards.load_records(split)
    tokenizer, template = shards.load_tokenizer(), load_template(folder)
    return [
        shards.kind.encode_one(tokenizer, template, records, index)[0]
        for index in range(len(records))
    ]

"""Prepare the files of a single source."""

from pathlib import Path
from typing import Any

from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup


def prepare_source(
    source: str, inputs: list[str], out: Path, tokenizer: Path, options: PrepareOptions
) -> dict[str, Any]:
    """Prepare the inputs of one source as the shard set `out`, and return the report."""
    return prepare_groups([SourceGroup(source, tuple(inputs))], out, tokenizer, options)

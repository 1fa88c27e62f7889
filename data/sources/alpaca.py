"""Alpaca (Taori et al. 2023): a JSON list, or JSONL, of an instruction, its input and the output."""

from data.sources.base import Source
from data.sources.instruction_rows import parse_alpaca

SOURCE = Source(
    name="alpaca",
    description="Alpaca: a JSON list or JSONL of instruction, input, output",
    parse=parse_alpaca,
    kind="conversations",
)

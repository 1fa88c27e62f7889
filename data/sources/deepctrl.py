"""deepctrl-sft-data: JSONL of an instruction, its input and the output, after a history of turns."""

from data.sources.base import Source
from data.sources.instruction_rows import parse_alpaca

SOURCE = Source(
    name="deepctrl",
    description="deepctrl-sft-data: JSONL of instruction, input, output, history",
    parse=parse_alpaca,
    kind="conversations",
)

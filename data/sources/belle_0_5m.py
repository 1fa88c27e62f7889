"""Belle 0.5M: JSONL of an instruction, its input and the output."""

from data.sources.base import HubDataset, Source
from data.sources.instruction_rows import parse_alpaca

SOURCE = Source(
    name="belle-0.5m",
    description="Belle 0.5M: JSONL of instruction, input, output (copies: input, target)",
    parse=parse_alpaca,
    kind="conversations",
    hub=HubDataset("BelleGroup/train_0.5M_CN", "default"),
)

"""The datasets this project reads, by name."""

from common.errors import UserError
from data.sources import (
    alpaca,
    belle_0_5m,
    belle_0_8m,
    csl,
    deepctrl,
    jsonl,
    lcsts,
    mnbvc,
    mnbvc_qa,
    naturalconv,
    openai_messages,
    pclue,
    redgpt,
    sharegpt,
    text,
    wiki_zh_2019,
    wikipedia,
)
from data.sources.base import Source

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        wikipedia.SOURCE,
        wiki_zh_2019.SOURCE,
        mnbvc.SOURCE,
        mnbvc_qa.SOURCE,
        jsonl.SOURCE,
        text.SOURCE,
        redgpt.SOURCE,
        naturalconv.SOURCE,
        belle_0_5m.SOURCE,
        belle_0_8m.SOURCE,
        deepctrl.SOURCE,
        pclue.SOURCE,
        alpaca.SOURCE,
        sharegpt.SOURCE,
        openai_messages.SOURCE,
        csl.SOURCE,
        lcsts.SOURCE,
    )
}


def find_source(name: str) -> Source:
    """A source by its name; `jsonl:FIELD` reads another field than `text`. UserError for a name there is not."""
    if name in SOURCES:
        return SOURCES[name]
    base, _, field = name.partition(":")
    if base == "jsonl" and field:
        return jsonl.jsonl_source(field)
    raise UserError(
        f"--source {name}: there is no such source; there are {', '.join(SOURCES)} (and jsonl:FIELD)"
    )

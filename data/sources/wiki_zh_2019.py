"""wiki_zh_2019: folders AA, AB … of files wiki_00, wiki_01 …, JSONL of id, url, title, text.

The rows are those of `data.sources.wikipedia`, with the title repeated as the text's first line and paragraphs parted
by blank lines.
"""

from data.sources.base import Source
from data.sources.wikipedia import parse_wikipedia

SOURCE = Source(
    name="wiki_zh_2019",
    description="wiki_zh_2019: the folder of AA/wiki_00 … files, JSONL of title and text",
    parse=parse_wikipedia,
)

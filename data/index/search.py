"""`python -m data.index.search`: show the passages of an index that a question finds."""

import sys
from pathlib import Path

from pydantic import Field

from common.errors import run_main
from common.options import CliPositionalArg, Options, OutputFile, parse_options

DESCRIPTION = """Show the passages of an index that a question or some words find, the best first.

Each with its score (BM25, which compares passages for one question, not questions), its title if
there is one, where it is from, and the part of it that has most of the question.

  python -m data.index.search indexed/sample 织云镇建于哪一年？"""


class SearchOptions(Options):
    """What is searched for, and where."""

    index: CliPositionalArg[Path] = Field(description="an index of python -m data.index")
    query: CliPositionalArg[tuple[str, ...]] = Field(
        min_length=1, description="the question, or words"
    )
    count: int = Field(5, ge=1, le=1000, description="how many passages")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the passages, whole, to this file"
    )


def main() -> None:
    """Search with the options of the command line."""
    options = parse_options(
        SearchOptions, sys.argv[1:], name="data.index.search", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading NumPy.
    import dataclasses

    from common.files import write_json
    from data.index.excerpt import find_excerpt
    from data.index.passage_index import PassageIndex

    index = PassageIndex.open(options.index)
    query = " ".join(options.query)
    hits = index.search(query, options.count)
    for rank, hit in enumerate(hits, 1):
        title = f"  {hit.title}" if hit.title else ""
        print(f"{rank}.  {hit.score:.2f}{title}  [{hit.source}]")
        print(f"    {find_excerpt(hit.text, query)}")
    print(f"{len(hits):,} of {len(index):,} passages")
    if options.json_file is not None:
        result = {
            "index": str(options.index),
            "fingerprint": index.fingerprint,
            "query": query,
            "passages": [dataclasses.asdict(hit) for hit in hits],
        }
        write_json(options.json_file, result)


if __name__ == "__main__":
    run_main(main)

"""`make data DATA=…`: download a corpus by name, verify it, and prepare it.

    python -m data.download                  lists the names
    python -m data.download wikipedia        downloads/wikipedia/… → prepared/wikipedia-<tokenizer>
    python -m data.download tokenizer        the 65k tokenizer alone
    python -m data.download sample           prepares the shipped sample; needs no network

A broken download is continued by running the same command again. `HF_ENDPOINT=https://…` puts another copy of the
Hugging Face hub first. A file that was fetched by hand and put at its place is verified and used.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from common.archive import extract_zip
from common.download import NotDownloaded, download
from common.errors import UserError, run_main
from common.options import Parser
from data.corpora.manifests import TOKENIZER, Corpus, corpora, unknown
from data.prepare.pipeline import describe_report
from data.readers.files import expand
from data.shards import ShardSet


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; UserError for every mistake."""
    parser = Parser(prog="python -m data.download", description="Download a corpus by name, verify it, prepare it.")
    parser.add_argument("name", nargs="?", help="what to download; without it the names are listed")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece model to prepare with (default: the 65k one, "
                        "downloaded first; the sample: the small one that comes with the project)")
    parser.add_argument("--parts", default="", help="comma-separated parts of a corpus that has some")
    options = parser.parse_args(arguments)
    known = corpora()
    parts = tuple(part for part in options.parts.split(",") if part)
    if options.name is None:
        print(listing(known))
    elif options.name == resolver.SAMPLE:
        _report(resolver.resolve(resolver.SAMPLE, options.tokenizer))
    elif options.name not in known:
        raise unknown(options.name)
    elif options.name == TOKENIZER:
        print(fetch(TOKENIZER, known[TOKENIZER], parts)[0])
    else:
        _make(options.name, known[options.name], parts, options.tokenizer)


def listing(known: dict[str, Corpus]) -> str:
    """The names with what they are, the size of the download and the licence."""
    rows = [("sample", "shipped with the project", "every format in small, nothing to download", "see assets/sample")]
    rows += [(name, _size(corpus.megabytes), corpus.description, corpus.licence) for name, corpus in known.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    return "\n".join([*lines, "", "make data DATA=NAME downloads and prepares one of these."])


def fetch(name: str, corpus: Corpus, parts: tuple[str, ...] = ()) -> list[Path]:
    """Download and verify the files of a corpus; the paths that its source reads, archives unpacked."""
    folder = resolver.DOWNLOADS / name
    found = []
    for file in corpus.chosen(parts):
        path = download(corpus.urls(file), folder / file.path, size=file.size, sha256=file.sha256)
        if file.unpack:
            unpacked = extract_zip(path, path.with_suffix(""))
            found += expand([str(unpacked / file.unpack)])
        else:
            found.append(path)
    return found


def _make(name: str, corpus: Corpus, parts: tuple[str, ...], tokenizer: Path | None) -> None:
    assert corpus.source is not None
    if tokenizer is not None and not tokenizer.exists():
        raise UserError(f"--tokenizer {tokenizer}: no such file or folder")
    print(f"{name}: {corpus.description}; {_size(corpus.megabytes)}; licence: {corpus.licence}", flush=True)
    missing = "the tokenizer that it is prepared with"
    try:
        # First, because it is small: whoever has no network learns it before anything else.
        tokenizer = tokenizer or fetch(TOKENIZER, corpora()[TOKENIZER])[0]
        missing = "what it consists of"
        fetch(name, corpus, parts)
    except NotDownloaded as error:
        train = "sft" if corpus.source in resolver.SAMPLE_TUNING else "pretrain"
        raise UserError(f"{name} (from {corpus.homepage}) is not here, for {missing} did not come; without it, make {train} "
                        f"DATA={name} trains on the part of the shipped sample that stands in for it: {error}") from None
    _report(resolver.prepare_once(name, {corpus.source: resolver.downloads(name, corpus, parts)}, tokenizer))


def _report(folder: Path) -> None:
    print(describe_report(ShardSet.open(folder).manifest["report"], folder))


def _size(megabytes: int) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))

"""`python -m data.index`: make passages searchable without a network."""

import sys

from common.errors import UserError, run_main
from common.options import parse_options
from data.index.options import IndexCommandOptions, IndexOptions
from data.prepare.source_args import parse_source_groups
from data.readers.files import print_files_about_data
from data.sources import SOURCES

DESCRIPTION = """Build an index of passages, in which a question finds the passage that answers it.

Documents are divided into passages at the ends of sentences. Of conversations about a passage that
passage is indexed, of others questions and answers; of summaries the article. The search is BM25
over single Chinese characters, pairs of them, and other words as wholes: no dictionary is needed,
and case, width and traditional characters do not matter.

  python -m data.index --data NAME          what make data DATA=NAME downloaded -> indexed/NAME
  python -m data.index --data FILE|FOLDER   files whose format is recognized
  python -m data.index                      of the sample, its encyclopedias and the passages of
                                            its test conversations -> indexed/sample

Files can be named with their formats instead:

  --source NAME    format of the inputs after it; repeat it, each with its own --input, to combine
                   corpora. The sources:
{sources}
  --input FILE...  files (plain, gzip, parquet), folders or globs; hub or hub:CONFIG to stream the
                   data set, hub-download or hub-download:CONFIG to download it first (into HF_HOME)

  python -m data.index --source wikipedia --input wiki/*.parquet --out indexed/wiki

The same command with other files adds them; files and documents that are in the index already are
left out. After an interruption the same command resumes. To search:

  python -m data.index.search indexed/NAME QUESTION"""


def main() -> None:
    """Run the command."""
    arguments = sys.argv[1:]
    # --help is answered even if the groups beside it are incomplete.
    has_help_flag = not {"-h", "--help"}.isdisjoint(arguments)
    groups, remaining = ([], ["--help"]) if has_help_flag else parse_source_groups(arguments)
    sources = "\n".join(f"    {name:13} {source.description}" for name, source in SOURCES.items())
    options = parse_options(
        IndexCommandOptions,
        remaining,
        name="data.index",
        description=DESCRIPTION.format(sources=sources),
    )
    if groups and options.data is not None:
        raise UserError("--data NAME and --source NAME --input FILE... exclude each other")
    if groups and options.out is None:
        raise UserError("--out: is required with --source")
    if any(group.dev for group in groups):
        raise UserError("--dev: an index has no validation split; name the files after --input")
    # Imported here so that --help and invalid options answer without loading NumPy.
    from data.index.build import build_index, format_report
    from data.index.named_text import find_named_text

    out = options.out
    if not groups:
        default_out, groups = find_named_text(options.data or "sample")
        out = out or default_out
    assert out is not None
    report = build_index(
        groups, IndexOptions(out=out, characters=options.characters, overlap=options.overlap)
    )
    for group in groups:
        print_files_about_data(group.file_inputs())
    print(format_report(report, out))


if __name__ == "__main__":
    run_main(main)

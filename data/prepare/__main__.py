"""`python -m data.prepare`: prepare raw corpora as a shard set."""

import sys

from common.errors import UserError, run_main
from common.options import parse_options
from data.prepare.options import PrepareCommandOptions
from data.prepare.source_args import parse_source_groups
from data.readers.files import print_files_about_data
from data.sources import SOURCES

DESCRIPTION = """Clean, deduplicate and encode raw corpora into a shard set that training reads.

Conversations and summaries are not cleaned, and only their exact repetitions are dropped.

  --source NAME    format of the inputs after it; repeat it, each with its own --input, to combine
                   corpora. The sources:
{sources}
  --input FILE...  files (plain, gzip, parquet), folders or globs; hub or hub:CONFIG to stream the
                   data set, hub-download or hub-download:CONFIG to download it first (into HF_HOME)
  --dev FILE...    the dev split of the release, if it has one: it becomes the validation split

  python -m data.prepare --source mnbvc --input news/*.jsonl.gz --source wikipedia --input hub \\
      --tokenizer tokenizer.model --out data/prepared/mix

After an interruption the same command resumes."""


def main() -> None:
    """Run the command."""
    arguments = sys.argv[1:]
    # --help is answered even if the groups beside it are incomplete.
    has_help_flag = not {"-h", "--help"}.isdisjoint(arguments)
    groups, remaining = ([], ["--help"]) if has_help_flag else parse_source_groups(arguments)
    sources = "\n".join(f"    {name:13} {source.description}" for name, source in SOURCES.items())
    options = parse_options(
        PrepareCommandOptions,
        remaining,
        name="data.prepare",
        description=DESCRIPTION.format(sources=sources),
        has_config_file=True,
    )
    if not groups:
        raise UserError("--source NAME --input FILE... is needed: see --help")
    # Imported here so that --help and invalid options answer without loading NumPy.
    from data.lengths.sets import print_recommendation
    from data.prepare.pipeline import format_report, prepare_groups

    report = prepare_groups(groups, options.out, options.tokenizer, options)
    for group in groups:
        print_files_about_data(group.file_inputs())
    print(format_report(report, options.out))
    print_recommendation(options.out)


if __name__ == "__main__":
    run_main(main)

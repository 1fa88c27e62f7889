"""`python -m data.prepare`: raw corpora → a shard set."""

import sys
from pathlib import Path

from pydantic import Field

from common.errors import UserError, run_main
from common.options import parse_options
from data.prepare.pipeline import PrepareOptions, format_report, prepare_groups
from data.prepare.source_args import parse_source_groups
from data.sources import SOURCES


class PrepareCommand(PrepareOptions):
    """The command line, apart from --source and --input."""

    tokenizer: Path = Field(description="a SentencePiece model, or a folder with a tokenizer.model")
    out: Path = Field(description="the shard set to make; a folder that is not there yet")


def help_description() -> str:
    """What the command does and which sources there are."""
    sources = "\n".join(f"    {name:13} {source.description}" for name, source in SOURCES.items())
    return (
        "Cleans, deduplicates and encodes raw corpora into a shard set that training reads. Conversations and summaries\n"
        "are not cleaned, and only exact repetitions are dropped.\n\n"
        "  --source NAME  what the inputs after it are; may be repeated, each with its own --input, to mix corpora:\n"
        f"{sources}\n"
        "  --input FILE…  files (plain, gzip, parquet), folders or globs; or hub, hub:CONFIG to stream the dataset,\n"
        "                 hub-download, hub-download:CONFIG to fetch it whole first (into HF_HOME)\n"
        "  --dev FILE…    the release's own dev split, if it has one: it becomes the validation split\n\n"
        "  python -m data.prepare --source mnbvc --input news/*.jsonl.gz --source wikipedia --input hub \\\n"
        "      --tokenizer tokenizer.model --out data/prepared/mix\n\n"
        "Interrupted, it goes on when the same command is run again."
    )


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    wants_help = not {"-h", "--help"}.isdisjoint(arguments)
    groups, rest = ([], ["--help"]) if wants_help else parse_source_groups(arguments)
    options = parse_options(
        PrepareCommand,
        rest,
        name="data.prepare",
        description=help_description(),
        has_config_file=True,
    )
    if not groups:
        raise UserError("--source NAME --input FILE… is needed: see --help")
    print(
        format_report(prepare_groups(groups, options.out, options.tokenizer, options), options.out)
    )


if __name__ == "__main__":
    run_main(main)

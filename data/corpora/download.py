"""Download a corpus by name, verify it, and prepare it."""

from collections.abc import Sequence
from pathlib import Path

from common.archive import extract_zip
from common.download import DownloadError, download
from common.errors import UserError
from data.corpora import resolver
from data.corpora.manifests import TOKENIZER_NAME, Corpus, load_corpora, unknown_corpus_error
from data.corpora.sample import SAMPLE_NAME, SAMPLE_SFT_FILES
from data.lengths.sets import print_recommendation
from data.prepare.pipeline import format_report
from data.readers.files import expand_inputs
from data.shards import ShardSet


def run_download(name: str | None, parts: Sequence[str], tokenizer: Path | None) -> None:
    """Download and prepare the corpus `name`; print the names if it is None."""
    corpora_by_name = load_corpora()
    if name is None:
        print(format_listing(corpora_by_name))
    elif name == SAMPLE_NAME:
        _print_report(resolver.resolve_shard_set(SAMPLE_NAME, tokenizer))
    elif name not in corpora_by_name:
        raise unknown_corpus_error(name)
    elif name == TOKENIZER_NAME:
        print(download_corpus(TOKENIZER_NAME, corpora_by_name[TOKENIZER_NAME], tuple(parts))[0])
    else:
        _download_and_prepare(name, corpora_by_name[name], tuple(parts), tokenizer)


def format_listing(corpora_by_name: dict[str, Corpus]) -> str:
    """Return a table of the names with download size, description and license."""
    sample_description = "a small part in every format, nothing to download"
    rows = [(SAMPLE_NAME, "shipped with the project", sample_description, "see assets/sample")]
    rows += [
        (name, _format_size(corpus.megabytes), corpus.description, corpus.license)
        for name, corpus in corpora_by_name.items()
    ]
    # The last column is not padded.
    widths = [max(len(row[column]) for row in rows) for column in range(3)] + [0]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([*lines, "", "make data DATA=NAME downloads and prepares one of these."])


def download_corpus(name: str, corpus: Corpus, parts: tuple[str, ...] = ()) -> list[Path]:
    """Download, verify and unpack the files of a corpus.

    Return the paths of the files to prepare: the downloads, or those within an unpacked .zip.
    Without `parts` the default parts are downloaded. Raises DownloadError if that fails, UserError
    for an unknown part.
    """
    folder = resolver.DOWNLOADS_FOLDER / name
    paths = []
    for file in corpus.select_files(parts):
        path = download(corpus.urls(file), folder / file.path, size=file.size, sha256=file.sha256)
        if file.unpack is None:
            paths.append(path)
        else:
            # `unpack` is a glob pattern for the files of the corpus within the archive.
            unpacked_folder = extract_zip(path, path.with_suffix(""))
            paths += expand_inputs([str(unpacked_folder / file.unpack)])
    return paths


def _download_and_prepare(
    name: str, corpus: Corpus, parts: tuple[str, ...], tokenizer: Path | None
) -> None:
    """Download a corpus, and the 65k tokenizer if none is given, prepare it and print its report.

    Raises UserError, with what can be done without it, if a download fails.
    """
    # Only the manifest of the tokenizer has no source.
    assert corpus.source is not None
    if tokenizer is not None and not tokenizer.exists():
        raise UserError(f"--tokenizer {tokenizer}: no such file or folder")
    size = _format_size(corpus.megabytes)
    print(f"{name}: {corpus.description}; {size}; license: {corpus.license}", flush=True)
    # What is being downloaded, for the error message.
    current_download = "the tokenizer"
    try:
        # The tokenizer first: it is small, so that a missing network is reported at once.
        if tokenizer is None:
            (tokenizer,) = download_corpus(TOKENIZER_NAME, load_corpora()[TOKENIZER_NAME])
        current_download = "the corpus"
        download_corpus(name, corpus, parts)
    except DownloadError as error:
        target = "sft" if corpus.source in SAMPLE_SFT_FILES else "pretrain"
        raise UserError(
            f"{name} (from {corpus.homepage}) is not here: {current_download} could not be "
            f"downloaded ({error}); until it is, make {target} DATA={name} trains on the part of "
            "the shipped sample in its format"
        ) from None
    files = resolver.download_paths(name, corpus, parts)
    _print_report(resolver.prepare_if_outdated(name, {corpus.source: files}, tokenizer, parts))


def _print_report(folder: Path) -> None:
    """Print the report of a shard set, and the row length that suits it.

    The report is without times, which a set that is reused did not take.
    """
    print(format_report(ShardSet.open(folder).manifest["report"], folder))
    print_recommendation(folder)


def _format_size(megabytes: int) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"

"""Download a corpus by name, verify it, and prepare it."""

from collections.abc import Sequence
from pathlib import Path

from common.archive import extract_zip
from common.download import DownloadError, download
from common.errors import UserError
from data.corpora import resolver
from data.corpora.derived import derive_if_outdated
from data.corpora.manifests import TOKENIZER_NAME, Corpus, load_corpora, unknown_corpus_error
from data.corpora.sample import SAMPLE_NAME, SAMPLE_SFT_FILES
from data.derivations import derivation_names
from data.derivations.base import find_derivation
from data.lengths.sets import print_recommendation
from data.prepare.pipeline import format_report
from data.readers.files import expand_inputs
from data.shards import ShardSet


def run_download(name: str | None, parts: Sequence[str], tokenizer: Path | None) -> None:
    """Download and prepare the corpus `name`, or the one that it is derived from.

    Print the names if it is None.
    """
    corpora_by_name = load_corpora()
    if name is None:
        print(format_listing(corpora_by_name))
    elif name == TOKENIZER_NAME:
        print(download_corpus(TOKENIZER_NAME, corpora_by_name[TOKENIZER_NAME], tuple(parts))[0])
    elif derived := resolver.parse_name(name):

        def prepare_source(source: str) -> Path:
            is_known = source == SAMPLE_NAME or source in corpora_by_name
            if not is_known:
                return resolver.resolve_shard_set(source, tokenizer)
            return _prepare(source, tuple(parts), tokenizer)

        _print_report(derive_if_outdated(derived, prepare_source))
    else:
        _print_report(_prepare(name, tuple(parts), tokenizer))


def _prepare(name: str, parts: tuple[str, ...], tokenizer: Path | None) -> Path:
    """Return the shard set of a corpus, downloaded and prepared, or of the sample."""
    if name == SAMPLE_NAME:
        return resolver.resolve_shard_set(SAMPLE_NAME, tokenizer)
    corpora_by_name = load_corpora()
    if name not in corpora_by_name or name == TOKENIZER_NAME:
        raise unknown_corpus_error(name)
    return _download_and_prepare(name, corpora_by_name[name], parts, tokenizer)


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
    derivations = [find_derivation(derivation) for derivation in derivation_names()]
    width = max(len(derivation.usage) for derivation in derivations)
    lines += ["", "Derived from one of these, or from a file or folder of yours:"]
    lines += [f"{derivation.usage:{width}}  {derivation.description}" for derivation in derivations]
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
) -> Path:
    """Download a corpus, and the 65k tokenizer if none is given, and return its shard set.

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
    return resolver.prepare_if_outdated(name, {corpus.source: files}, tokenizer, parts)


def _print_report(folder: Path) -> None:
    """Print the report of a shard set, and the row length that suits it.

    The report is without times, which a set that is reused did not take.
    """
    print(format_report(ShardSet.open(folder).manifest["report"], folder))
    print_recommendation(folder)


def _format_size(megabytes: int) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"

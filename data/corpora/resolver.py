"""Resolve `DATA=…`, a corpus name, a prepared folder or raw files, to a shard set.

Shard sets are prepared in `prepared/NAME-<first 8 digits of the tokenizer's fingerprint>`, so that
one corpus can be prepared with several tokenizers. A set is reused while its inputs, tokenizer,
options and code version are the same (`data.prepare.provenance`), and prepared again otherwise. A
corpus whose downloads were deleted keeps its set, with a warning if another code version prepared
it.
"""

import hashlib
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from common.errors import UserError
from common.files import MANIFEST
from data.corpora.derived import derive_if_outdated
from data.corpora.detect import group_by_source
from data.corpora.manifests import TOKENIZER_NAME, Corpus, load_corpora, unknown_corpus_error
from data.corpora.sample import (
    SAMPLE_NAME,
    SAMPLE_SFT_FILES,
    SMALL_TOKENIZER,
    FilesBySource,
    SplitFiles,
    sample_files,
)
from data.derived_name import DerivedName, parse_derived_name
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.provenance import (
    PREPARE_VERSION,
    match_inputs,
    printable_name,
    read_provenance,
)
from data.prepare.source_args import SourceGroup
from data.readers.files import expand_inputs, print_files_about_data
from data.shards import (
    PREPARED_FOLDER,
    PROVENANCE_FILE,
    SHARD_FORMAT,
    ShardSet,
    read_shard_format,
)
from data.sources import find_source
from model.tokenizer import load_tokenizer

# Below the folder that the command runs in.
DOWNLOADS_FOLDER = Path("downloads")


def resolve_shard_set(name: str, tokenizer: Path | None = None) -> Path:
    """Return the shard-set folder that `name` means, after preparing it if necessary.

    `name` is a corpus name of `make data`, a shard-set folder, a raw file or folder, or derived
    from one of these (`data.derived_name`). A corpus
    that is not prepared is prepared from its downloads with `tokenizer`. Without downloads or
    without a `tokenizer`, it is replaced by the part of the shipped sample in its format, which is
    printed. Without a `tokenizer`, a corpus name means the set that was prepared last, and raw
    files are prepared with the downloaded 65k tokenizer or else the small one. Raises UserError for
    an unknown name.
    """
    derived = parse_name(name)
    if derived is not None:
        return derive_if_outdated(derived, partial(resolve_shard_set, tokenizer=tokenizer))
    corpora = load_corpora()
    if name == SAMPLE_NAME:
        return prepare_if_outdated(SAMPLE_NAME, sample_files(), tokenizer or SMALL_TOKENIZER)
    if name in corpora and corpora[name].source:
        corpus = corpora[name]
        return (
            _find_prepared(name, corpus, tokenizer)
            or _prepare_downloads(name, corpus, tokenizer)
            or _prepare_sample_substitute(name, corpus, tokenizer)
        )
    path = Path(name)
    if path.is_dir() and read_shard_format(path) is not None:
        return _check_shard_set(path, tokenizer)
    if path.exists():
        return _prepare_raw_path(path, tokenizer or default_tokenizer())
    raise unknown_corpus_error(name, detail=", and no such file or folder", data_only=True)


def parse_name(name: str) -> DerivedName | None:
    """Return the parts of a derived name, or None. Raises UserError if it is wrong."""
    try:
        return parse_derived_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _prepare_raw_path(path: Path, tokenizer: Path) -> Path:
    """Return the shard set of a raw file or folder, prepared if necessary."""
    files = expand_inputs([str(path)])
    print_files_about_data([str(path)])
    groups = group_by_source(files)
    if len(groups) > 1:
        counts = [f"{len(group):,} as {source}" for source, group in groups.items()]
        print(f"{path}: of {len(files):,} files, {', '.join(counts)}", flush=True)
    files_by_source = {source: SplitFiles(group) for source, group in groups.items()}
    return prepare_if_outdated(raw_data_name(path), files_by_source, tokenizer)


def raw_data_name(path: Path) -> str:
    """Return the name under which the data of a raw file or folder is kept."""
    # Files of the same name in different folders are different data sets.
    path_digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:6]
    return f"{printable_name(Path(path.resolve().stem))}-{path_digest}"


def corpus_name(folder: Path) -> str:
    """Return the corpus name of a folder in `prepared/`, whose name ends with a fingerprint."""
    return re.sub("-[0-9a-f]{8}$", "", folder.name)


def replaced_corpus_name(folder: Path) -> str | None:
    """Return the corpus that a prepared part of the sample stands in for: csl for `sample-csl`.

    Return None for any other folder.
    """
    name = corpus_name(folder)
    replaced_name = name.removeprefix(f"{SAMPLE_NAME}-")
    is_substitute = replaced_name != name and replaced_name in load_corpora()
    return replaced_name if is_substitute else None


def default_tokenizer() -> Path:
    """Return the downloaded 65k tokenizer, or else the small one shipped with the project."""
    file_name = load_corpora()[TOKENIZER_NAME].files[0].path
    downloaded = DOWNLOADS_FOLDER / TOKENIZER_NAME / file_name
    return downloaded if downloaded.exists() else SMALL_TOKENIZER


def prepare_if_outdated(
    name: str,
    files_by_source: FilesBySource,
    tokenizer: Path,
    parts: tuple[str, ...] = (),
) -> Path:
    """Return the shard set of these files under `name`, prepared again if it is outdated.

    The old set stays in place until the new one is whole. `parts` are the parts of the corpus that
    the files belong to. Raises UserError if `prepared/` has something other than a shard set under
    this name.
    """
    out = _prepared_folder(name, tokenizer)
    prepare_groups(
        _source_groups(files_by_source),
        out,
        tokenizer,
        PrepareOptions(),
        corpus={"name": name, "parts": list(parts)},
        replace_outdated=True,
    )
    return out


def _source_groups(files_by_source: FilesBySource) -> list[SourceGroup]:
    """Return the files as groups of `data.prepare`; test files are not prepared."""
    return [
        SourceGroup(source, tuple(map(str, files.train)), tuple(map(str, files.dev)))
        for source, files in files_by_source.items()
    ]


def _prepared_folder(name: str, tokenizer: Path) -> Path:
    """Return the folder of the shard set of a corpus with a tokenizer, whether it exists or not."""
    return PREPARED_FOLDER / f"{name}-{load_tokenizer(tokenizer).fingerprint[:8]}"


def _find_prepared(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """Return the shard set that is prepared under this name, or None if there is none.

    Without a `tokenizer` the set that was prepared last is returned, whatever its tokenizer.
    """
    if tokenizer is not None:
        candidates = [_prepared_folder(name, tokenizer)]
    else:
        candidates = list(PREPARED_FOLDER.glob(f"{name}-" + "[0-9a-f]" * 8))
    shard_sets = [folder for folder in candidates if read_shard_format(folder) is not None]
    if not shard_sets:
        return None
    # The manifest is written last.
    newest = max(shard_sets, key=lambda folder: (folder / MANIFEST).stat().st_mtime_ns)
    if read_shard_format(newest) != SHARD_FORMAT:
        raise UserError(
            f"{newest} was prepared by another version of this program: to prepare it again, "
            f"make data DATA={name}"
        )
    return _refresh_if_outdated(_check_shard_set(newest, tokenizer), name, corpus)


def _refresh_if_outdated(folder: Path, name: str, corpus: Corpus) -> Path:
    """Return a shard set, prepared again if another code version did it.

    If its downloads are gone or have changed, print a warning and return the set as it is.
    """
    if not (folder / PROVENANCE_FILE).is_file():
        return folder
    provenance = read_provenance(folder)
    # Without a corpus the set was prepared by `data.prepare`, and only that can repeat it.
    if provenance["version"] == PREPARE_VERSION or not provenance["corpus"]:
        return folder
    assert corpus.source is not None
    parts = tuple(provenance["corpus"]["parts"])
    files = download_paths(name, corpus, parts)
    files_by_source = {corpus.source: files}
    is_complete = all(path.exists() for path in files.train + files.dev)
    if not is_complete or not match_inputs(provenance, _source_groups(files_by_source)):
        print(
            f"warning: {folder} was prepared by another version of this program, and the files "
            f"that it was made from are no longer in {DOWNLOADS_FOLDER / name}: to prepare it "
            f"again, make data DATA={name}",
            file=sys.stderr,
        )
        return folder
    print(
        f"{folder} was prepared by another version of this program: preparing it again", flush=True
    )
    # With the tokenizer that the set itself holds.
    return prepare_if_outdated(name, files_by_source, folder, parts)


def _prepare_downloads(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """Return the shard set of a corpus's downloads, prepared with `tokenizer`.

    Return None without a tokenizer, or if a file of the default parts is not downloaded.
    """
    if tokenizer is None or corpus.source is None:
        return None
    files = download_paths(name, corpus)
    if not files.train or not all(path.exists() for path in (*files.train, *files.dev)):
        return None
    return prepare_if_outdated(name, {corpus.source: files}, tokenizer)


def _prepare_sample_substitute(name: str, corpus: Corpus, tokenizer: Path | None) -> Path:
    """Prepare the part of the sample that has the format of a corpus, and return its shard set.

    Print a message that it is used in place of the corpus.
    """
    print(
        f"{name} is not prepared here: using the sample data of the same format instead (for the "
        f"real corpus: make data DATA={name})",
        flush=True,
    )
    # Only the tokenizer has no source, and `resolve_shard_set` does not come here for it.
    assert corpus.source is not None
    files_by_source = sample_files(corpus.source)
    return prepare_if_outdated(
        f"{SAMPLE_NAME}-{name}", files_by_source, tokenizer or SMALL_TOKENIZER
    )


def download_paths(name: str, corpus: Corpus, parts: tuple[str, ...] = ()) -> SplitFiles:
    """Return the paths of the files of a corpus below `DOWNLOADS_FOLDER`, by split.

    Without `parts`, return those of the default parts. The path of a download is returned whether
    or not the file exists. For an archive the paths are those of its files, which are found only
    after it is unpacked.
    """
    # The roles of a manifest's files are the fields of `SplitFiles`.
    paths_by_role: dict[str, list[Path]] = {"train": [], "dev": [], "test": []}
    for file in corpus.select_files(parts):
        path = DOWNLOADS_FOLDER / name / file.path
        paths = [path]
        if file.unpack is not None:
            # An archive NAME.zip is unpacked to the folder NAME beside it. `unpack` is a glob
            # pattern for the files of the corpus in there.
            paths = sorted(path.with_suffix("").glob(file.unpack))
        paths_by_role[file.role] += paths
    return SplitFiles(**paths_by_role)


def find_test_split(shards: ShardSet) -> tuple[str, list[Path]]:
    """Return the source and the native files of the test split that belongs to a prepared set.

    Raises UserError if the set was not prepared by name, if its release has no test split, or if
    the test split holds another kind of records than the set, as for `after_chat(csl,…)`.
    """
    name = ""
    if (shards.folder / PROVENANCE_FILE).is_file():
        name = (read_provenance(shards.folder)["corpus"] or {}).get("name", "")
    source, files = _find_test_files(name)
    if not files or find_source(source).kind != shards.kind.name:
        raise UserError(
            f"{shards.folder} has no test split: name the file to score with --source NAME "
            "--input FILE"
        )
    return source, files


def _find_test_files(name: str) -> tuple[str, list[Path]]:
    """Return the source and the test files of a corpus, no files if it is unknown or has none."""
    # A part of the sample, prepared in place of the corpus, has a test split of its own.
    sample_source = name.removeprefix(f"{SAMPLE_NAME}-")
    if sample_source != name and sample_source in SAMPLE_SFT_FILES:
        return sample_source, sample_files(sample_source)[sample_source].test
    corpus = load_corpora().get(name)
    if corpus is None or corpus.source is None:
        return "", []
    return corpus.source, download_paths(name, corpus).test


def _check_shard_set(folder: Path, tokenizer: Path | None) -> Path:
    """Return the folder of a shard set after checking it.

    Raises UserError if a file is missing, or if the set was prepared with another tokenizer than
    `tokenizer`.
    """
    fingerprint = ShardSet.open(folder).load_tokenizer().fingerprint
    if tokenizer is None:
        return folder
    requested_fingerprint = load_tokenizer(tokenizer).fingerprint
    if requested_fingerprint != fingerprint:
        raise UserError(
            f"{folder} was prepared with another tokenizer ({fingerprint[:8]}) than {tokenizer} "
            f"({requested_fingerprint[:8]}): prepare the raw files with --tokenizer "
            f"{shlex.quote(str(tokenizer))}, "
            "or leave out the --tokenizer or --base that asks for it"
        )
    return folder

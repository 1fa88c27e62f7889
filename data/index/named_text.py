"""Find the text that `--data NAME` means: of a downloaded corpus, the sample, or raw files."""

from pathlib import Path

from common.errors import UserError
from data.corpora.detect import detect_source
from data.corpora.manifests import Corpus, load_corpora, unknown_corpus_error
from data.corpora.resolver import DOWNLOADS_FOLDER, download_paths, raw_data_name
from data.corpora.sample import (
    SAMPLE_NAME,
    SAMPLE_SFT_FILES,
    FilesBySource,
    SplitFiles,
    sample_files,
)
from data.prepare.source_args import SourceGroup
from data.readers.files import expand_inputs
from data.shards import read_shard_format

INDEXES_FOLDER = Path("indexed")
# The encyclopedias of the sample. Its other texts are exercises, and passages that differ only in
# names and numbers: a question finds too many of them.
_SAMPLE_SOURCES = ("wikipedia", "wiki_zh_2019")
_SAMPLE_PASSAGES = "redgpt"
_ADVICE = "python -m data.index --source NAME --input FILE --out DIR"


def find_named_text(name: str) -> tuple[Path, list[SourceGroup]]:
    """Return the folder of the index of `name` by default, and the files to index.

    `name` is a corpus name of `make data`, or a raw file or folder. Files of all splits are
    indexed: passages are for searching. A corpus that is not downloaded is replaced by the part of
    the shipped sample in its format, which is printed. Raises UserError for an unknown name.
    """
    corpora = load_corpora()
    if name == SAMPLE_NAME:
        return INDEXES_FOLDER / name, _sample_groups()
    if name in corpora and (source := corpora[name].source):
        files = _downloaded_files(name, corpora[name])
        if files is not None:
            return INDEXES_FOLDER / name, [_group(source, files)]
        print(
            f"{name} is not downloaded here: using the sample data of the same format instead (for "
            f"the real corpus: make data DATA={name})",
            flush=True,
        )
        folder = INDEXES_FOLDER / f"{SAMPLE_NAME}-{name}"
        return folder, _groups(sample_files(source))
    path = Path(name)
    if path.is_dir() and read_shard_format(path) is not None:
        raise UserError(
            f"--data {name}: is a prepared shard set, which is not searched: give the name of its "
            "corpus, or the files that it was prepared from"
        )
    if path.exists():
        return INDEXES_FOLDER / raw_data_name(path), _raw_groups(path)
    raise unknown_corpus_error(name, detail=", and no such file or folder", data_only=True)


def _sample_groups() -> list[SourceGroup]:
    """Return the encyclopedias of the sample, and the passages of its test conversations."""
    passages = SplitFiles(train=[], test=SAMPLE_SFT_FILES[_SAMPLE_PASSAGES].test)
    files = {source: sample_files(source)[source] for source in _SAMPLE_SOURCES}
    return _groups({_SAMPLE_PASSAGES: passages, **files})


def _downloaded_files(name: str, corpus: Corpus) -> SplitFiles | None:
    """Return the files of a corpus that are downloaded, of any part; None if there are none.

    Print how many files of the default parts are missing.
    """
    parts = tuple(dict.fromkeys(file.part for file in corpus.files if file.part))
    files = download_paths(name, corpus, parts)
    existing = SplitFiles(
        *(
            [path for path in paths if path.exists()]
            for paths in (files.train, files.dev, files.test)
        )
    )
    if not existing.train:
        return None
    num_missing = sum(not path.exists() for path in download_paths(name, corpus).train)
    if num_missing:
        print(
            f"{num_missing:,} files of {name} are not in {DOWNLOADS_FOLDER / name} and are left "
            f"out (to download them: make data DATA={name})",
            flush=True,
        )
    return existing


def _raw_groups(path: Path) -> list[SourceGroup]:
    """Return a raw file, or the files of a folder, by the source that each is read by."""
    files_by_source: FilesBySource = {}
    for file in expand_inputs([str(path)]):
        source = detect_source([file], _ADVICE)
        files_by_source.setdefault(source, SplitFiles(train=[])).train.append(file)
    return _groups(files_by_source)


def _groups(files_by_source: FilesBySource) -> list[SourceGroup]:
    return [_group(source, files) for source, files in files_by_source.items()]


def _group(source: str, files: SplitFiles) -> SourceGroup:
    """Return the files of all splits as inputs."""
    return SourceGroup(source, tuple(map(str, [*files.train, *files.dev, *files.test])))

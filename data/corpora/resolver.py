"""What a `DATA` means: a name, a prepared folder or raw files → one prepared shard set.

Prepared sets lie in `prepared/NAME-<first 8 digits of the tokenizer's fingerprint>`, so that one corpus can be prepared
with several tokenizers. `made-from.json` in each says what it was made from: inputs, tokenizer, options, code. A
preparation is used again while these are the same and made again when they are not. A name whose downloads are no longer
here keeps the preparation that it has, and a warning says that other code made it.
"""

import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.files import MANIFEST, read_json
from data.corpora.manifests import (
    PROJECT_ROOT,
    TOKENIZER_NAME,
    Corpus,
    load_corpora,
    unknown_corpus_error,
)
from data.prepare.pipeline import PrepareOptions, prepare_groups
from data.prepare.provenance import PREPARE_VERSION, match_inputs, read_provenance
from data.readers.detect import detect_source
from data.readers.files import expand_inputs
from data.readers.source_args import SourceGroup
from data.shards import PREPARED_FOLDER, PROVENANCE_FILE, SHARD_FORMAT, ShardSet
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

SAMPLE_NAME = "sample"
SAMPLE_ROOT = PROJECT_ROOT / "assets" / "sample"
SAMPLE_PRETRAIN_FOLDER = SAMPLE_ROOT / "pretrain"
SMALL_TOKENIZER = PROJECT_ROOT / "assets" / "tokenizer"
# Below the folder that the command runs in.
DOWNLOADS_FOLDER = Path("downloads")


@dataclass(frozen=True)
class SplitFiles:
    """The native files of one source: to train on, and what its release holds out."""

    train: list[Path]
    dev: list[Path] = field(default_factory=list)
    test: list[Path] = field(default_factory=list)


# Source name → its native files.
FilesBySource = dict[str, SplitFiles]
# The shipped sample's part of each fine-tuning set, below SAMPLE_ROOT.
SAMPLE_SFT_FILES = {
    name: SplitFiles(*([Path(path)] if path else [] for path in paths))
    for name, paths in {
        "csl": ("summary/csl/train.tsv", "summary/csl/dev.tsv", "summary/csl/test.tsv"),
        "lcsts": (
            "summary/lcsts/PART_I.txt",
            "summary/lcsts/PART_II.txt",
            "summary/lcsts/PART_III.txt",
        ),
        "redgpt": (
            "sft/redgpt/RedGPT-Dataset-V1-CN.json.gz",
            "",
            "sft/redgpt/RedGPT-Dataset-V1-CN.test.json",
        ),
        "naturalconv": (
            "sft/naturalconv/dialog_release.json.gz",
            "",
            "sft/naturalconv/dialog_release.test.json",
        ),
        "belle-0.5m": ("sft/belle/train_0.5M_CN.json.gz", "", "sft/belle/train_0.5M_CN.test.json"),
        "belle-0.8m": (
            "sft/belle/multiturn_chat_0.8M.json.gz",
            "",
            "sft/belle/multiturn_chat_0.8M.test.json",
        ),
        "deepctrl": (
            "sft/deepctrl/sft_data_zh.jsonl.gz",
            "",
            "sft/deepctrl/sft_data_zh.test.jsonl",
        ),
        "pclue": ("sft/pclue/pCLUE_train.json.gz", "", "sft/pclue/pCLUE_train.test.json"),
    }.items()
}


def resolve_shard_set(name: str, tokenizer: Path | None = None) -> Path:
    """The prepared shard-set folder that `name` means; prepares the sample and raw paths on the way.

    `name` is a name of `make data`, a shard-set folder (used as it is) or a raw file or folder. A name that is known
    but not prepared gives the sample's part of that name, and the first line printed says so. `tokenizer` None means,
    for prepared names, whichever was prepared last; for raw paths the downloaded 65k tokenizer, else the small one.
    """
    known = load_corpora()
    path = Path(name)
    if name == SAMPLE_NAME:
        return prepare_if_outdated(SAMPLE_NAME, sample_files(), tokenizer or SMALL_TOKENIZER)
    if name in known and known[name].source:
        return (
            _find_prepared(name, known[name], tokenizer)
            or _prepare_downloads(name, known[name], tokenizer)
            or _prepare_sample_substitute(name, known[name], tokenizer)
        )
    if path.is_dir() and _is_shard_set(path):
        return _check_shard_set(path, tokenizer)
    if path.exists():
        files = expand_inputs([name])
        label = (
            f"{path.resolve().stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]}"
        )
        return prepare_if_outdated(
            label, {detect_source(files): SplitFiles(files)}, tokenizer or default_tokenizer()
        )
    raise unknown_corpus_error(name, " and no such file or folder", data_only=True)


def corpus_name(folder: Path) -> str:
    """The name under which a folder in `prepared/` was prepared: the folder's own, less the digits of the tokenizer."""
    return re.sub("-[0-9a-f]{8}$", "", folder.name)


def replaced_corpus_name(folder: Path) -> str | None:
    """The name of `make data` that a prepared part of the shipped sample stands in for; None of every other folder."""
    name = corpus_name(folder)
    wanted = name.removeprefix(f"{SAMPLE_NAME}-")
    return wanted if wanted != name and wanted in load_corpora() else None


def default_tokenizer() -> Path:
    """The downloaded 65k tokenizer if it is here, else the small one that comes with the project."""
    name = load_corpora()[TOKENIZER_NAME].files[0].path
    downloaded = DOWNLOADS_FOLDER / TOKENIZER_NAME / name
    return downloaded if downloaded.exists() else SMALL_TOKENIZER


def sample_files(source: str | None = None) -> FilesBySource:
    """The files of the shipped sample by source, or only those of one source."""
    if not SAMPLE_PRETRAIN_FOLDER.is_dir():
        raise UserError(
            f"{SAMPLE_PRETRAIN_FOLDER} is missing: it belongs to the project, restore it (git checkout)"
        )
    if source in SAMPLE_SFT_FILES:
        files = SAMPLE_SFT_FILES[source]
        return {
            source: SplitFiles(
                *(
                    [SAMPLE_ROOT / path for path in part]
                    for part in (files.train, files.dev, files.test)
                )
            )
        }
    inputs: FilesBySource = {}
    for path in expand_inputs([str(SAMPLE_PRETRAIN_FOLDER)]):
        inputs.setdefault(detect_source([path]), SplitFiles([])).train.append(path)
    if source is None:
        return inputs
    if source not in inputs:
        raise UserError(f"{SAMPLE_PRETRAIN_FOLDER} has no part for the source {source}")
    return {source: inputs[source]}


def prepare_if_outdated(
    name: str,
    files_by_source: FilesBySource,
    tokenizer: Path,
    parts: tuple[str, ...] = (),
) -> Path:
    """Return the shard set of these files under `name`; prepare it unless it is there and made from the same.

    The old set stays until the new one is whole. `parts` are the parts of the corpus that the files are. Raises UserError
    if `prepared/` has something else under this name.
    """
    out = _prepared_folder(name, load_tokenizer(tokenizer))
    corpus = {"name": name, "parts": list(parts)}
    options = PrepareOptions()
    groups = _source_groups(files_by_source)
    prepare_groups(groups, out, tokenizer, options, corpus=corpus, replace_outdated=True)
    return out


def _source_groups(files_by_source: FilesBySource) -> list[SourceGroup]:
    return [
        SourceGroup(source, tuple(map(str, files.train)), tuple(map(str, files.dev)))
        for source, files in files_by_source.items()
    ]


def _prepared_folder(name: str, tokenizer: Tokenizer) -> Path:
    return PREPARED_FOLDER / f"{name}-{tokenizer.fingerprint[:8]}"


def _find_prepared(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """Return the set prepared under this name with this tokenizer, else the newest one; None if there is none."""
    if tokenizer is not None:
        folders = [_prepared_folder(name, load_tokenizer(tokenizer))]
    else:
        folders = list(PREPARED_FOLDER.glob(f"{name}-" + "[0-9a-f]" * 8))
    folders = [folder for folder in folders if _is_shard_set(folder)]
    if not folders:
        return None
    newest = max(folders, key=lambda folder: (folder / MANIFEST).stat().st_mtime_ns)
    return _refresh_if_outdated(_check_shard_set(newest, tokenizer), name, corpus)


def _refresh_if_outdated(folder: Path, name: str, corpus: Corpus) -> Path:
    """Prepare the set of a name again if another code version did it and its downloads are still the same files."""
    if not (folder / PROVENANCE_FILE).is_file():
        # A folder that the user put there.
        return folder
    provenance = read_provenance(folder)
    if provenance["version"] == PREPARE_VERSION or not provenance["corpus"]:
        return folder
    assert corpus.source is not None
    parts = tuple(provenance["corpus"]["parts"])
    files = download_paths(name, corpus, parts)
    files_by_source = {corpus.source: files}
    is_complete = all(path.exists() for path in files.train + files.dev)
    if not is_complete or not match_inputs(provenance, _source_groups(files_by_source)):
        print(
            f"warning: {folder} was prepared by another version of this program, and the files that it was made from are "
            f"no longer in {DOWNLOADS_FOLDER / name}: to prepare it again, make data DATA={name}",
            file=sys.stderr,
        )
        return folder
    print(f"{folder} was prepared by another version of this program: preparing it again")
    return prepare_if_outdated(name, files_by_source, folder, parts)


def _prepare_downloads(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """Prepare the downloaded files of a name with a tokenizer; None if there is no tokenizer or a file is missing."""
    if tokenizer is None or corpus.source is None:
        return None
    files = download_paths(name, corpus)
    if not files.train or not all(path.exists() for path in files.train):
        return None
    return prepare_if_outdated(name, {corpus.source: files}, tokenizer)


def download_paths(name: str, corpus: Corpus, parts: tuple[str, ...] = ()) -> SplitFiles:
    """Where the files of a corpus lie once they are downloaded (of its default parts, or these), archives unpacked."""
    roles: dict[str, list[Path]] = {"train": [], "dev": [], "test": []}
    for file in corpus.select_files(parts):
        path = DOWNLOADS_FOLDER / name / file.path
        found = sorted(path.with_suffix("").glob(file.unpack)) if file.unpack else [path]
        roles[file.role] += found
    return SplitFiles(**roles)


def find_test_split(shards: ShardSet) -> tuple[str, list[Path]]:
    """The source and the native files of the test split that belongs to a prepared set.

    UserError if the set was not prepared by name, or its release has no test split.
    """
    name = ""
    if (shards.folder / PROVENANCE_FILE).is_file():
        name = (read_provenance(shards.folder)["corpus"] or {}).get("name", "")
    sample_source = name.removeprefix(f"{SAMPLE_NAME}-")
    if sample_source != name and sample_source in SAMPLE_SFT_FILES:
        return sample_source, sample_files(sample_source)[sample_source].test
    corpus = load_corpora().get(name)
    if corpus is not None and corpus.source is not None:
        files = download_paths(name, corpus).test
        if files:
            return corpus.source, files
    raise UserError(
        f"{shards.folder} has no test split: name the file to score with --source NAME --input FILE"
    )


def _prepare_sample_substitute(name: str, corpus: Corpus, tokenizer: Path | None) -> Path:
    print(
        f"{name} is not prepared here: the part of the shipped sample in its format stands in for it "
        f"(the real one: make data DATA={name})",
        flush=True,
    )
    assert corpus.source is not None
    return prepare_if_outdated(
        f"{SAMPLE_NAME}-{name}", sample_files(corpus.source), tokenizer or SMALL_TOKENIZER
    )


def _is_shard_set(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_json(folder / MANIFEST)
    return isinstance(manifest, dict) and manifest.get("format") == SHARD_FORMAT


def _check_shard_set(folder: Path, tokenizer: Path | None) -> Path:
    """A shard-set folder whose files are all there, and of this tokenizer where one is demanded."""
    fingerprint = ShardSet.open(folder).load_tokenizer().fingerprint
    if tokenizer is not None and (wanted := load_tokenizer(tokenizer).fingerprint) != fingerprint:
        raise UserError(
            f"{folder} was prepared with another tokenizer ({fingerprint[:8]}) than {tokenizer} ({wanted[:8]}): "
            f"prepare the raw files with --tokenizer {tokenizer}, or leave out the --tokenizer or --base that asks for it"
        )
    return folder

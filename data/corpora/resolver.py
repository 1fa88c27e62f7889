"""What a `DATA` means: a name, a prepared folder or raw files → one prepared shard set.

Prepared sets lie in `prepared/NAME-<first 8 digits of the tokenizer's fingerprint>`, so that one corpus can be prepared
with several tokenizers. `made-from.json` in each says what it was made from: inputs, tokenizer, options, code. A
preparation is used again while these are the same and made again when they are not. A name whose downloads are no longer
here keeps the preparation that it has, and a warning says that other code made it.
"""

import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import (
    MANIFEST,
    check_manifest,
    fsync,
    read_checksummed_json,
    read_json,
    sha256_file,
    write_checksummed_json,
)
from data.corpora.manifests import (
    PROJECT_ROOT,
    TOKENIZER_NAME,
    Corpus,
    load_corpora,
    unknown_corpus_error,
)
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import PREPARE_VERSION, prepare_groups
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


def prepare_if_outdated(name: str, inputs: FilesBySource, tokenizer: Path) -> Path:
    """The shard set of `inputs` under `name`: the one that is there if it was made from the same, else made now.

    The old one stays until the new one is whole. UserError if something that was not made here has the name.
    """
    loaded_tokenizer = load_tokenizer(tokenizer)
    out, options = _prepared_folder(name, loaded_tokenizer), PrepareOptions()
    if out.exists() and not (out / PROVENANCE_FILE).is_file():
        raise UserError(
            f"{out} was not made by make data or a training run: move it away and run again"
        )
    request = {
        "format": SHARD_FORMAT,
        "tokenizer": loaded_tokenizer.fingerprint,
        "options": options.model_dump(mode="json"),
        "code": PREPARE_VERSION,
    }
    if not _is_up_to_date(out, request, inputs):
        new = out.with_name(f".{out.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        groups = [
            SourceGroup(source, tuple(map(str, files.train)), tuple(map(str, files.dev)))
            for source, files in inputs.items()
        ]
        prepare_groups(groups, new, tokenizer, options)
        file_stamps = {
            source: [_file_stamp(path) for path in files.train + files.dev]
            for source, files in inputs.items()
        }
        write_checksummed_json(
            new / PROVENANCE_FILE, {**request, "name": name, "inputs": file_stamps}
        )
        _swap_folders(out, new)
    return out


def _swap_folders(out: Path, new: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(new, out)
    fsync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _prepared_folder(name: str, tokenizer: Tokenizer) -> Path:
    return PREPARED_FOLDER / f"{name}-{tokenizer.fingerprint[:8]}"


def _is_up_to_date(out: Path, request: dict[str, Any], inputs: FilesBySource) -> bool:
    """Whether `out` is whole and was made by this request from these very files."""
    if not out.exists() or check_manifest(out, verify_checksums=False):
        return False
    try:
        previous_request = read_checksummed_json(
            out / PROVENANCE_FILE, max_bytes=1 << 30
        )  # it lists every file of a corpus, and was written here
    except UserError as error:
        print(f"warning: {error}; preparing {out} again", file=sys.stderr)
        return False
    if any(previous_request.get(key) != value for key, value in request.items()):
        return False
    file_stamps = previous_request["inputs"]
    source_paths = {source: files.train + files.dev for source, files in inputs.items()}
    if [(source, len(file_stamps[source])) for source in file_stamps] != [
        (source, len(files)) for source, files in source_paths.items()
    ]:
        return False
    return all(
        _matches_stamp(fact, path)
        for source, files in source_paths.items()
        for fact, path in zip(file_stamps[source], files, strict=True)
    )


def _file_stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "name": path.name,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": sha256_file(path),
    }


def _matches_stamp(stamp: dict[str, Any], path: Path) -> bool:
    status = path.stat()
    if (stamp["name"], stamp["bytes"]) != (path.name, status.st_size):
        return False
    # A copy or a fresh checkout has other times and the same content.
    return stamp["mtime_ns"] == status.st_mtime_ns or stamp["sha256"] == sha256_file(path)


def _find_prepared(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """What was prepared under this name with this tokenizer, or with whichever came last; None if nothing was."""
    if tokenizer is not None:
        folder = _prepared_folder(name, load_tokenizer(tokenizer))
        return (
            _refresh_if_outdated(_check_shard_set(folder, tokenizer), name, corpus)
            if _is_shard_set(folder)
            else None
        )
    folders = [
        path for path in PREPARED_FOLDER.glob(f"{name}-" + "[0-9a-f]" * 8) if _is_shard_set(path)
    ]
    if not folders:
        return None
    return _refresh_if_outdated(
        _check_shard_set(max(folders, key=lambda path: (path / MANIFEST).stat().st_mtime_ns), None),
        name,
        corpus,
    )


def _refresh_if_outdated(folder: Path, name: str, corpus: Corpus) -> Path:
    """The prepared set of a name, made again where other code made it and the files it was made from are still here."""
    provenance_path = folder / PROVENANCE_FILE
    provenance = (
        read_checksummed_json(
            provenance_path, f": delete {folder}, and make data DATA={name}", 1 << 30
        )
        if provenance_path.is_file()
        else {}
    )
    if provenance.get("code", PREPARE_VERSION) == PREPARE_VERSION:
        return folder
    if (files := _find_original_downloads(provenance, name, corpus)) is None:
        print(
            f"warning: {folder} was prepared by another version of this code, and its files are not in "
            f"{DOWNLOADS_FOLDER / name} to prepare it again: make data DATA={name}",
            file=sys.stderr,
        )
        return folder
    print(f"{folder} was prepared by another version of this code: preparing it again", flush=True)
    assert corpus.source is not None
    return prepare_if_outdated(name, {corpus.source: files}, folder)


def _find_original_downloads(
    provenance: dict[str, Any], name: str, corpus: Corpus
) -> SplitFiles | None:
    """The downloads that a set was made from, whichever parts of the corpus these were; None where one is gone."""
    expected_files = {
        (fact["name"], fact["bytes"]) for facts in provenance["inputs"].values() for fact in facts
    }
    parts = tuple(dict.fromkeys(file.part for file in corpus.files if file.part))
    all_downloads = download_paths(name, corpus, parts)
    chosen = SplitFiles(
        *(
            [
                path
                for path in paths
                if path.exists() and (path.name, path.stat().st_size) in expected_files
            ]
            for paths in (all_downloads.train, all_downloads.dev)
        )
    )
    found_files = {(path.name, path.stat().st_size) for path in chosen.train + chosen.dev}
    return (
        chosen
        if list(provenance["inputs"]) == [corpus.source] and found_files == expected_files
        else None
    )


def _prepare_downloads(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """What was downloaded under this name, prepared with a tokenizer it was not yet prepared with; None if it is not here."""
    files = download_paths(name, corpus)
    if (
        tokenizer is None
        or corpus.source is None
        or not files.train
        or not all(path.exists() for path in files.train)
    ):
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
    provenance_path = shards.folder / PROVENANCE_FILE
    name = (
        str(read_checksummed_json(provenance_path).get("name", ""))
        if provenance_path.is_file()
        else ""
    )
    corpora_by_name, sample_source = load_corpora(), name.removeprefix(f"{SAMPLE_NAME}-")
    if sample_source != name and sample_source in SAMPLE_SFT_FILES:
        return sample_source, sample_files(sample_source)[sample_source].test
    corpus = corpora_by_name.get(name)
    files = download_paths(name, corpus).test if corpus else []
    if corpus is None or corpus.source is None or not files:
        raise UserError(
            f"{shards.folder} has no test split of its own: say what to score with --source NAME --input FILE"
        )
    return corpus.source, files


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

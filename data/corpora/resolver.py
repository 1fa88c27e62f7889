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
from common.files import MANIFEST, fsync, manifest_problem, read_json, read_sealed, sha256_file, write_sealed
from data.corpora.manifests import ROOT, TOKENIZER, Corpus, corpora, unknown
from data.readers.detect import detect
from data.readers.source_args import Group
from data.prepare.pipeline import PrepareOptions, code_digest, prepare_groups
from data.readers.files import expand
from data.shards import FORMAT, MADE_FROM, PREPARED, ShardSet
from model.tokenizer.base import Tokenizer

SAMPLE = "sample"
SAMPLE_ROOT = ROOT / "assets" / "sample"
SAMPLE_FOLDER = SAMPLE_ROOT / "pretrain"
SMALL_TOKENIZER = ROOT / "assets" / "tokenizer"
# Below the folder that the command runs in.
DOWNLOADS = Path("downloads")


@dataclass(frozen=True)
class Files:
    """The native files of one source: to train on, and what its release holds out."""

    train: list[Path]
    dev: list[Path] = field(default_factory=list)
    test: list[Path] = field(default_factory=list)


# Source name → its native files.
Inputs = dict[str, Files]
# The shipped sample's part of each fine-tuning set, below SAMPLE_ROOT.
SAMPLE_TUNING = {
    name: Files(*([Path(path)] if path else [] for path in paths))
    for name, paths in {
        "csl": ("summary/csl/train.tsv", "summary/csl/dev.tsv", "summary/csl/test.tsv"),
        "lcsts": ("summary/lcsts/PART_I.txt", "summary/lcsts/PART_II.txt", "summary/lcsts/PART_III.txt"),
        "redgpt": ("sft/redgpt/RedGPT-Dataset-V1-CN.json.gz", "", "sft/redgpt/RedGPT-Dataset-V1-CN.test.json"),
        "naturalconv": ("sft/naturalconv/dialog_release.json.gz", "", "sft/naturalconv/dialog_release.test.json"),
        "belle-0.5m": ("sft/belle/train_0.5M_CN.json.gz", "", "sft/belle/train_0.5M_CN.test.json"),
        "belle-0.8m": ("sft/belle/multiturn_chat_0.8M.json.gz", "", "sft/belle/multiturn_chat_0.8M.test.json"),
        "deepctrl": ("sft/deepctrl/sft_data_zh.jsonl.gz", "", "sft/deepctrl/sft_data_zh.test.jsonl"),
        "pclue": ("sft/pclue/pCLUE_train.json.gz", "", "sft/pclue/pCLUE_train.test.json"),
    }.items()
}


def resolve(name: str, tokenizer: Path | None = None) -> Path:
    """The prepared shard-set folder that `name` means; prepares the sample and raw paths on the way.

    `name` is a name of `make data`, a shard-set folder (used as it is) or a raw file or folder. A name that is known
    but not prepared gives the sample's part of that name, and the first line printed says so. `tokenizer` None means,
    for prepared names, whichever was prepared last; for raw paths the downloaded 65k tokenizer, else the small one.
    """
    known = corpora()
    path = Path(name)
    if name == SAMPLE:
        return prepare_once(SAMPLE, sample_inputs(), tokenizer or SMALL_TOKENIZER)
    if name in known and known[name].source:
        return (_prepared(name, known[name], tokenizer) or _downloaded(name, known[name], tokenizer)
                or _stand_in(name, known[name], tokenizer))
    if path.is_dir() and _is_shard_set(path):
        return _checked(path, tokenizer)
    if path.exists():
        files = expand([name])
        label = f"{path.resolve().stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]}"
        return prepare_once(label, {detect(files): Files(files)}, tokenizer or default_tokenizer())
    raise unknown(name, " and no such file or folder", data=True)


def prepared_name(folder: Path) -> str:
    """The name under which a folder in `prepared/` was prepared: the folder's own, less the digits of the tokenizer."""
    return re.sub("-[0-9a-f]{8}$", "", folder.name)


def stands_for(folder: Path) -> str | None:
    """The name of `make data` that a prepared part of the shipped sample stands in for; None of every other folder."""
    name = prepared_name(folder)
    wanted = name.removeprefix(f"{SAMPLE}-")
    return wanted if wanted != name and wanted in corpora() else None


def default_tokenizer() -> Path:
    """The downloaded 65k tokenizer if it is here, else the small one that comes with the project."""
    name = corpora()[TOKENIZER].files[0].path
    downloaded = DOWNLOADS / TOKENIZER / name
    return downloaded if downloaded.exists() else SMALL_TOKENIZER


def sample_inputs(source: str | None = None) -> Inputs:
    """The files of the shipped sample by source, or only those of one source."""
    if not SAMPLE_FOLDER.is_dir():
        raise UserError(f"{SAMPLE_FOLDER} is missing: it belongs to the project, restore it (git checkout)")
    if source in SAMPLE_TUNING:
        files = SAMPLE_TUNING[source]
        return {source: Files(*([SAMPLE_ROOT / path for path in part] for part in (files.train, files.dev, files.test)))}
    inputs: Inputs = {}
    for path in expand([str(SAMPLE_FOLDER)]):
        inputs.setdefault(detect([path]), Files([])).train.append(path)
    if source is None:
        return inputs
    if source not in inputs:
        raise UserError(f"{SAMPLE_FOLDER} has no part for the source {source}")
    return {source: inputs[source]}


def prepare_once(name: str, inputs: Inputs, tokenizer: Path) -> Path:
    """The shard set of `inputs` under `name`: the one that is there if it was made from the same, else made now.

    The old one stays until the new one is whole. UserError if something that was not made here has the name.
    """
    loaded = Tokenizer.load(tokenizer)
    out, options = _folder(name, loaded), PrepareOptions()
    if out.exists() and not (out / MADE_FROM).is_file():
        raise UserError(f"{out} was not made by make data or a training run: move it away and run again")
    request = {
        "format": FORMAT, "tokenizer": loaded.fingerprint, "options": options.model_dump(mode="json"), "code": code_digest(),
    }
    if not _unchanged(out, request, inputs):
        new = out.with_name(f".{out.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        groups = [Group(source, tuple(map(str, files.train)), tuple(map(str, files.dev))) for source, files in inputs.items()]
        prepare_groups(groups, new, tokenizer, options)
        facts = {source: [_facts(path) for path in files.train + files.dev] for source, files in inputs.items()}
        write_sealed(new / MADE_FROM, {**request, "name": name, "inputs": facts})
        _replace(out, new)
    return out


def _replace(out: Path, new: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(new, out)
    fsync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _folder(name: str, tokenizer: Tokenizer) -> Path:
    return PREPARED / f"{name}-{tokenizer.fingerprint[:8]}"


def _unchanged(out: Path, request: dict[str, Any], inputs: Inputs) -> bool:
    """Whether `out` is whole and was made by this request from these very files."""
    if not out.exists() or manifest_problem(out, checksums=False):
        return False
    try:
        before = read_sealed(out / MADE_FROM, limit=1 << 30)  # it lists every file of a corpus, and was written here
    except UserError as error:
        print(f"warning: {error}; preparing {out} again", file=sys.stderr)
        return False
    if any(before.get(key) != value for key, value in request.items()):
        return False
    facts = before["inputs"]
    read = {source: files.train + files.dev for source, files in inputs.items()}
    if [(source, len(facts[source])) for source in facts] != [(source, len(files)) for source, files in read.items()]:
        return False
    return all(_same(fact, path) for source, files in read.items()
               for fact, path in zip(facts[source], files, strict=True))


def _facts(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"name": path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(path)}


def _same(fact: dict[str, Any], path: Path) -> bool:
    status = path.stat()
    if (fact["name"], fact["bytes"]) != (path.name, status.st_size):
        return False
    # A copy or a fresh checkout has other times and the same content.
    return fact["mtime_ns"] == status.st_mtime_ns or fact["sha256"] == sha256_file(path)


def _prepared(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """What was prepared under this name with this tokenizer, or with whichever came last; None if nothing was."""
    if tokenizer is not None:
        folder = _folder(name, Tokenizer.load(tokenizer))
        return _current(_checked(folder, tokenizer), name, corpus) if _is_shard_set(folder) else None
    folders = [path for path in PREPARED.glob(f"{name}-" + "[0-9a-f]" * 8) if _is_shard_set(path)]
    if not folders:
        return None
    return _current(_checked(max(folders, key=lambda path: (path / MANIFEST).stat().st_mtime_ns), None), name, corpus)


def _current(folder: Path, name: str, corpus: Corpus) -> Path:
    """The prepared set of a name, made again where other code made it and the files it was made from are still here."""
    made = folder / MADE_FROM
    before = read_sealed(made, f": delete {folder}, and make data DATA={name}", 1 << 30) if made.is_file() else {}
    if before.get("code", code_digest()) == code_digest():
        return folder
    if (files := _still_here(before, name, corpus)) is None:
        print(f"warning: {folder} was prepared by another version of this code, and its files are not in "
              f"{DOWNLOADS / name} to prepare it again: make data DATA={name}", file=sys.stderr)
        return folder
    print(f"{folder} was prepared by another version of this code: preparing it again", flush=True)
    assert corpus.source is not None
    return prepare_once(name, {corpus.source: files}, folder)


def _still_here(before: dict[str, Any], name: str, corpus: Corpus) -> Files | None:
    """The downloads that a set was made from, whichever parts of the corpus these were; None where one is gone."""
    wanted = {(fact["name"], fact["bytes"]) for facts in before["inputs"].values() for fact in facts}
    parts = tuple(dict.fromkeys(file.part for file in corpus.files if file.part))
    every = downloads(name, corpus, parts)
    chosen = Files(*([path for path in paths if path.exists() and (path.name, path.stat().st_size) in wanted]
                     for paths in (every.train, every.dev)))
    here = {(path.name, path.stat().st_size) for path in chosen.train + chosen.dev}
    return chosen if list(before["inputs"]) == [corpus.source] and here == wanted else None


def _downloaded(name: str, corpus: Corpus, tokenizer: Path | None) -> Path | None:
    """What was downloaded under this name, prepared with a tokenizer it was not yet prepared with; None if it is not here."""
    files = downloads(name, corpus)
    if tokenizer is None or corpus.source is None or not files.train or not all(path.exists() for path in files.train):
        return None
    return prepare_once(name, {corpus.source: files}, tokenizer)


def downloads(name: str, corpus: Corpus, parts: tuple[str, ...] = ()) -> Files:
    """Where the files of a corpus lie once they are downloaded (of its default parts, or these), archives unpacked."""
    roles: dict[str, list[Path]] = {"train": [], "dev": [], "test": []}
    for file in corpus.chosen(parts):
        path = DOWNLOADS / name / file.path
        found = sorted(path.with_suffix("").glob(file.unpack)) if file.unpack else [path]
        roles[file.role] += found
    return Files(**roles)


def test_files(shards: ShardSet) -> tuple[str, list[Path]]:
    """The source and the native files of the test split that belongs to a prepared set.

    UserError if the set was not prepared by name, or its release has no test split.
    """
    made = shards.folder / MADE_FROM
    name = str(read_sealed(made).get("name", "")) if made.is_file() else ""
    known, wanted = corpora(), name.removeprefix(f"{SAMPLE}-")
    if wanted != name and wanted in SAMPLE_TUNING:
        return wanted, sample_inputs(wanted)[wanted].test
    corpus = known.get(name)
    files = downloads(name, corpus).test if corpus else []
    if corpus is None or corpus.source is None or not files:
        raise UserError(f"{shards.folder} has no test split of its own: say what to score with --source NAME --input FILE")
    return corpus.source, files


def _stand_in(name: str, corpus: Corpus, tokenizer: Path | None) -> Path:
    print(
        f"{name} is not prepared here: the part of the shipped sample in its format stands in for it "
        f"(the real one: make data DATA={name})", flush=True
    )
    assert corpus.source is not None
    return prepare_once(f"{SAMPLE}-{name}", sample_inputs(corpus.source), tokenizer or SMALL_TOKENIZER)


def _is_shard_set(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_json(folder / MANIFEST)
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _checked(folder: Path, tokenizer: Path | None) -> Path:
    """A shard-set folder whose files are all there, and of this tokenizer where one is demanded."""
    fingerprint = ShardSet.open(folder).tokenizer().fingerprint
    if tokenizer is not None and (wanted := Tokenizer.load(tokenizer).fingerprint) != fingerprint:
        raise UserError(
            f"{folder} was prepared with another tokenizer ({fingerprint[:8]}) than {tokenizer} ({wanted[:8]}): "
            f"prepare the raw files with --tokenizer {tokenizer}, or leave out the --tokenizer or --base that asks for it"
        )
    return folder

"""The sample corpus that is shipped with the project: its native files by source."""

from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from data.corpora.detect import detect_source
from data.corpora.manifests import PROJECT_ROOT
from data.readers.files import expand_inputs

SAMPLE_NAME = "sample"
SAMPLE_ROOT = PROJECT_ROOT / "assets" / "sample"
SAMPLE_PRETRAIN_FOLDER = SAMPLE_ROOT / "pretrain"
SMALL_TOKENIZER = PROJECT_ROOT / "assets" / "tokenizer"


@dataclass(frozen=True)
class SplitFiles:
    """The native files of one source, by the split that the release means them for."""

    train: list[Path]
    dev: list[Path] = field(default_factory=list)
    test: list[Path] = field(default_factory=list)


# Source name → its native files.
FilesBySource = dict[str, SplitFiles]


def _sft_files(train: str, test: str) -> SplitFiles:
    """Return the files of a source of conversations; the arguments are paths below `sft/`."""
    folder = SAMPLE_ROOT / "sft"
    return SplitFiles(train=[folder / train], test=[folder / test])


def _summary_files(train: str, dev: str, test: str) -> SplitFiles:
    """Return the files of a source of summaries; the arguments are paths below `summary/`."""
    folder = SAMPLE_ROOT / "summary"
    return SplitFiles(train=[folder / train], dev=[folder / dev], test=[folder / test])


SAMPLE_SFT_FILES: FilesBySource = {
    "csl": _summary_files("csl/train.tsv", "csl/dev.tsv", "csl/test.tsv"),
    "lcsts": _summary_files("lcsts/PART_I.txt", "lcsts/PART_II.txt", "lcsts/PART_III.txt"),
    "redgpt": _sft_files(
        "redgpt/RedGPT-Dataset-V1-CN.json.gz", "redgpt/RedGPT-Dataset-V1-CN.test.json"
    ),
    "naturalconv": _sft_files(
        "naturalconv/dialog_release.json.gz", "naturalconv/dialog_release.test.json"
    ),
    "belle-0.5m": _sft_files("belle/train_0.5M_CN.json.gz", "belle/train_0.5M_CN.test.json"),
    "belle-0.8m": _sft_files(
        "belle/multiturn_chat_0.8M.json.gz", "belle/multiturn_chat_0.8M.test.json"
    ),
    "deepctrl": _sft_files("deepctrl/sft_data_zh.jsonl.gz", "deepctrl/sft_data_zh.test.jsonl"),
    "pclue": _sft_files("pclue/pCLUE_train.json.gz", "pclue/pCLUE_train.test.json"),
}


def sample_files(source: str | None = None) -> FilesBySource:
    """Return the files of one source of the sample, or without `source` all pretraining files.

    The result has the files by source. Raises UserError if the sample is missing or has no files of
    the source.
    """
    if not SAMPLE_PRETRAIN_FOLDER.is_dir():
        raise UserError(
            f"{SAMPLE_PRETRAIN_FOLDER} is missing: it belongs to the project, restore it with git "
            "checkout"
        )
    if source in SAMPLE_SFT_FILES:
        return {source: SAMPLE_SFT_FILES[source]}
    files: FilesBySource = {}
    for path in expand_inputs([str(SAMPLE_PRETRAIN_FOLDER)]):
        files.setdefault(detect_source([path]), SplitFiles(train=[])).train.append(path)
    if source is None:
        return files
    if source not in files:
        raise UserError(f"{SAMPLE_PRETRAIN_FOLDER} has no part for the source {source}")
    return {source: files[source]}

"""Manifests of the corpora that can be downloaded."""

import hashlib
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import UserError
from data.corpora import manifests
from data.sources import SOURCES


def test_every_manifest_is_well_formed_and_its_source_exists() -> None:
    """Prevents a manifest that fails only when somebody downloads it."""
    corpora = manifests.load_corpora()
    assert {"wikipedia", "zhihu", "mnbvc", "wiki_zh_2019", "tokenizer"} <= set(corpora)
    for name, corpus in corpora.items():
        assert corpus.source in {*SOURCES, None} and (corpus.source is None) == (
            name == "tokenizer"
        )
        assert corpus.select_files(()), name
        assert all(
            url.startswith(("https://", "http://"))
            for file in corpus.files
            for url in corpus.urls(file)
        )
    file = corpora["tokenizer"].files[0]
    assert file.size == 1011042
    assert file.sha256 == "04ef61cc08360cd193f9056cb10e26525451fd62759ca714840663257e7bcdd8"


def test_tokenizer_checksum_matches_real_file(shared: Path) -> None:
    """Prevents the right tokenizer from being refused."""
    file = manifests.load_corpora()["tokenizer"].files[0]
    data = (shared / "tokenizer" / "llama-chinese-65k.model").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


@pytest.mark.parametrize(
    "text",
    [
        "path: /etc/passwd",
        "path: ../x",
        "path: a/../../x",
        "{path: a, sha256: abc}",
        "{path: a, sice: 3}",
    ],
)
def test_invalid_manifest_gives_one_line_error_with_file_and_key(tmp_path: Path, text: str) -> None:
    """Prevents files outside downloads/, and misspelled checksums that are never compared."""
    (tmp_path / "x.yaml").write_text(
        f"description: d\nlicense: l\nhomepage: h\nmegabytes: 1\nmirrors: [u]\nfiles:\n  - {text}\n"
    )
    with pytest.raises(UserError, match=r"x\.yaml: files\.0\.") as caught:
        manifests.load_corpora(tmp_path)
    assert "\n" not in str(caught.value)


def test_hf_endpoint_mirror_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents users behind a firewall from waiting for the hub."""
    corpus = manifests.load_corpora()["wikipedia"]
    plain = corpus.urls(corpus.files[0])
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    first = plain[0].replace("https://huggingface.co", "https://mirror.example")
    assert corpus.urls(corpus.files[0]) == [first, *plain]


def test_subsets_select_files_and_unknown_names_are_reported() -> None:
    """Prevents gigabytes of other parts from being downloaded."""
    corpus = manifests.load_corpora()["mnbvc"]
    assert {file.part for file in corpus.select_files(())} == {"news_peoples_daily"}
    assert [file.path for file in corpus.select_files(("gov_xuexiqiangguo",))] == [
        "gov/20230172/XueXiQiangGuo.jsonl.gz"
    ]
    with pytest.raises(
        UserError, match=r"--parts gov: .*the parts are news_peoples_daily, gov_xuexiqiangguo"
    ):
        corpus.select_files(("gov",))


def test_dev_and_test_splits_never_enter_training() -> None:
    """Prevents a test split from being prepared with the training files."""
    corpora = manifests.load_corpora()
    assert {
        "redgpt",
        "naturalconv",
        "belle-0.5m",
        "belle-0.8m",
        "deepctrl",
        "pclue",
        "lcsts",
        "csl",
    } <= set(corpora)
    roles = {
        name: {file.path: file.role for file in corpus.select_files(())}
        for name, corpus in corpora.items()
    }
    assert roles["csl"] == {"train.tsv": "train", "dev.tsv": "dev", "test.tsv": "test"}
    assert roles["lcsts"] == {
        "train.jsonl": "train",
        "valid.jsonl": "dev",
        "test_public.jsonl": "test",
    }
    for files in roles.values():
        assert "train" in files.values()
        for path, role in files.items():
            assert role == (
                "dev" if re.search("dev|valid", path) else "test" if "test" in path else "train"
            )


def test_an_unknown_role_is_refused() -> None:
    """Prevents a misspelled role from putting a test split into training."""
    with pytest.raises(ValidationError, match="role"):
        manifests.CorpusFile.model_validate({"path": "a.tsv", "role": "testing"})

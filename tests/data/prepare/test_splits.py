"""What a shard set holds: the tokenizer's ids, a validation split that the text alone decides; in flat memory."""

import json
from pathlib import Path

import numpy as np
import orjson
import pytest

from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_source
from data.shards import ShardSet
from model.tokenizer import load_tokenizer
from tests.data.prepare.conftest import document, run


def split_of(folder: Path, name: str) -> set[str]:
    shards = ShardSet.open(folder)
    sequences, loaded = shards.load_split(name), shards.load_tokenizer()
    return {
        loaded.decode(sequences.tokens(index)[1:-1].tolist()) for index in range(len(sequences))
    }


def test_shard_tokens_match_tokenizer(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    prepare_source(
        "jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions(validation=0)
    )
    loaded, sequences = (
        load_tokenizer(tokenizer),
        ShardSet.open(tmp_path / "out").load_split("train"),
    )
    for index in (0, 7, 199):
        wanted = [loaded.bos_id, *loaded.encode(document(index)), loaded.eos_id]
        assert np.array_equal(sequences.tokens(index), wanted)


def test_validation_split_depends_only_on_text(tokenizer: Path, tmp_path: Path) -> None:
    """A document must not change sides when the corpus is shuffled or grows: training on it would leak."""
    texts = [document(seed, 60) for seed in range(600)]

    def prepared(name: str, some: list[str]) -> Path:
        (tmp_path / name).write_bytes(
            b"".join(orjson.dumps({"text": text}) + b"\n" for text in some)
        )
        prepare_source(
            "jsonl", [str(tmp_path / name)], tmp_path / f"{name}.out", tokenizer, PrepareOptions()
        )
        return tmp_path / f"{name}.out"

    whole, turned, half = (
        prepared("a", texts),
        prepared("b", texts[::-1]),
        prepared("c", texts[:300]),
    )
    assert 30 < len(split_of(whole, "validation")) < 100
    assert split_of(turned, "validation") == split_of(whole, "validation")
    assert split_of(half, "validation") <= split_of(whole, "validation")


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(1, 0.005, 0), (2, 0.005, 1), (9, 0.005, None), (9, 0, 0)]
)
def test_small_corpora_have_both_splits(
    tokenizer: Path, tmp_path: Path, count: int, share: float, held_out: int | None
) -> None:
    (tmp_path / "a").write_bytes(
        b"".join(orjson.dumps({"text": document(seed)}) + b"\n" for seed in range(count))
    )
    prepare_source(
        "jsonl",
        [str(tmp_path / "a")],
        tmp_path / "out",
        tokenizer,
        PrepareOptions(validation=share),
    )
    splits = ShardSet.open(tmp_path / "out").manifest["splits"]
    assert splits["train"]["sequences"] >= 1
    assert splits["train"]["sequences"] + splits["validation"]["sequences"] == count
    assert splits["validation"]["sequences"] == held_out or (
        held_out is None and splits["validation"]["sequences"] >= 1
    )


@pytest.mark.slow
def test_memory_is_constant_in_corpus_size(tokenizer: Path, tmp_path: Path, root: Path) -> None:
    peaks = []
    for scale in (1, 5):
        path = tmp_path / f"{scale}.jsonl"
        with path.open("wb") as file:
            for seed in range(1000 * scale):
                file.write(orjson.dumps({"text": f"{seed} " + document(seed % 97, 900)}) + b"\n")
        # Without near duplicates all documents stay; with one worker it is this process that cleans and encodes.
        arguments = [
            "--source",
            "jsonl",
            "--input",
            str(path),
            "--tokenizer",
            str(tokenizer),
            "--dedup.near",
            "false",
        ]
        assert (
            run(
                [*arguments, "--workers", "1", "--out", str(tmp_path / f"{scale}.out")], root
            ).returncode
            == 0
        )
        report = json.loads((tmp_path / f"{scale}.out" / "report.json").read_text())
        assert report["kept"] == 1000 * scale
        peaks.append(report["peak_memory_parent"])
    # 11 MB of text more, over 100 MB as Python's lists of ids.
    assert peaks[1] - peaks[0] < 8 << 20

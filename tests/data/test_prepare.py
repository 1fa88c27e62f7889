"""Preparation: the same shard set however it came about, every record accounted for, mistakes told in one line."""

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from common.errors import UserError
from common.files import read_sealed
from data import assemble as assemble_module
from data import parts as parts_module
from data import prepare as prepare_module
from data.inputs import Group, split_groups
from data.prepare import PrepareOptions, prepare, prepare_groups
from data.shards import ShardSet
from model.tokenizer import Tokenizer

# A command whose parts and shards are small, so that little text makes many of them.
COMMAND = """
import data.parts, data.shards
data.parts.PART_BYTES = 1 << 17
data.shards.ShardWriter.__init__.__defaults__ = (1 << 17,)
from common.errors import run_main
from data.prepare import main
run_main(main)
"""
COMMON = list(
    "的一是了我不在人们有来他这上着个地到大里说就去子得也和那要下看天时过出小么起你都把好还多没为又可家学只以主会样年想生同老中十从自面前头道它后"
)


def document(seed: int, characters: int = 400) -> str:
    chance = random.Random(seed)
    return "".join(chance.choices(COMMON, k=characters)) + f"。第{seed}篇。"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE model with byte fallback of a few hundred pieces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter([document(seed) for seed in range(50)]),
            model_writer=file,
            model_type="bpe",
            vocab_size=450,
            byte_fallback=True,
            character_coverage=1.0,
            minloglevel=2,
            num_threads=1,
        )
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """200 documents, 10 copies, 5 near copies, 3 short ones, 1 bad line: 219 records."""
    texts = [document(seed) for seed in range(200)]
    rows = [
        {"text": text} for text in [*texts, *texts[:10], *[text[:-8] + "完" for text in texts[50:55]], "短", "短", "短"]
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b"{broken\n")
    return path


def run(arguments: list[str], root: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a shard set but the report, which has times in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def documents(folder: Path) -> list[str]:
    shards = ShardSet.open(folder, checksums=True)
    loaded = shards.tokenizer()
    found = []
    for split in ("train", "validation"):
        sequences = shards.split(split)
        for index in range(len(sequences)):
            ids = sequences.tokens(index)
            assert ids[0] == loaded.bos_id and ids[-1] == loaded.eos_id
            found.append(loaded.decode(ids[1:-1].tolist()))
    return found


def test_every_record_is_accounted_for(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    report = prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    assert report["records"] == 219
    assert report["quarantined"] == 1
    assert report["dropped"] == {"exact_duplicate": 10, "near_duplicate": 5, "too_short": 3}
    assert report["kept"] == 200
    assert sorted(documents(tmp_path / "out")) == sorted(document(seed) for seed in range(200))
    shards = ShardSet.open(tmp_path / "out")
    splits = shards.manifest["splits"]
    for split in ("train", "validation"):
        assert splits[split]["sequences"] == len(shards.split(split))
        assert splits[split]["tokens"] == shards.split(split).total_tokens == shards.split(split).lengths().sum()
    assert sum(split["characters"] for split in splits.values()) == report["characters"]
    assert sum(split["tokens"] for split in splits.values()) == report["tokens"]
    assert shards.manifest["tokenizer"]["fingerprint"] == Tokenizer.load(tokenizer).fingerprint
    (bad,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(bad) | {"reason": ""} == {"file": str(corpus), "line": 219, "reason": ""}
    assert read_sealed(tmp_path / "out" / "report.json") == report
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_real_corpora_of_different_shapes_mix_into_one_set(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "pretrain"
    groups = [
        Group("mnbvc", (str(folder / "mnbvc_general.jsonl.gz"),)),
        Group("mnbvc_qa", (str(folder / "mnbvc_qa.jsonl.gz"),)),
        Group("wiki_zh_2019", (str(folder / "wiki_zh_2019"),)),
    ]
    model = shared / "tokenizer" / "llama-chinese-65k.model"
    report = prepare_groups(groups, tmp_path / "out", model, PrepareOptions(limit=300, workers=1))
    assert [counts["records"] for counts in report["sources"].values()] == [300, 300, 64]
    assert report["kept"] > 600
    with gzip.open(folder / "mnbvc_qa.jsonl.gz") as file:
        rows = [orjson.loads(line) for line in itertools.islice(file, 20)]
    found = set(documents(tmp_path / "out"))
    assert sum(f"{row['问'].strip()}\n{row['答'].strip()}" in found for row in rows) >= 18


@pytest.mark.slow
def test_workers_and_kill_9_change_no_byte(tokenizer: Path, tmp_path: Path, root: Path) -> None:
    """Two workers, killed -9 in the middle and run again, make what one made at a stretch; the workers die with it."""
    import psutil

    texts = [document(seed, 500) for seed in range(1200)]
    for name, some in (("a.jsonl", texts[:700]), ("b.jsonl", texts[650:])):
        (tmp_path / name).write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in some) + b"[]\n")

    def arguments(out: str, workers: int) -> list[str]:
        inputs = ["--source", "jsonl", "--input", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
        return [*inputs, "--tokenizer", str(tokenizer), "--out", str(tmp_path / out), "--workers", str(workers)]

    assert run(arguments("one", 1), root).returncode == 0
    wanted = contents(tmp_path / "one")

    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments("killed", 2)],
        cwd=root,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    parts = tmp_path / ".killed.work" / "parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("0*/manifest.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (tmp_path / "killed").exists()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("0*/manifest.json")}
    assert 3 <= len(before) < 14
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert run(arguments("killed", 2), root).returncode == 0
    assert contents(tmp_path / "killed") == wanted
    assert not parts.parent.exists()


@pytest.mark.slow
def test_finished_parts_are_not_made_again_and_changed_inputs_are(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART_BYTES", 20_000)
    made: list[int] = []
    whole = parts_module.Worker.process

    def counted(worker: parts_module.Worker, part: parts_module.Part) -> Any:
        made.append(part.index)
        return whole(worker, part)

    monkeypatch.setattr(parts_module.Worker, "process", counted)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assemble_module, "_copy", interrupted)
        prepare(*arguments)
    assert len(made) > 5
    assert not (tmp_path / "out").exists()
    made.clear()
    # Mended in its last line: only the last part is made again.
    corpus.write_bytes(corpus.read_bytes().replace(b"{broken\n", orjson.dumps({"text": document(999)}) + b"\n"))
    report = prepare(*arguments)
    assert len(made) == 1
    assert report["kept"] == 201 and report["quarantined"] == 0
    fresh = prepare("jsonl", [str(corpus)], tmp_path / "fresh", tokenizer, PrepareOptions())
    assert fresh["tokens"] == report["tokens"]
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


def test_the_same_again_does_nothing_and_another_is_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions(workers=2, quarantine_share=0.5)) == report
    assert "already prepared" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UserError, match=r"differs: options\.dedup\.near.*another --out"):
        prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions.model_validate({"dedup": {"near": False}}))
    corpus.write_bytes(corpus.read_bytes()[:-20])
    with pytest.raises(UserError, match="differs: inputs"):
        prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is no shard set"):
        prepare("jsonl", [str(corpus)], tmp_path / "other", tokenizer, PrepareOptions())
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_interrupted_work_with_other_arguments_is_named_not_mixed(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(assemble_module, "_copy", full)
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    changed = PrepareOptions.model_validate({"clean": {"minimum_characters": 30}})
    with pytest.raises(UserError, match=r"options\.clean\.minimum_characters.*delete it"):
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, changed)


def test_two_at_once_are_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nested(*_: Any) -> None:
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())

    monkeypatch.setattr(prepare_module, "_make_parts", nested)
    with pytest.raises(UserError, match="another process is preparing it"):
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())


def test_too_many_bad_records_fail_in_one_line_and_going_on_is_cheap(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    corpus.write_bytes(corpus.read_bytes() + b"[1]\n[2]\n")
    with pytest.raises(UserError, match=r"3 of 221 records.*1\.36%.*corpus\.jsonl line 219: not valid JSON") as caught:
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    report = prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions(quarantine_share=0.02))
    assert report["quarantined"] == 3


@pytest.mark.parametrize(
    ("data", "reason"), [(b"\n\n", "not one record"), (b'{"text": "a"}\n', "none of 1 records")]
)
def test_nothing_to_train_on_is_said(tokenizer: Path, tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        prepare("jsonl", [str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer, PrepareOptions())


def split_of(folder: Path, name: str) -> set[str]:
    shards = ShardSet.open(folder)
    sequences, loaded = shards.split(name), shards.tokenizer()
    return {loaded.decode(sequences.tokens(index)[1:-1].tolist()) for index in range(len(sequences))}


def test_validation_is_chosen_by_text_alone(tokenizer: Path, tmp_path: Path) -> None:
    """A document must not change sides when the corpus is shuffled or grows: training on it would leak."""
    texts = [document(seed, 60) for seed in range(600)]

    def prepared(name: str, some: list[str]) -> Path:
        (tmp_path / name).write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in some))
        prepare("jsonl", [str(tmp_path / name)], tmp_path / f"{name}.out", tokenizer, PrepareOptions())
        return tmp_path / f"{name}.out"

    whole, turned, half = prepared("a", texts), prepared("b", texts[::-1]), prepared("c", texts[:300])
    assert 30 < len(split_of(whole, "validation")) < 100
    assert split_of(turned, "validation") == split_of(whole, "validation")
    assert split_of(half, "validation") <= split_of(whole, "validation")


@pytest.mark.parametrize(("count", "share", "held_out"), [(1, 0.005, 0), (2, 0.005, 1), (9, 0.005, None), (9, 0, 0)])
def test_small_corpora_have_both_splits(
    tokenizer: Path, tmp_path: Path, count: int, share: float, held_out: int | None
) -> None:
    (tmp_path / "a").write_bytes(b"".join(orjson.dumps({"text": document(seed)}) + b"\n" for seed in range(count)))
    prepare("jsonl", [str(tmp_path / "a")], tmp_path / "out", tokenizer, PrepareOptions(validation=share))
    splits = ShardSet.open(tmp_path / "out").manifest["splits"]
    assert splits["train"]["sequences"] >= 1
    assert splits["train"]["sequences"] + splits["validation"]["sequences"] == count
    assert splits["validation"]["sequences"] == held_out or (
        held_out is None and splits["validation"]["sequences"] >= 1
    )


@pytest.mark.slow
def test_memory_is_flat_in_the_size_of_the_corpus(tokenizer: Path, tmp_path: Path, root: Path) -> None:
    peaks = []
    for scale in (1, 5):
        path = tmp_path / f"{scale}.jsonl"
        with path.open("wb") as file:
            for seed in range(1000 * scale):
                file.write(orjson.dumps({"text": f"{seed} " + document(seed % 97, 900)}) + b"\n")
        # Without near duplicates all documents stay; with one worker it is this process that cleans and encodes.
        arguments = ["--source", "jsonl", "--input", str(path), "--tokenizer", str(tokenizer), "--dedup.near", "false"]
        assert run([*arguments, "--workers", "1", "--out", str(tmp_path / f"{scale}.out")], root).returncode == 0
        report = json.loads((tmp_path / f"{scale}.out" / "report.json").read_text())
        assert report["kept"] == 1000 * scale
        peaks.append(report["peak_memory_parent"])
    # 11 MB of text more, over 100 MB as Python's lists of ids.
    assert peaks[1] - peaks[0] < 8 << 20


# The command line


def test_groups_are_taken_out_of_the_command_line() -> None:
    words = [
        "--source",
        "mnbvc",
        "--input",
        "a",
        "b",
        "--out",
        "o",
        "--source=jsonl:x",
        "--input=c",
        "--workers",
        "2",
        "--input",
        "hub",
    ]
    groups, rest = split_groups(words)
    assert groups == [Group("mnbvc", ("a", "b")), Group("jsonl:x", ("c", "hub"))]
    assert rest == ["--out", "o", "--workers", "2"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--input a", "say first what it is"),
        ("--source", "takes one name"),
        ("--source a b", "takes one name"),
        ("--source nothing --input a", "there is no such source"),
        ("--source mnbvc --out o", "source mnbvc: needs --input"),
        ("--source mnbvc --input --out o", "--input needs"),
        ("--out o --tokenizer t", "is needed: see --help"),
        ("--source text --input a --out o", "--tokenizer: is required"),
        ("--source text --input a --out o --tokenizer t --dedup.treshold 1", "did you mean --dedup.threshold"),
        ("--source text --input a --out o --tokenizer nothing", "nothing does not exist"),
    ],
)
def test_mistakes_on_the_command_line_are_told(
    words: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *words.split()])
    with pytest.raises(UserError, match=reason):
        prepare_module.main()


def test_help_teaches_sources_options_and_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", "--source", "mnbvc", "--help"])
    with pytest.raises(SystemExit) as caught:
        prepare_module.main()
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("wiki_zh_2019", "mnbvc_qa", "--dedup.threshold", "--clean.minimum_characters", "--input hub", "--out"):
        assert word in text


def test_the_default_config_holds_the_defaults() -> None:
    """Two places that state a default must state the same."""
    import yaml

    stated = yaml.safe_load(prepare_module.CONFIG.read_text(encoding="utf-8"))
    assert PrepareOptions.model_validate(stated) == PrepareOptions()
    assert set(stated) == set(PrepareOptions.model_fields)


def test_a_hub_dataset_is_prepared_like_files(
    corpus: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_hub: Callable[[str, Path], None],
) -> None:
    folder = tmp_path / "qa" / "20230196" / "zhihu"
    folder.mkdir(parents=True)
    rows = [{"id": i if i % 2 else str(i), "问": document(i, 50), "答": document(i + 1000, 200)} for i in range(40)]
    with gzip.open(folder / "0.jsonl.gz", "wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)
    fake_hub("mnbvc_qa", tmp_path)
    report = prepare("mnbvc_qa", ["hub:qa_zhihu"], tmp_path / "out", tokenizer, PrepareOptions(workers=1, limit=30))
    assert report["kept"] == 30
    assert f"{document(0, 50)}\n{document(1000, 200)}" in documents(tmp_path / "out")


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Let a source's place on the hub be a local folder."""
    import dataclasses

    from data.sources import SOURCES
    from data.sources.base import Hub

    def _fake(name: str, folder: Path) -> None:
        hub = Hub("local", "default", f"{folder}/{{folder}}/*.jsonl.gz")
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], hub=hub))

    return _fake


def test_tokens_are_those_of_the_tokenizer(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions(validation=0))
    loaded, sequences = Tokenizer.load(tokenizer), ShardSet.open(tmp_path / "out").split("train")
    for index in (0, 7, 199):
        wanted = [loaded.bos_id, *loaded.encode(document(index)), loaded.eos_id]
        assert np.array_equal(sequences.tokens(index), wanted)


def test_a_conversation_that_just_fits_a_row_is_not_told_to_be_longer(root: Path, tmp_path: Path) -> None:
    """A report of conversations cut that training does not cut: a row of 512 positions holds 513 ids."""
    from model.template import Template

    small = Tokenizer.load(root / "assets/tokenizer")
    filler, size = "", 0
    while size < 514:
        filler += "的水山天人"[len(filler) % 5]
        size = len(Template().encode(small, [("好", filler)])[0])
        if size in (513, 514):
            row = {"messages": [{"role": "user", "content": "好"}, {"role": "assistant", "content": filler}]}
            (tmp_path / f"{size}.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    for size, longer in ((513, 0), (514, 1)):
        group = Group("openai", (str(tmp_path / f"{size}.jsonl"),))
        report = prepare_groups([group], tmp_path / str(size), root / "assets/tokenizer", PrepareOptions(workers=1))
        assert report["tokens"] == size and report["longer_than"]["512"] == longer

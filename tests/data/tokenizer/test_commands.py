"""`python -m data.tokenizer`: train, import, export, inspect, and mistakes on the way."""

import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from data.tokenizer.__main__ import main
from data.tokenizer.texts import (
    parse_strings,
    read_texts,
    resolve_source_files,
    sample_text_inputs,
)
from data.tokenizer.train import common_chinese_text, reservoir_sample, split_segments
from data.usable_records import MAX_BAD_SHARE
from model.tokenizer import load_tokenizer
from model.tokenizer.base import TOKENIZER_FILE
from model.tokenizer.sentencepiece_normalize import UNUSED, normalize_model
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "assets" / "tokenizer"
TRAIN = ("train", "--vocabulary", 320, "--sentences", 500, "--input")
FRAGMENTS = [
    "春天",
    "来了",
    "小河",
    "的水",
    "慢慢",
    "流",
    "人类",
    "助手",
    "：",
    "，",
    "。",
    "2024年",
    "apple",
    " pie",
    "  ",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three files for three sources."""
    folder, dice = tmp_path_factory.mktemp("corpus"), random.Random(1)
    texts = ["\n".join("".join(dice.choices(FRAGMENTS, k=12)) for _ in range(8)) for _ in range(90)]
    (folder / "plain.txt").write_text("\n\n".join(texts[:30]), encoding="utf-8")
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[30:60]]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    pairs = [{"id": number, "问": text[:20], "答": text} for number, text in enumerate(texts[60:])]
    rows = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (folder / "qa.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data.tokenizer", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenizer", *map(str, arguments)])
    main()


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, *TRAIN, corpus, "--out", out)
    return out


@pytest.mark.slow
def test_tokenizer_training_is_reproducible(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """Prevents SentencePiece's unseeded sampling, with which no tokenizer could be rebuilt."""
    # Another process, with another seed for the order of sets.
    answer = call(*TRAIN, corpus, "--out", tmp_path, PYTHONHASHSEED="2")
    assert answer.returncode == 0, answer.stderr
    assert f"{tmp_path / TOKENIZER_FILE}: 320 ids" in answer.stdout
    assert (tmp_path / TOKENIZER_FILE).read_bytes() == (trained / TOKENIZER_FILE).read_bytes()


@pytest.mark.slow
def test_trained_tokenizer_is_normalized_and_lossless(trained: Path, corpus: Path) -> None:
    """Prevents another size than requested, and a tokenizer that must be imported first."""
    serialized = (trained / TOKENIZER_FILE).read_bytes()
    assert normalize_model(serialized, "trained")[0] == serialized
    tokenizer = SentencePieceTokenizer(serialized)
    assert tokenizer.vocab_size == 320
    assert not any(piece.kind == UNUSED for piece in tokenizer.pieces)
    for text in (
        (corpus / "plain.txt").read_text(encoding="utf-8"),
        "没见过的字：龘\t😀 </s>\n  x",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_colons_and_newlines_are_single_tokens(trained: Path) -> None:
    """Prevents numbers that are split differently every time.

    Also prevents prompts whose last piece contains the first character of the answer.
    """
    texts = [
        piece.text for piece in load_tokenizer(trained).pieces if not piece.text.startswith("<")
    ]
    for alone in [*"0123456789", "："]:
        assert [text for text in texts if alone in text] in ([], [alone])
    assert not any("\n" in text for text in texts)
    assert any(len(text) > 2 for text in texts)


def test_piece_length_is_limited(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents whole sentences of a repetitive corpus from becoming pieces."""
    run(
        monkeypatch,
        "train",
        "--input",
        corpus,
        "--vocabulary",
        320,
        "--longest",
        2,
        "--out",
        tmp_path,
    )
    assert (
        max(
            len(piece.text)
            for piece in load_tokenizer(tmp_path).pieces
            if not piece.text.startswith("<")
        )
        == 2
    )


def test_common_characters_have_ids_even_if_absent_from_text(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents common characters that a small sample lacks from costing three tokens."""
    run(
        monkeypatch,
        "train",
        "--input",
        corpus,
        "--vocabulary",
        4224,
        "--common_characters",
        "--out",
        tmp_path,
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 4224
    assert len(common_chinese_text()) == len(set(common_chinese_text())) > 3755 + 94
    assert all(len(ids) == 1 for ids in tokenizer.encode_batch(list(common_chinese_text())))


def test_the_sample_of_lines_is_bounded_uniform_and_seeded() -> None:
    """Prevents a large corpus from being collected in memory, or only its beginning used."""
    items = [str(number) for number in range(10_000)]
    chosen = reservoir_sample(iter(items), 1000, random.Random(0))
    assert (
        chosen
        == reservoir_sample(iter(items), 1000, random.Random(0))
        != reservoir_sample(iter(items), 1000, random.Random(1))
    )
    assert len(set(chosen)) == 1000
    assert 380 < sum(int(item) >= 6000 for item in chosen) < 420 + 30
    assert reservoir_sample(iter(items), 20_000, random.Random(0)) == items


def test_segments_cover_the_text_and_isolate_colons() -> None:
    """Prevents long lines from being dropped by SentencePiece without a message."""
    text = "人类：你好\n" + "长" * 2500 + "\n\n：：x"
    stretches = list(split_segments([text]))
    assert "".join(stretches) == text.replace("\n", "")
    assert max(map(len, stretches)) == 1000
    assert all(stretch == "：" or "：" not in stretch for stretch in stretches)


@pytest.mark.slow
def test_input_can_name_its_source(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a source from being ignored, or from applying to other inputs."""
    rates = []
    for source in ("jsonl:问", "jsonl:答", "mnbvc_qa"):
        run(
            monkeypatch,
            "inspect",
            "--tokenizer",
            SMALL,
            "--input",
            f"{source}={corpus / 'qa.jsonl'}",
        )
        rates.append(int(capsys.readouterr().out.splitlines()[-1].split()[0]))
    question, answer, both = rates
    assert 0 < question < answer < both
    run(
        monkeypatch,
        "inspect",
        "--tokenizer",
        SMALL,
        "--source",
        "jsonl:问",
        "--input",
        corpus / "qa.jsonl",
    )
    assert int(capsys.readouterr().out.splitlines()[-1].split()[0]) == question


def test_record_text_excludes_ids() -> None:
    """Prevents ids and URLs from becoming pieces."""
    assert (
        parse_strings('{"id": "a_1", "history": [["问", "答\\n了"]], "n": 3}'.encode()).text
        == "问\n答\n了"
    )
    assert parse_strings('{"text": "文", "n": NaN}'.encode()).text == "文"
    assert parse_strings("题目\t摘要 x\n".encode()).text == "题目\n摘要 x"
    assert parse_strings(b"<doc id=0>").text == "" == parse_strings(b"    </short_text>").text
    assert parse_strings("  <summary>标题</summary>".encode()).text == "标题"


@pytest.mark.slow
def test_held_out_sample_files_are_excluded() -> None:
    """Prevents the vocabulary from being trained on text that scores are measured on."""
    files = resolve_source_files(sample_text_inputs(), None)
    names = [path.name for _, path in files]
    assert "wikipedia.jsonl" in names and "train.tsv" in names and "PART_I.txt" in names
    assert not any("test" in name or name.startswith(("dev", "PART_II")) for name in names)
    assert {"wikipedia", "mnbvc", "mnbvc_qa", "wiki_zh_2019", "strings"} <= {
        source.name for source, _ in files
    }
    assert sum(map(len, read_texts(files))) > 500_000


@pytest.mark.slow
def test_import_reports_changes(
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents changes of a stock model from going unreported."""
    run(
        monkeypatch,
        "import",
        "--input",
        shared / "tokenizer" / "llama-chinese-65k.model",
        "--out",
        tmp_path,
    )
    printed = capsys.readouterr().out
    assert "65000 pieces, ids unchanged" in printed
    assert "distinct: 33014 pieces" in printed
    assert "unused: 875 pieces" in printed
    assert "settings changed: add_dummy_prefix off" in printed
    run(monkeypatch, "import", "--input", tmp_path, "--out", tmp_path / "again")
    assert "settings changed: nothing" in capsys.readouterr().out
    assert (tmp_path / "again" / TOKENIZER_FILE).read_bytes() == (
        tmp_path / TOKENIZER_FILE
    ).read_bytes()


@pytest.mark.slow
def test_exported_tokenizer_loads_in_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a tokenizer.json that the tokenizers library refuses."""
    run(monkeypatch, "export", "--tokenizer", SMALL, "--out", tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    import tokenizers

    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    small = load_tokenizer(SMALL)
    assert fast.encode("你好，世界 1").ids == [small.bos_id, *small.encode("你好，世界 1")]


def test_inspect_shows_the_pieces_of_a_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the ids of special pieces or bytes from being printed wrongly."""
    run(monkeypatch, "inspect", "--tokenizer", SMALL, "--text", "人类：\n")
    printed = capsys.readouterr().out
    assert "specials: <unk> 0, <s> 1, </s> 2" in printed
    assert "：:" in printed and "<0x0A>:13" in printed and "characters per token" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command is given; the commands are train"),
        (["train", "--out", "x", "--vocabulary", "many"], "--vocabulary: 'many' is not valid"),
        (
            ["train", "--out", "x", "--vocabulary", "0"],
            "--vocabulary: '0' is not valid; expected at least 260",
        ),
        (
            ["train", "--out", "x", "--coverage", "99"],
            "--coverage: '99' is not valid; expected at most 1",
        ),
        (["train", "--out", "x", "--vocab", "500"], "--vocab: unknown option"),
        (
            ["train", "--out", "x", "--input", "no/such.txt"],
            "--input no/such.txt: there is no such file",
        ),
        (
            ["train", "--out", "x", "--source", "weibo", "--input", "{corpus}"],
            "--source weibo: unknown source",
        ),
        (
            ["train", "--out", "{out}", "--input", "{corpus}", "--vocabulary", "262"],
            "single characters alone need",
        ),
        (
            ["train", "--out", "{out}", "--input", "{corpus}", "--vocabulary", "60000"],
            "supports at most",
        ),
        (
            ["train", "--out", "{out}", "--input", "jsonl={corpus}/qa.jsonl"],
            "there is no field 'text'",
        ),
        (
            ["train", "--out", "{out}", "--input", "{odd}"],
            "name it with --source NAME or SOURCE=PATH$",
        ),
        (
            ["train", "--out", "{out}", "--source", "text", "--input", "{empty}"],
            "there is no text in it",
        ),
        (
            ["import", "--input", "{corpus}/plain.txt", "--out", "{out}"],
            "is not a SentencePiece model",
        ),
        (["import", "--input", "{corpus}", "--out", "{out}"], "does not exist"),
        (["export", "--tokenizer", "nowhere", "--out", "{out}"], "nowhere does not exist"),
        (["inspect", "--tokenizer", "{corpus}/rows.jsonl"], "is not a SentencePiece model"),
    ],
)
def test_user_error_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents tracebacks, and half a tokenizer that passes for a whole one."""
    from common.errors import UserError

    (tmp_path / "empty.txt").touch()
    (tmp_path / "odd.jsonl").write_text('{"body": "文"}')
    names = {"corpus": corpus, "out": tmp_path / "out", "empty": tmp_path / "empty.txt"}
    names["odd"] = tmp_path / "odd.jsonl"
    with pytest.raises(UserError, match=message) as caught:
        run(monkeypatch, *(argument.format(**names) for argument in arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# The module is imported already.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.slow
def test_user_error_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents scripts from taking a mistake for a fault of the program."""
    arguments = ["export", "--tokenizer", "nowhere", "--out", "x"]
    monkeypatch.setattr(sys, "argv", ["tokenizer", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("data.tokenizer", run_name="__main__")
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1 and error.startswith("error: nowhere does not exist")


def test_a_few_bad_records_do_not_end_training(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a few bad records of a real corpus from ending the training."""
    rows = (corpus / "rows.jsonl").read_text(encoding="utf-8").splitlines() * 10
    assert 2 / len(rows) < MAX_BAD_SHARE
    (tmp_path / "rows.jsonl").write_text(
        "\n".join([*rows, "{broken", '{"text": 5}']), encoding="utf-8"
    )
    run(
        monkeypatch,
        "train",
        "--input",
        tmp_path / "rows.jsonl",
        "--vocabulary",
        320,
        "--out",
        tmp_path,
    )
    assert (tmp_path / TOKENIZER_FILE).exists()


@pytest.mark.slow
def test_shipped_tokenizer_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a sample that changed without the tokenizer.

    Train it again as assets/tokenizer/README.md says.
    """
    readme = (SMALL / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in readme.splitlines()]
    command = next(line for line in lines if line.startswith("python -m data.tokenizer train"))
    assert command.endswith("--out assets/tokenizer")
    monkeypatch.chdir(ROOT)
    run(monkeypatch, *command.split()[3:-1], tmp_path)
    assert (tmp_path / TOKENIZER_FILE).read_bytes() == (SMALL / TOKENIZER_FILE).read_bytes()

"""Loss, accuracy and bits per character are sums over all tokens, scored once."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from common.files import MANIFEST
from data.kinds import find_kind
from data.prepare.options import PrepareOptions
from data.records import Document
from data.shards import ShardSet
from data.sources import find_source
from evaluate import perplexity
from evaluate.input_records import read_usable_records
from evaluate.kinds import find_evaluation
from evaluate.kinds.documents import EVALUATION, MAX_DOCUMENT_TOKENS
from evaluate.load_model import load_checkpoint
from evaluate.metrics.language_model import LMScore, score_stream
from evaluate.options import DeviceOptions
from model.chat_template.template import TEMPLATE_FILE
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.prepare import prepare_source


@pytest.fixture
def model(tokenizer: Tokenizer) -> Llama:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return Llama(config).init_weights(0).eval()


def naive(model: Llama, stream: np.ndarray, characters: np.ndarray, window: int) -> LMScore:
    """Score a stream one window at a time, by definition."""
    nats, correct, count, letters = 0.0, 0, 0, 0
    for start in range(0, len(stream) - 1, window):
        ids = torch.from_numpy(stream[start : start + window + 1])
        with torch.no_grad():
            logits = model(ids[None, :-1])[0]
        nats += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
        correct += int((logits.argmax(-1) == ids[1:]).sum())
        count += len(ids) - 1
        letters += int(characters[ids[1:].numpy()].sum())
    return LMScore(nats, count, correct, letters)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 64, 65, 66, 1000])
@pytest.mark.parametrize("rows", [1, 3])
def test_windows_cover_every_token_once(
    model: Llama, tokenizer: Tokenizer, length: int, rows: int
) -> None:
    """Prevents means of batch means, a lost or padded last window, a dependence on the batch."""
    stream = np.random.default_rng(0).integers(0, tokenizer.vocab_size, length)
    expected = naive(model, stream, tokenizer.characters_per_id, 64)
    score = score_stream(model, stream, tokenizer.characters_per_id, window=64, rows=rows)
    assert score.num_tokens == expected.num_tokens == length - 1
    assert (score.num_correct, score.num_characters) == (
        expected.num_correct,
        expected.num_characters,
    )
    assert score.total_nats == pytest.approx(expected.total_nats, rel=1e-5)


def test_metrics_match_their_definitions() -> None:
    """Prevents bits in nats, or per token instead of per character."""
    measures = LMScore(
        total_nats=80 * math.log(2), num_tokens=40, num_correct=10, num_characters=64
    ).compute_metrics()
    assert measures["bits_per_character"] == pytest.approx(80 / 64)
    assert measures["perplexity"] == pytest.approx(4.0) and measures["accuracy"] == 0.25


def save(model: Llama, tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    weights.save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.mark.slow
def test_files_and_their_shard_set_score_equally(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path, run_command: Callable[..., None]
) -> None:
    """Prevents different scores of the same documents as raw files and as a shard set."""
    from common.files import atomic_folder
    from data.sequences import SequenceWriter
    from data.shards import SHARD_FORMAT

    texts = [f"第{number}天，小驼在河边等船。\n船来了，他上了船。" * 30 for number in range(8)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts),
        encoding="utf-8",
    )
    shards = tmp_path / "shards"
    with atomic_folder(shards, {"format": SHARD_FORMAT, "kind": "documents"}) as partial_folder:
        (partial_folder / "tokenizer.model").write_bytes(tokenizer.serialized)
        writer = SequenceWriter(partial_folder, "validation", tokenizer.vocab_size)
        for text in texts:
            writer.add(np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]))
        writer.close()
    folder = save(model, tokenizer, tmp_path / "checkpoint")
    figures = []
    for arguments in (["--source", "jsonl", "--input", str(corpus)], ["--data", str(shards)]):
        out = tmp_path / "out.json"
        run_command(
            perplexity, "--checkpoint", folder, *arguments, "--json", out, "--device", "cpu"
        )
        figures.append(json.loads(out.read_text(encoding="utf-8")))
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
    assert figures[0]["characters"] == figures[1]["characters"] == sum(map(len, texts))
    stream = ShardSet.open(shards).load_text("validation").read_stream(0, 1 << 40)
    assert figures[0]["tokens"] == len(stream) - 1
    expected = naive(model, stream, tokenizer.characters_per_id, 256).compute_metrics()
    assert figures[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.slow
def test_checkpoint_round_trips_weights_and_tied_head(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents lost or changed weights on disk, and a tied head that is loaded untied."""
    tied = Llama(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    ).init_weights(3)
    for name, each in (("untied", model), ("tied", tied)):
        loaded, again = weights.load_checkpoint(
            save(each, tokenizer, tmp_path / name), torch.device("cpu")
        )
        assert again.fingerprint == tokenizer.fingerprint and loaded.config == each.config
        for key, tensor in each.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not (tmp_path / "tied" / MANIFEST).exists()


@pytest.mark.slow
def test_limit_counts_records_in_shard_sets(
    root: Path, model: Llama, tokenizer: Tokenizer, tmp_path: Path, run_command: Callable[..., None]
) -> None:
    """Prevents a `--limit` without effect on shard sets, and an empty split without advice."""
    from data.prepare.options import PrepareOptions
    from data.prepare.pipeline import prepare_groups
    from data.prepare.source_args import SourceGroup

    folder, csl = (
        save(model, tokenizer, tmp_path / "checkpoint"),
        root / "assets/sample/summary/csl/dev.tsv",
    )
    options = PrepareOptions(workers=1, limit=12, validation=0)
    prepare_groups(
        [SourceGroup("csl", (str(csl),))], tmp_path / "shards", root / "assets/tokenizer", options
    )
    arguments = [
        "--checkpoint",
        str(folder),
        "--device",
        "cpu",
        "--json",
        str(out := tmp_path / "out.json"),
    ]
    scored = []
    for more in (
        ["--data", str(tmp_path / "shards"), "--split", "train"],
        ["--source", "csl", "--input", str(csl)],
    ):
        run_command(perplexity, *arguments, *more, "--limit", "3")
        scored.append(json.loads(out.read_text(encoding="utf-8"))["tokens"])
    titles = [line.split("\t")[0] for line in csl.read_text(encoding="utf-8").splitlines()[:3]]
    assert scored == [sum(len(tokenizer.encode(title)) + 1 for title in titles)] * 2
    with pytest.raises(UserError, match=r"no record.*--source"):
        run_command(perplexity, *arguments, "--data", str(tmp_path / "shards"))


@pytest.mark.slow
def test_records_exceeding_a_row_are_counted(
    root: Path,
    model: Llama,
    tokenizer: Tokenizer,
    tmp_path: Path,
    run_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a silent score of a part of the records, and other counts for a shard set."""
    from data.prepare.options import PrepareOptions
    from data.prepare.pipeline import prepare_groups
    from data.prepare.source_args import SourceGroup

    long = "".join(chr(0x4E00 + 7 * index) for index in range(400))
    talks = [
        ["你好！", "你好，去哪里？"],
        ["讲个故事吧。", long],
        ["早上好！", "早。", "后来呢？", long],
        [long, "知道了。"],
    ]
    corpus = tmp_path / "dialog_release.json"
    corpus.write_text(
        json.dumps([{"content": talk} for talk in talks], ensure_ascii=False), encoding="utf-8"
    )
    model.trained_context = 256  # the length of its training rows
    folder = save(model, tokenizer, tmp_path / "checkpoint")
    prepare_groups(
        [SourceGroup("naturalconv", (str(corpus),))],
        tmp_path / "shards",
        root / "assets/tokenizer",
        PrepareOptions(workers=1, validation=0),
    )
    native, shards = (
        ["--source", "naturalconv", "--input", corpus],
        ["--data", tmp_path / "shards", "--split", "train"],
    )
    for limit, counted in (((), (2, 2, 1)), (("--limit", 2), (1, 1, 0))):
        for text in (native, shards):
            run_command(
                perplexity,
                "--checkpoint",
                folder,
                *text,
                *limit,
                "--device",
                "cpu",
                "--json",
                out := tmp_path / "out",
            )
            figures = json.loads(out.read_text(encoding="utf-8"))
            assert (figures["records"], figures["left_out"], figures["cut"]) == counted, text
            assert figures["measured"] == "answers only, rows of 256"
            assert (
                f"{counted[0]} records scored, {counted[1]} left out (no answer fits a row of 256 "
                f"tokens), {counted[2]} cut"
            ) in capsys.readouterr().out


@pytest.mark.slow
def test_a_set_with_another_template_is_refused(
    root: Path, model: Llama, tokenizer: Tokenizer, tmp_path: Path, run_command: Callable[..., None]
) -> None:
    """Prevents a loss on conversations in the words of a template that the model does not know."""
    corpus = tmp_path / "dialog_release.json"
    dialogues = [{"content": [f"第{number}个问题", "答案"]} for number in range(9)]
    corpus.write_text(json.dumps(dialogues, ensure_ascii=False), encoding="utf-8")
    set_folder = tmp_path / "shards"
    prepare_source(
        "naturalconv",
        [str(corpus)],
        set_folder,
        root / "assets/tokenizer",
        PrepareOptions(workers=1),
    )
    folder = save(model, tokenizer, tmp_path / "checkpoint")
    arguments = ("--checkpoint", folder, "--data", set_folder, "--device", "cpu")
    run_command(perplexity, *arguments)
    template = (set_folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    # Of equal size, so that the manifest still fits.
    (set_folder / TEMPLATE_FILE).write_text(template.replace("人类", "用户"), encoding="utf-8")
    with pytest.raises(UserError, match="another chat template than"):
        run_command(perplexity, *arguments)


@pytest.mark.slow
def test_unreadable_documents_are_skipped_with_warning(
    model: Llama,
    tokenizer: Tokenizer,
    tmp_path: Path,
    run_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a count of bad lines without the place of the first."""
    (corpus := tmp_path / "corpus.jsonl").write_text(
        '{"text": "船来了。"}\nno json\n{"text": "他上了船。"}\n{}\n'
    )
    run_command(
        perplexity,
        "--checkpoint",
        save(model, tokenizer, tmp_path / "checkpoint"),
        "--source",
        "jsonl",
        "--input",
        corpus,
        "--device",
        "cpu",
    )
    output = capsys.readouterr().out
    assert (
        "left out, unreadable: 2 records, the first" in output and "corpus.jsonl line 2" in output
    )


@pytest.mark.slow
def test_unreadable_record_is_skipped_with_warning(
    root: Path,
    model: Llama,
    tokenizer: Tokenizer,
    tmp_path: Path,
    run_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a silent score of fewer records than the file has."""
    folder = save(model, tokenizer, tmp_path / "checkpoint")
    lines = (
        (root / "assets/sample/summary/csl/dev.tsv").read_text(encoding="utf-8").splitlines()[:8]
    )
    (tmp_path / "csl.tsv").write_text(
        "\n".join([*lines, "no tab in this line"]) + "\n", encoding="utf-8"
    )
    run_command(
        perplexity,
        "--checkpoint",
        folder,
        "--device",
        "cpu",
        "--source",
        "csl",
        "--input",
        tmp_path / "csl.tsv",
    )
    output = capsys.readouterr().out
    assert "left out, unreadable: 1 records" in output and "csl.tsv line 9" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("csl", "{sample}/summary/csl/dev.tsv"),
        ("redgpt", "{sample}/sft/redgpt/RedGPT-Dataset-V1-CN.test.json"),
        ("preferences", "{tmp}/pairs.jsonl"),
    ],
)
def test_scores_of_single_records_add_up(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path, root: Path, source: str, path: str
) -> None:
    """Prevents a loss of other tokens, or of another record, where pairs are compared."""
    pairs = [
        {"prompt": f"{number}加一等于几？", "chosen": f"等于{number + 1}。", "rejected": "不知道。"}
        for number in range(12)
    ]
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    kind = find_kind(find_source(source).kind)
    inputs = [path.format(sample=root / "assets" / "sample", tmp=tmp_path)]
    records = read_usable_records(source, inputs, kind, 12)
    evaluation = find_evaluation(kind)
    loaded = load_checkpoint(
        save(model, tokenizer, tmp_path / "x"), DeviceOptions(), torch.device("cpu")
    )
    scores = evaluation.score_each(loaded, records)
    total = evaluation.score_files(loaded, source, inputs, 12).score
    assert len(scores) == 12
    assert sum(scores, LMScore()) == replace(
        total, total_nats=pytest.approx(total.total_nats, rel=1e-5)
    )
    assert evaluation.score_each(loaded, records[5:6]) == scores[5:6]


def test_documents_are_scored_by_themselves(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents windows that begin in the document before, and hours for a book."""
    loaded = load_checkpoint(
        save(model, tokenizer, tmp_path / "x"), DeviceOptions(), torch.device("cpu")
    )
    texts = ["春天来了。", "村里的人都出门去看花。" * 40, "河水涨了，船来了。" * 1000]
    scores = EVALUATION.score_each(loaded, [Document(text) for text in texts])
    for text, score in zip(texts, scores, strict=True):
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id])
        expected = naive(model, ids[:MAX_DOCUMENT_TOKENS], tokenizer.characters_per_id, 256)
        assert score == replace(expected, total_nats=pytest.approx(expected.total_nats, rel=1e-5))
    assert scores[2].num_tokens == MAX_DOCUMENT_TOKENS - 1

"""Preferences as ids: the prompt once, then both answers with their ends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.kinds.base import TextLengths
from data.kinds.preferences import KIND
from data.records import Preference, Turn
from model.chat_template.template import ImportedTemplate, Template
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import build_imported_tokenizer
from tests.data.conftest import write_records
from tests.helpers import hf_checkpoints

RECORDS = [
    Preference((), "今天吃什么？", "吃面条。", "吃面条。吃面条。"),
    Preference(
        (Turn("你好", "你好！"),), "天上有什么？", "云", "有很多云，也有星星。", "资料", "简短"
    ),
    # Both answers begin with the same ids, which belong to both, not to the prompt.
    Preference((), "问", "好的，一", "好的，二"),
    Preference((), "问", "好的", "好的，二"),
]
CUT = replace(RECORDS[0], rejected_is_cut=True)


def merging_tokenizer() -> Tokenizer:
    """Return an imported tokenizer that has a piece for the end of a prompt and 好."""
    texts = ["人类：问\n\n助手：好的，一", "助手：好", "：好", "天上有很多云，也有星星。"] * 20
    definition = json.loads(hf_checkpoints.train_sentencepiece_bpe(texts, vocab_size=600).to_str())
    assert any(piece.endswith("：好") for piece in definition["model"]["vocab"])
    return build_imported_tokenizer(definition, {}, 1, 2, 0, Path("tokenizer.json"))


@pytest.mark.parametrize("is_imported", [False, True])
def test_both_conversations_have_their_own_ids(tokenizer: Tokenizer, is_imported: bool) -> None:
    """Prevents an answer without its end, and ids that chat with the model never sees."""
    used = merging_tokenizer() if is_imported else tokenizer
    template = ImportedTemplate(assistant="\n\n助手：") if is_imported else Template()
    for record, (ids, spans) in zip(RECORDS, KIND.encode(used, template, RECORDS), strict=True):
        (start, middle), (second, stop) = spans
        assert second == middle and stop == len(ids)
        turns = [(turn.question, turn.answer) for turn in record.turns]
        for answer, answer_ids in (
            (record.chosen, ids[start:middle]),
            (record.rejected, ids[middle:]),
        ):
            whole = template.encode(
                used, [*turns, (record.question, answer)], record.reference, record.system
            )
            assert ids[:start] + answer_ids == whole.ids
            assert answer_ids[-1] == used.eos_id
            assert start <= whole.answer_spans[-1][0]


@pytest.mark.parametrize("is_imported", [False, True])
def test_answer_that_is_cut_has_no_end(tokenizer: Tokenizer, is_imported: bool) -> None:
    """Prevents a model that learns not to stop after a loop, from an end that it never gave."""
    used = merging_tokenizer() if is_imported else tokenizer
    template = ImportedTemplate(assistant="：", finish="。\n") if is_imported else Template()
    whole, cut = KIND.encode(used, template, [RECORDS[0], CUT])
    assert cut[1][0] == whole[1][0] and cut[1][1][1] == len(cut[0])
    rejected = cut[0][cut[1][1][0] :]
    assert used.eos_id not in rejected and used.decode(rejected) == "吃面条。吃面条。"
    if not is_imported:
        assert [*cut[0], used.eos_id] == whole[0]


def test_prompt_ends_before_what_the_answers_have_in_common(tokenizer: Tokenizer) -> None:
    """Prevents a common beginning of both answers that is taken for the prompt."""
    for record, (ids, spans) in zip(
        RECORDS, KIND.encode(tokenizer, Template(), RECORDS), strict=True
    ):
        turns = [(turn.question, turn.answer) for turn in record.turns]
        prompt = Template().encode_prompt(
            tokenizer, turns, record.question, record.reference, record.system
        )
        assert ids[: spans[0][0]] == prompt


def test_piece_across_the_seam_is_of_its_answer() -> None:
    """Prevents one answer's first piece in the prompt of the other answer."""
    tokenizer = merging_tokenizer()
    template = ImportedTemplate(assistant="\n\n助手：")
    record = Preference((), "问", "好的", "云")
    ((ids, spans),) = KIND.encode(tokenizer, template, [record])
    start, middle = spans[0]
    chosen = tokenizer.decode(ids[start : middle - 1])
    assert chosen.endswith("好的") and chosen != "好的"
    assert tokenizer.decode(ids[middle:-1]).endswith("云")


def test_piece_before_the_seam_may_depend_on_the_answer() -> None:
    """Prevents the prompt of one answer before the other: ids that chat never has."""
    definition = json.loads(hf_checkpoints.train_sentencepiece_bpe(["助手：好云"] * 9).to_str())
    model = definition["model"]
    # 助手 | ：好 with the first answer, 助 | 手： | 云 with the second.
    merges = [("：", "好"), ("手", "："), ("助", "手")]
    single = [piece for piece in model["vocab"] if len(piece) == 1 or piece.startswith("<")]
    model["vocab"] = {piece: index for index, piece in enumerate([*single, *map("".join, merges)])}
    model["merges"] = [list(pair) for pair in merges]
    tokenizer = build_imported_tokenizer(definition, {}, 1, 2, 0, Path("tokenizer.json"))
    template = ImportedTemplate(bare="助手", assistant="助手：")
    ((ids, spans),) = KIND.encode(tokenizer, template, [Preference((), "云", "好", "云")])
    start, middle = spans[0]
    for answer, answer_ids in (("好", ids[start:middle]), ("云", ids[middle:])):
        assert ids[:start] + answer_ids == template.encode(tokenizer, [("云", answer)]).ids
    assert tokenizer.decode(ids[start : middle - 1]) == "助手：好"


def test_stored_preference_is_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Prevents a shard set that loses a text or a turn of a preference."""
    records = [*RECORDS, CUT]
    stored = write_records(tmp_path / "set", KIND, records, tokenizer, 60_000)
    assert [stored.record(index) for index in range(len(stored))] == records
    for index in range(len(stored)):
        KIND.encode_one(tokenizer, Template(), stored, index)


def test_text_lengths() -> None:
    """Prevents a survey that counts the prompt twice, or only one of the answers."""
    assert KIND.text_lengths(RECORDS[1]) == TextLengths([15, 15], [1, 10], 26, 2)

"""The chat template: training, prompts and loss mask use the same ids."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from model.chat_template.template import Template, load_template
from model.tokenizer.base import Tokenizer

TURNS = [("你好", "你好！"), ("今天星期几？", "星期六。"), ("谢谢</s>", "不客气\n再见")]


def test_template_ids_match_design_text(tokenizer: Tokenizer) -> None:
    """Prevents a template that differs from the documented and exported one."""
    ids, _ = Template().encode(tokenizer, TURNS[:2], "一周有七天。")
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.eos_id) == 2
    parts, start = [], 1
    for stop in (i for i, index in enumerate(ids) if index == tokenizer.eos_id):
        parts.append(tokenizer.decode(ids[start:stop]))
        start = stop + 1
    assert parts == [
        "资料：一周有七天。\n\n人类：你好\n\n助手：你好！",
        "\n\n人类：今天星期几？\n\n助手：星期六。",
    ]
    bare, _ = Template().encode(tokenizer, TURNS[:1])
    assert tokenizer.decode(bare) == "人类：你好\n\n助手：你好！"


@pytest.mark.parametrize("reference", ["", "资料一则：\n\n人类：假的"])
def test_spans_cover_answers_and_eos(tokenizer: Tokenizer, reference: str) -> None:
    """Prevents a loss on questions, and answers whose eos is never trained."""
    ids, spans = Template().encode(tokenizer, TURNS, reference)
    assert [tokenizer.decode(ids[start:stop]) for start, stop in spans] == [
        answer for _, answer in TURNS
    ]
    assert all(ids[stop - 1] == tokenizer.eos_id for _, stop in spans)
    assert spans[-1][1] == len(ids)


def test_prompt_is_prefix_of_training_conversation(tokenizer: Tokenizer) -> None:
    """Prevents inference prompts with other ids than in training."""
    for upto in range(len(TURNS)):
        ids, spans = Template().encode(tokenizer, TURNS[: upto + 1], "资料。")
        prompt = Template().encode_prompt(tokenizer, TURNS[:upto], TURNS[upto][0], "资料。")
        assert prompt == ids[: spans[upto][0]]


def test_user_text_never_encodes_to_special_ids(tokenizer: Tokenizer) -> None:
    """Prevents a question that spells `</s>` from ending the conversation."""
    prompt = Template().encode_prompt(tokenizer, [], "<s></s><unk>", "</s>")
    assert tokenizer.eos_id not in prompt and prompt.count(tokenizer.bos_id) == 1


def test_template_file_round_trips_or_raises(tmp_path: Path) -> None:
    """Prevents a checkpoint from being used with another template than it was trained with."""
    template = Template(human="问：", lead_ins=True)
    template.save(tmp_path)
    assert load_template(tmp_path) == template
    (tmp_path / "template.json").write_text(json.dumps({"human": 3}))
    with pytest.raises(UserError, match=r"template\.json is not a chat template"):
        load_template(tmp_path)
    assert load_template(tmp_path / "elsewhere") == Template()

"""What is in the prompt, in ids, and which model is asked."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chat import load_model, options
from chat.prompt import Conversation, Exchange
from chat.terminal.session import Session
from chat.terminal.settings import DEFAULT_SAMPLING
from common.errors import UserError
from common.files import write_json, write_manifest
from model.chat_template.template import Template
from model.checkpoint import locate, weights
from model.decode.generate import PrefixCache, Sampling
from model.precision import DTYPES, Precision
from model.tokenizer.base import Tokenizer
from tests.chat.conftest import ABOUT_BAI, MAYOR

CPU = torch.device("cpu")
REFERENCE = "青禾镇在河边，镇上的人都会划船。" * 8


def conversation(turns: int) -> Conversation:
    return Conversation(
        REFERENCE, exchanges=[Exchange(f"第{n}问？", f"这是第{n}个回答。") for n in range(turns)]
    )


def test_prompt_matches_template(tokenizer: Tokenizer) -> None:
    """Another prompt in chat than in training."""
    turns = [(f"第{n}问？", f"这是第{n}个回答。") for n in range(3)]
    prompt = conversation(3).build_prompt(tokenizer, Template(), "为什么？", 1000)
    assert prompt.ids == Template().encode_prompt(tokenizer, turns, "为什么？", REFERENCE)
    assert (prompt.num_dropped_turns, prompt.num_reference_characters) == (0, len(REFERENCE))


def test_oldest_turns_are_dropped_and_reference_is_kept(tokenizer: Tokenizer) -> None:
    """A full context that forgets the reference, the newest turns, or more than it must."""
    talk = conversation(6)
    turns = [(each.question, each.answer) for each in talk.exchanges]
    needed = [
        len(Template().encode_prompt(tokenizer, turns[n:], "为什么？", REFERENCE)) for n in range(7)
    ]
    prompt = talk.build_prompt(tokenizer, Template(), "为什么？", needed[2])
    assert (
        prompt.ids == Template().encode_prompt(tokenizer, turns[2:], "为什么？", REFERENCE)
        and prompt.dropped == 2
    )
    prompt = talk.build_prompt(tokenizer, Template(), "为什么？", needed[4] - 1)
    assert prompt.ids == Template().encode_prompt(tokenizer, turns[5:], "为什么？", REFERENCE)
    assert prompt.num_dropped_turns == 3 and talk.num_forgotten == 5 and len(talk.exchanges) == 6


def test_long_reference_is_truncated_at_its_end(tokenizer: Tokenizer) -> None:
    """A long reference that drives out the question, or of which more is lost than must be."""
    text = "青禾镇在河边，镇上的人都会划船，会做灯笼，也会讲故事。" * 20
    whole = len(Template().encode_prompt(tokenizer, [], "为什么？", text))
    for room in (40, 100, whole - 1):
        prompt = Conversation(text).build_prompt(tokenizer, Template(), "为什么？", room)
        assert prompt.ids == Template().encode_prompt(
            tokenizer, [], "为什么？", text[: prompt.reference]
        )
        assert (
            0 < prompt.num_reference_characters < len(text) and room - 2 <= len(prompt.ids) <= room
        )
    with pytest.raises(UserError, match="问题太长"):
        Conversation(text).build_prompt(tokenizer, Template(), "为什么" * 60, 40)


def test_prefix_cache_does_not_change_answers(talker: Path) -> None:
    """Keys and values of an earlier turn that do not belong to this prompt."""
    loaded = replace(load_model.load_chat_model(talker, CPU, "fp32"), context_length=80)
    sampling = Sampling(temperature=1.5, top_p=1.0, repetition_penalty=1.1)
    kept, fresh = (Session(loaded, sampling, 30, 0) for _ in range(2))
    said = []
    for number in range(24):
        for session in (kept, fresh):
            if number in (8, 16):
                session.start_conversation(ABOUT_BAI if number == 8 else "")
        question = (MAYOR, "我叫书白。", "我叫什么？")[number % 3]
        prompt = kept.build_prompt(question)
        assert prompt == fresh.build_prompt(question)
        fresh._prefix_cache = PrefixCache(loaded.model, loaded.context_length)
        answer, expected = ("".join(session.stream_answer(prompt)) for session in (kept, fresh))
        assert answer == expected and kept.finish_reason == fresh.finish_reason
        assert kept._prefix_cache._ids[: len(prompt.ids)] == prompt.ids, (
            "nothing was kept for the next turn"
        )
        for session in (kept, fresh):
            session.add_exchange(question, answer, is_interrupted=False)
        said.append(answer)
    assert len(set(said)) > 7 and max(each.num_forgotten for each in kept.conversations) > 0, (
        "too easy to show anything"
    )


def make_run(
    runs: Path, name: str, checkpoint: Path, saved: int, *, template: bool, length: int = 64
) -> Path:
    """A run with one checkpoint, saved at a given time."""
    step = locate.step_folder(runs / name, 7)
    step.mkdir(parents=True)
    model, tokenizer = weights.load_checkpoint(checkpoint, CPU)
    model.trained_context = length
    weights.save_checkpoint(model, tokenizer, step)
    if template:
        Template().save(step)
    write_manifest(step)
    write_json(runs / name / "run.json", {})
    os.utime(step, (saved, saved))
    return step


def test_newest_run_is_chosen_preferring_fine_tuned(talker: Path, tmp_path: Path) -> None:
    """A chat with a run that only continues text while one that converses lies beside it; an unfinished run taken."""
    with pytest.raises(UserError, match="make pretrain"):
        load_model.find_default_run(tmp_path / "runs")
    runs = tmp_path / "runs"
    for name, saved, template in (
        ("old", 100, True),
        ("new", 200, True),
        ("pretrained", 300, False),
    ):
        make_run(runs, name, talker, saved, template=template)
    (runs / "unfinished").mkdir()
    write_json(runs / "unfinished" / "run.json", {})
    assert load_model.find_default_run(runs) == runs / "new"
    loaded = load_model.load_chat_model(runs / "new", CPU, "auto")
    assert loaded.folder == runs / "new/checkpoints/step-00000007" and loaded.is_chat_tuned
    assert not load_model.load_chat_model(runs / "pretrained", CPU, "auto").is_chat_tuned


def test_unfinished_run_gives_a_warning(talker: Path, tmp_path: Path) -> None:
    """Bad answers of a model that Ctrl-C stopped at a tenth, taken for all that it can; a word about one that is whole."""
    for name, steps in (("stopped", 9), ("whole", 7)):
        write_manifest(
            make_run(tmp_path, name, talker, 100, template=True), {"step": 7, "steps": steps}
        )
    write_json(tmp_path / "stopped" / "run.json", {"fingerprints": {"template": {}}})
    said = load_model.load_chat_model(tmp_path / "stopped", CPU, "auto").description
    assert said.endswith(
        f"，还没训练完：到第 7 步，共 9 步；接着训练：make sft RUN={tmp_path / 'stopped'}"
    )
    write_json(tmp_path / "stopped" / "run.json", {"fingerprints": None})
    assert (
        "make pretrain RUN="
        in load_model.load_chat_model(tmp_path / "stopped", CPU, "auto").description
    )
    # A checkpoint of an earlier version, in a folder whose name is two words to a shell.
    write_manifest(make_run(tmp_path, "two words", talker, 100, template=True), {"step": 7})
    write_json(tmp_path / "two words" / "run.json", {"fingerprints": {"max_steps": 20}})
    said = load_model.load_chat_model(tmp_path / "two words", CPU, "auto").description
    assert said.endswith(
        f"到第 7 步，共 20 步；接着训练：make pretrain 'RUN={tmp_path / 'two words'}'"
    )
    for path in (tmp_path / "whole", tmp_path / "stopped/checkpoints/step-00000007", talker):
        assert "还没训练完" not in load_model.load_chat_model(path, CPU, "auto").description


def test_context_is_trained_length(talker: Path, tmp_path: Path) -> None:
    """A model trained on rows of 64 that is asked about positions it has never seen."""
    make_run(tmp_path, "short", talker, 100, template=True)
    make_run(tmp_path, "long", talker, 100, template=True, length=5000)
    assert load_model.load_chat_model(tmp_path / "short", CPU, "auto").context_length == 64
    assert (
        load_model.load_chat_model(tmp_path / "long", CPU, "auto").context_length
        == load_model.load_chat_model(talker, CPU, "auto").context_length
        == 256
    )
    loaded, _ = weights.load_checkpoint(tmp_path / "short", CPU)
    assert loaded.trained_context == 64 and loaded.config.max_position_embeddings == 256


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_chat_works_in_low_precision(talker: Path, precision: Precision) -> None:
    """A precision that is announced and not used, or that the model cannot compute in."""
    session = Session(
        load_model.load_chat_model(talker, CPU, precision), Sampling(temperature=0), 30, 0
    )
    session.start_conversation(ABOUT_BAI)
    assert (
        "".join(session.stream_answer(session.build_prompt(MAYOR))) == "白云飞"
        and session.end == "eos"
    )
    assert (
        session._prefix_cache._cache.keys.dtype == DTYPES[precision]
        and precision in session.loaded_model.description
    )


def test_overflow_gives_one_line_error(talker: Path) -> None:
    """A traceback, or nonsense, where fp16 has overflowed."""
    loaded = load_model.load_chat_model(talker, CPU, "fp16")
    with torch.no_grad():
        loaded.model.model.norm.weight.fill_(60000)
    session = Session(loaded, Sampling(temperature=0), 30, 0)
    with pytest.raises(UserError, match="--precision fp32"):
        list(session.stream_answer(session.build_prompt(MAYOR)))


def test_options_default_to_settings_and_reject_invalid_values() -> None:
    """An option that is read and not used; a value out of range that fails in the middle of an answer."""
    assert options.parse_chat_options([]).to_sampling() == DEFAULT_SAMPLING
    said = [
        "--temperature",
        "0",
        "--top_p",
        "0.5",
        "--top_k",
        "9",
        "--repetition_penalty",
        "2",
        "--no_repeat_ngram",
        "3",
    ]
    assert options.parse_chat_options(said).to_sampling() == Sampling(0.0, 9, 0.5, 2.0, 3)
    for name, value in (
        ("temperature", "nan"),
        ("temperature", "-1"),
        ("top_p", "1.5"),
        ("top_k", "2.5"),
        ("seed", "-1"),
        ("repetition_penalty", "0.5"),
        ("max_new_tokens", "0"),
        ("max_new_tokens", "many"),
    ):
        with pytest.raises(UserError, match=f"--{name}: {value}：要一"):
            options.parse_chat_options([f"--{name}", value])

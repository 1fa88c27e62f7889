"""A chat session without its console: conversations, the prefix cache, precision."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chat import load_model
from chat.terminal.session import Conversation, Session
from common.errors import UserError
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling
from model.precision import DTYPES, Precision
from tests.chat.conftest import BAI_REFERENCE, MAYOR_QUESTION

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0)


def load_with_context(checkpoint: Path, context_length: int) -> load_model.LoadedModel:
    loaded_model = load_model.load_chat_model(checkpoint, CPU, "fp32")
    return replace(loaded_model, context_length=context_length)


def test_forgotten_exchanges_stay_forgotten(talker: Path) -> None:
    """Prevents old turns that come back into the prompt after a short question."""
    session = Session(load_with_context(talker, 90), GREEDY, 20, 0)
    for number in range(4):
        session.add_exchange(f"第{number}问？", f"这是第{number}个回答。", is_interrupted=False)
    assert session.build_prompt("为什么" * 10).num_dropped_turns > 0
    num_forgotten = session.conversation.num_forgotten
    assert session.build_prompt("嗯").num_dropped_turns == 0
    assert session.conversation.num_forgotten == num_forgotten > 0
    assert len(session.conversation.exchanges) == 4
    with pytest.raises(UserError, match="问题太长：共 "):
        session.build_prompt("问" * 600)


@pytest.mark.slow
def test_prefix_cache_does_not_change_answers(talker: Path) -> None:
    """Prevents keys and values of an earlier prompt from leaking into this one."""
    loaded_model = load_with_context(talker, 80)
    sampling = Sampling(temperature=1.5, top_p=1.0, repetition_penalty=1.1)
    cached, uncached = (Session(loaded_model, sampling, 30, 0) for _ in range(2))
    answers = []
    for number in range(24):
        for session in (cached, uncached):
            if number in (8, 16):
                session.start_conversation(Conversation(BAI_REFERENCE if number == 8 else ""))
        question = (MAYOR_QUESTION, "我叫书白。", "我叫什么？")[number % 3]
        prompt = cached.build_prompt(question)
        assert prompt == uncached.build_prompt(question)
        uncached._prefix_cache = PrefixCache(loaded_model.model, loaded_model.context_length)
        answer, expected = ("".join(each.stream_answer(prompt)) for each in (cached, uncached))
        assert answer == expected and cached.finish_reason == uncached.finish_reason
        assert cached._prefix_cache._ids[: len(prompt.ids)] == prompt.ids, (
            "the next turn finds nothing in the cache"
        )
        for session in (cached, uncached):
            session.add_exchange(question, answer, is_interrupted=False)
        answers.append(answer)
    assert len(set(answers)) > 7, "too few different answers to prove anything"
    assert max(each.num_forgotten for each in cached.conversations) > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_chat_works_in_low_precision(talker: Path, precision: Precision) -> None:
    """Prevents a precision that is announced and not used, or that cannot be computed in."""
    loaded_model = load_model.load_chat_model(talker, CPU, precision)
    session = Session(loaded_model, GREEDY, 30, 0)
    session.start_conversation(Conversation(BAI_REFERENCE))
    answer = "".join(session.stream_answer(session.build_prompt(MAYOR_QUESTION)))
    assert answer == "白云飞" and session.finish_reason == "eos"
    assert session._prefix_cache._cache.keys.dtype == DTYPES[precision]
    assert precision in loaded_model.description


def test_overflow_gives_one_line_error(talker: Path) -> None:
    """Prevents a traceback, or nonsense, after an overflow in fp16."""
    loaded_model = load_model.load_chat_model(talker, CPU, "fp16")
    with torch.no_grad():
        loaded_model.model.model.norm.weight.fill_(60000)
    session = Session(loaded_model, GREEDY, 30, 0)
    with pytest.raises(UserError, match="--precision fp32"):
        list(session.stream_answer(session.build_prompt(MAYOR_QUESTION)))

"""The same messages give the same ids in training, evaluation, server, chat and transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from chat.prompt import fit_prompt
from chat.serve.protocol import conversation_from_messages, parse_request
from data.kinds.conversations import KIND
from data.records import Conversation
from data.sources import SOURCES
from evaluate.kinds.conversations import extract_questions
from model.chat_template.template import Template, load_template
from model.chat_template.to_jinja import build_jinja_template
from model.checkpoint import locate
from model.interop.hf_import import import_hf
from model.tokenizer import hf_json
from model.tokenizer.base import Tokenizer
from tests.helpers import hf_checkpoints

Messages = list[dict[str, str]]
SYSTEM, QUESTION, ANSWER = "你是一名厨师。", "今天吃什么？", "吃面条。"
TEMPLATES = {
    **hf_checkpoints.CHAT_TEMPLATES,
    "llama2": hf_checkpoints.LLAMA2_TEMPLATE,
    "zephyr": hf_checkpoints.ZEPHYR_TEMPLATE,
}
# Roles by their first letters; the last message is the answer that is trained on.
ALTERNATING = ("ua", "uaua", "sua", "suaua")
# What chat templates of others refuse, or render as several turns; ours refuses the last one.
JOINED = ("uua", "suuaua", "aua", "saua", "sdua", "uaauua")


@dataclass(frozen=True)
class Setting:
    """A tokenizer and a template, and transformers' own tokenizer with the same in Jinja."""

    tokenizer: Tokenizer
    template: Template
    theirs: Any


@pytest.fixture(scope="module")
def setting(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Setting]:
    """Return the setting of a template by name: `ours`, or one of `TEMPLATES`, imported."""
    from transformers import AutoTokenizer, LlamaConfig

    @cache
    def build(name: str) -> Setting:
        folder = tmp_path_factory.mktemp(name)
        if name == "ours":
            jinja = build_jinja_template(Template())
            hf_json.export_tokenizer(tokenizer, folder, chat_template=jinja)
            LlamaConfig(vocab_size=tokenizer.vocab_size).save_pretrained(folder)
            return Setting(tokenizer, Template(), AutoTokenizer.from_pretrained(folder))
        backend = hf_checkpoints.train_byte_level_bpe([SYSTEM, QUESTION, ANSWER])
        names = ("<|begin|>", "<|end|>")
        hf_checkpoints.save_hf_checkpoint(folder / "theirs", backend, names, TEMPLATES[name])
        _, imported, note = import_hf(folder / "theirs", folder / "run")
        assert note == "its own chat template"
        template = load_template(locate.resolve_checkpoint(folder / "run"))
        return Setting(imported, template, AutoTokenizer.from_pretrained(folder / "theirs"))

    return build


def build_messages(roles: str, pad: str = "") -> Messages:
    """Return numbered messages of the roles that the letters stand for, with `pad` around them."""
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    texts = {"s": SYSTEM, "d": SYSTEM, "u": QUESTION, "a": ANSWER}
    return [
        {"role": names[letter], "content": f"{pad}{texts[letter]}{number}{pad}"}
        for number, letter in enumerate(roles)
    ]


def read_record(source: str, row: dict[str, Any]) -> Conversation:
    record = SOURCES[source].parse(orjson.dumps(row))
    assert isinstance(record, Conversation)
    return record


def training_ids(setting: Setting, record: Conversation) -> tuple[list[int], list[int]]:
    """Return the ids of a training example, and those before its last answer."""
    ((ids, spans),) = KIND.encode(setting.tokenizer, setting.template, [record])
    return ids, ids[: spans[-1][0]]


def serving_ids(setting: Setting, messages: Messages, *passages: str) -> list[int]:
    """Return the ids of the prompt that the server makes of messages, and of a passage if any."""
    documents = [{"text": passage} for passage in passages]
    request = parse_request(
        orjson.dumps({"model": "m", "messages": messages, "documents": documents})
    )
    conversation = conversation_from_messages(request.messages)
    return fit_prompt(
        setting.tokenizer,
        setting.template,
        conversation.turns,
        conversation.question,
        request.documents[0].text if documents else "",
        10_000,
        truncate_reference=False,
        system=conversation.system,
    ).ids


def evaluation_ids(setting: Setting, record: Conversation) -> list[int]:
    """Return the ids of the prompt for the last question of a conversation."""
    question = extract_questions(record)[-1]
    return setting.template.encode_prompt(
        setting.tokenizer, question.history, question.question, question.passage, question.system
    )


def their_ids(setting: Setting, messages: Messages, **options: Any) -> list[int]:
    ids: list[int] = setting.theirs.apply_chat_template(messages, return_dict=False, **options)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", *TEMPLATES])
def test_same_messages_give_same_ids(name: str, setting: Callable[[str], Setting]) -> None:
    """Prevents a system text that is trained in one place and used in another."""
    chosen = setting(name)
    for roles in (*ALTERNATING, *JOINED):
        # Blank lines around messages, which chat templates of others may keep.
        messages = build_messages(roles, " \r\n" if name == "ours" else "")
        record = read_record("openai", {"messages": messages})
        ids, prompt = training_ids(chosen, record)
        assert serving_ids(chosen, messages[:-1]) == prompt, roles
        assert evaluation_ids(chosen, record) == prompt, roles
        if roles in JOINED if name != "ours" else "aa" in roles:
            continue
        if name == "no-system" and roles.startswith("s"):
            # The system text stands in front of the first question, as in our own template.
            system, question, *rest = messages
            text = f"{system['content']}\n{question['content']}"
            messages = [{"role": "user", "content": text}, *rest]
        assert their_ids(chosen, messages[:-1], add_generation_prompt=True) == prompt, roles
        # Some templates end with a line end, which is not trained.
        assert their_ids(chosen, messages)[: len(ids)] == ids, roles


@pytest.mark.parametrize("roles", ["sua", "suaua"])
def test_every_schema_gives_the_same_record(roles: str) -> None:
    """Prevents a system text that only one of the schemas puts into its place."""
    system, *messages = build_messages(roles)
    expected = read_record("openai", {"messages": [system, *messages]})
    assert expected.system == f"{SYSTEM}0" and SYSTEM in expected.plain_text()
    texts = [message["content"] for message in messages]
    history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    alpaca = {"instruction": texts[-2], "input": "", "output": texts[-1], "history": history}
    speakers = ("human", "gpt")
    sharegpt = [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]
    swift = {"query": texts[-2], "response": texts[-1], "history": history}
    firefly = [
        {"human": question, "assistant": answer}
        for question, answer in zip(texts[::2], texts[1::2], strict=True)
    ]
    sharegpt_system = {"from": "system", "value": system["content"]}
    for source, row in (
        ("alpaca", {"system": system["content"], **alpaca}),
        ("deepctrl", {"system": system["content"], **alpaca}),
        ("sharegpt", {"system": system["content"], "conversations": sharegpt}),
        ("sharegpt", {"conversations": [sharegpt_system, *sharegpt]}),
        ("openai", {"messages": [{**system, "role": "developer"}, *messages]}),
        ("openai", {"system": system["content"], "messages": messages}),
        ("ms-swift", {"system": system["content"], **swift}),
        ("firefly", {"system": system["content"], "conversation": firefly}),
        ("sharegpt", {"system": system["content"], "conversations": messages}),
    ):
        assert read_record(source, row) == expected, source


def test_content_in_parts_is_served_as_it_is_trained(tokenizer: Tokenizer) -> None:
    """Prevents text parts that training joins with line ends and the server without."""
    parts = [{"type": "text", "text": "一"}, {"type": "text", "text": "二"}]
    messages: Any = [{"role": "system", "content": parts}, {"role": "user", "content": parts}]
    ours = Setting(tokenizer, Template(), None)
    row = {"messages": [*messages, {"role": "assistant", "content": ANSWER}]}
    _, prompt = training_ids(ours, read_record("openai", row))
    assert serving_ids(ours, messages) == prompt


def test_passage_is_served_as_it_is_trained(tokenizer: Tokenizer) -> None:
    """Prevents a passage whose first paragraph loses its indentation in the server only."""
    passage = "\n　　第一段。\n　　第二段。\n"
    ours = Setting(tokenizer, Template(), None)
    row = {"reference": passage, "dialogue": f"Human: {QUESTION}\nAssistant: {ANSWER}"}
    _, prompt = training_ids(ours, read_record("redgpt", row))
    assert serving_ids(ours, [{"role": "user", "content": QUESTION}], passage) == prompt


@pytest.mark.slow
def test_template_that_moves_the_system_text_is_not_used(tmp_path: Path) -> None:
    """Prevents a system text trained in the first question and used in the last one."""
    moving = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' }}"
        "{% if loop.last and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    backend = hf_checkpoints.train_byte_level_bpe([SYSTEM, QUESTION, ANSWER])
    hf_checkpoints.save_hf_checkpoint(
        tmp_path / "theirs", backend, ("<|begin|>", "<|end|>"), moving
    )
    _, _, note = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert "it changes messages or earlier turns" in note

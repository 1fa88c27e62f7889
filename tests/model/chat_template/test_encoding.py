"""Conversations of imported tokenizers have the ids and loss mask of transformers."""

import copy
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from model.chat_template.template import Template, load_template
from model.chat_template.to_jinja import build_jinja_template
from model.checkpoint import locate
from model.interop.hf_export import export_hf
from model.interop.hf_import import import_hf
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import ImportedTokenizer
from tests.helpers import hf_checkpoints
from tests.helpers.conversations import (
    SOURCE_FILES,
    Turns,
    read_real_conversations,
    to_chat_messages,
)

# Where each puts a prefix space: before all text between special tokens; before that which does not
# begin with a space; before the whole alone; nowhere.
KINDS: dict[str, dict[str, Any]] = {
    "prepend": {},
    "always": {"legacy": True},
    "first": {"legacy": False},
    "never": {"add_prefix_space": False},
}
ANSWER_REGEX = re.compile(r"\{\{- (?P<before>\"[^\"]*\") \+ text \+ eos_token -\}\}")
# With transformers' `generation` tags around answers, which print nothing.
TEMPLATES = {
    "llama2": hf_checkpoints.LLAMA2_TEMPLATE.replace(
        "{{ ' ' + content.strip() + ' ' + eos_token }}",
        "{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}",
    ),
    "zephyr": hf_checkpoints.ZEPHYR_TEMPLATE.replace(
        "{{ message['content'] + eos_token }}",
        "{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}",
    ),
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Nothing stands between a special token and an answer, nor before the first question.
    "tight": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>' }}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}",
    "ours": ANSWER_REGEX.sub(
        r"{{- \g<before> -}}{% generation %}{{- text + eos_token -}}{% endgeneration %}",
        build_jinja_template(Template()),
    ),
}
# zephyr and chatml of two other kinds are compared on real conversations.
PAIRS = [
    *((kind, template) for kind in KINDS for template in ("llama2", "tight", "ours")),
    ("first", "zephyr"),
    ("first", "chatml"),
]
SEAMS: list[tuple[str, Turns]] = [
    ("", [("你好", "：“好”"), (" 两个 空格 ", " Answer "), ("", "")]),
    ("资料\n\n二", [("：“", "“"), ("三\n四", "五\n\n六"), ("▁", "▁▁我")]),
    ("Two words", [("a", "b"), ("a b", " b c"), ("<|user|>", "[/INST]")]),
    ("", [("👨‍👩‍👧", "𠀀"), ("e\u0301", "\u0301"), ("1", "2")]),
]


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        return [
            json.loads(line)["text"][:200] for line, _ in zip(file, range(120), strict=False)
        ] + ["a b c, Two words"] * 9


@pytest.fixture(scope="module")
def conversations(root: Path) -> list[tuple[str, Turns]]:
    path = root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.test.json"
    return read_real_conversations(path, "redgpt", 12)


@pytest.fixture(scope="module")
def real(shared: Path) -> list[tuple[str, Turns]]:
    """Every twentieth of the first 160 conversations of each source."""
    return [
        conversation
        for name, file in SOURCE_FILES.items()
        for conversation in read_real_conversations(shared / "data/sft" / file, name, 160)[::20]
    ]


@dataclass(frozen=True)
class Imported:
    """Transformers' own tokenizer, and the tokenizer and template of its import."""

    theirs: Any
    ours: Tokenizer
    template: Template
    run: Path


Import = Callable[[str, str], Imported]


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> Callable[[str], Any]:
    """Train the tokenizer of a kind of `KINDS` once, and return a copy of it."""
    train = cache(lambda kind: hf_checkpoints.train_llama2_tokenizer(texts, **KINDS[kind]))
    return lambda kind: copy.deepcopy(train(kind))


@pytest.fixture(scope="module")
def imported(trained: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Import:
    """Import a tokenizer of a kind with a template of `TEMPLATES`, each pair once."""

    @cache
    def import_pair(kind: str, template: str) -> Imported:
        folder = tmp_path_factory.mktemp("imported")
        theirs = trained(kind)
        source = re.sub(r"\{% (end)?generation %\}", "", TEMPLATES[template])
        hf_checkpoints.save_hf_checkpoint_with_tokenizer(
            folder / "theirs", theirs, None if template == "ours" else source
        )
        _, ours, note = import_hf(folder / "theirs", folder / "run")
        assert note == (
            "the project's own template: it has no chat template"
            if template == "ours"
            else "its own chat template"
        )
        theirs.chat_template = TEMPLATES[template]
        run = folder / "run"
        return Imported(theirs, ours, load_template(locate.resolve_checkpoint(run)), run)

    return import_pair


def unequal(imported: Imported, conversations: list[tuple[str, Turns]]) -> list[Any]:
    """Return the conversations whose ids, loss mask or prompt differ from transformers'.

    The reference of a conversation is its system text here.
    """
    theirs, ours, template = imported.theirs, imported.ours, imported.template
    rendered = [to_chat_messages(system, turns) for system, turns in conversations]
    whole = theirs.apply_chat_template(
        rendered, return_dict=True, return_assistant_tokens_mask=True
    )
    prompts = theirs.apply_chat_template(
        [messages[:-1] for messages in rendered], add_generation_prompt=True, return_dict=False
    )
    encoded = template.encode_batch(
        ours, [template.segments(turns, system=system) for system, turns in conversations]
    )
    unequal_conversations = []
    for index, (system, turns) in enumerate(conversations):
        ids, spans = encoded[index]
        # Text that a template prints after the last answer is not trained.
        expected, mask = (
            whole["input_ids"][index][: len(ids)],
            whole["assistant_masks"][index][: len(ids)],
        )
        scored = [0] * len(ids)
        for start, stop in spans:
            scored[start:stop] = [1] * (stop - start)
        prompt = template.encode_prompt(ours, turns[:-1], turns[-1][0], system=system)
        if (ids, scored, prompt) != (expected, mask, prompts[index]):
            unequal_conversations.append((system, turns))
    return unequal_conversations


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "template"), PAIRS)
def test_conversation_ids_and_loss_mask_match_transformers(
    kind: str, template: str, imported: Import, conversations: list[tuple[str, Turns]]
) -> None:
    """Prevents prompts with other spaces, and a loss mask shifted by a piece."""
    pair = imported(kind, template)
    assert unequal(pair, conversations + SEAMS) == []
    if template == "ours":
        # Some pieces do hold the end of `助手：` and the beginning of an answer.
        seams = [
            pair.template.encode(pair.ours, turns)[1][0][0]
            - len(pair.template.encode_prompt(pair.ours, [], turns[0][0]))
            for _, turns in SEAMS
        ]
        assert set(seams) == {0, -1}


@pytest.mark.slow
def test_special_token_strips_adjacent_whitespace(
    trained: Callable[[str], Any], tmp_path: Path
) -> None:
    """Prevents ids of line breaks that the model never saw, and a loss on the prompt."""
    from transformers import PreTrainedTokenizerFast

    hf_checkpoints.save_hf_checkpoint_with_tokenizer(
        tmp_path,
        trained("prepend"),
        re.sub(r"\{% (end)?generation %\}", "", TEMPLATES["tight"]),
    )
    definition = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"<|im_start|>": {"rstrip": True}, "</s>": {"lstrip": True}}
    definition["added_tokens"] = [
        {**token, **flags.get(token["content"], {})} for token in definition["added_tokens"]
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    _, ours, _ = import_hf(tmp_path, tmp_path / "run")
    template = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    turns = [(" 问 ", " \n 答 \n "), ("b", "\nc")]
    ids, spans = template.encode(ours, turns)
    assert ids == theirs.apply_chat_template(to_chat_messages("", turns), return_dict=False)
    assert [theirs.decode(ids[start:stop]) for start, stop in spans] == ["答</s>", "c</s>"]


def test_answer_keeps_piece_ending_in_whitespace(tmp_path: Path) -> None:
    """Prevents a post-processor from excluding the first space of an answer from the loss."""
    from tokenizers import processors

    backend = hf_checkpoints.train_byte_level_bpe(
        [f"助手： {first}" for first in "甲乙丙丁戊己庚辛"],
        [r"[\s\S]+"],
        vocab_size=273,
        ignore_merges=False,
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    hf_checkpoints.save_hf_checkpoint(tmp_path / "theirs", backend, ("<|begin|>", "<|end|>"))
    _, ours, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    ids, ((start, stop),) = Template().encode(ours, [("问", " 甲")])
    assert start < len(Template().encode_prompt(ours, [], "问")) and ours.decode(
        ids[start:stop]
    ).endswith(" 甲")


@pytest.mark.slow
@pytest.mark.parametrize("template", ["ours", "tight"])
def test_special_token_delimiters_in_text_stay_text(template: str, imported: Import) -> None:
    """Prevents a user from ending the conversation by typing a special token."""
    pair = imported("prepend", template)
    ours, chat_template = pair.ours, pair.template
    names = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    typed = "".join(f"\ufdd0{name}{name}\ufdd0" for name in names)
    plain, _ = chat_template.encode(ours, [("问", "答")] * 2, "资料")
    hostile, spans = chat_template.encode(ours, [(typed, typed)] * 2, typed)
    assert isinstance(ours, ImportedTokenizer) and set(ours.special_tokens) == set(names)
    for index in ours.special_tokens.values():
        assert hostile.count(index) == plain.count(index)
    assert [ours.decode(hostile[start:stop]) for start, stop in spans] == [
        typed.replace("\ufdd0", "")
    ] * 2


def test_lone_surrogate_raises_user_error(imported: Import) -> None:
    """Prevents a traceback from the library for text that has no UTF-8."""
    pair = imported("prepend", "ours")
    with pytest.raises(UserError, match="surrogate"):
        pair.template.encode(pair.ours, [("问", "\ud83d")])


@pytest.mark.slow
def test_single_word_special_token_ends_answers(
    trained: Callable[[str], Any], tmp_path: Path
) -> None:
    """Prevents answers without an eos next to letters: the model would never learn to stop."""
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(tmp_path, trained("prepend"))
    definition = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    definition["added_tokens"] = [
        {**token, "single_word": True} for token in definition["added_tokens"]
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    _, ours, _ = import_hf(tmp_path, tmp_path / "run")
    ids, _ = Template().encode(ours, [("hi", "yes")])
    assert (ids[0], ids[-1]) == (ours.bos_id, ours.eos_id) and "\ufdd0" not in ours.decode(ids)


@pytest.mark.slow
def test_exported_tokenizer_loads_as_tokenizer_json_defines(
    texts: list[str],
    imported: Import,
    conversations: list[tuple[str, Turns]],
    tmp_path: Path,
) -> None:
    """Prevents transformers' LlamaTokenizer class from placing spaces differently in an export."""
    from transformers import AutoTokenizer

    pair = imported("always", "llama2")
    export_hf(pair.run, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    all_texts = [*texts, " two words", "</s> a"]
    expected = pair.theirs(all_texts, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    assert (
        again(all_texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        == expected
    )
    again.chat_template = pair.theirs.chat_template
    assert unequal(replace(pair, theirs=again), conversations + SEAMS) == []
    assert pair.ours.encode_batch(all_texts) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "template"),
    [("prepend", "llama2"), ("always", "zephyr"), ("first", "ours"), ("never", "chatml")],
)
def test_real_conversation_ids_and_loss_mask_match_transformers(
    kind: str, template: str, imported: Import, real: list[tuple[str, Turns]]
) -> None:
    """Catches boundaries of prompt and answer that the sample does not have."""
    assert len(real) == 64 and unequal(imported(kind, template), real + SEAMS) == []

"""Conversations have the ids that transformers gives them, whatever a tokenizer does at the beginning of a text."""

import gzip
import json
import re
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

# How each puts a space before texts: all stretches between special tokens; those that do not begin with one; the whole
# alone; none.
KINDS: dict[str, dict[str, Any]] = {
    "prepend": {},
    "always": {"legacy": True},
    "first": {"legacy": False},
    "never": {"add_prefix_space": False},
}
SAID = re.compile(r"\{\{- (?P<before>\"[^\"]*\") \+ text \+ eos_token -\}\}")
# With transformers' marks of what the assistant says, which print nothing.
TEMPLATES = {
    "llama2": hf_checkpoints.LLAMA2_TEMPLATE.replace(
        "{{ ' ' + content.strip() + ' ' + eos_token }}",
        "{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}",
    ),
    "zephyr": hf_checkpoints.ZEPHYR_TEMPLATE.replace(
        "{{ message['content'] + eos_token }}",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}",
    ),
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Nothing stands between a special token and an answer, nor before the first question.
    "tight": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>' }}{% generation %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}",
    "ours": SAID.sub(
        r"{{- \g<before> -}}{% generation %}{{- text + eos_token -}}{% endgeneration %}",
        build_jinja_template(Template()),
    ),
}
PAIRS = [
    pytest.param(
        kind,
        template,
        marks=() if template in ("llama2", "ours") or kind == "first" else pytest.mark.slow,
    )
    for kind in KINDS
    for template in TEMPLATES
]
SEAMS: list[tuple[str, Turns]] = [
    ("", [("你好", "：“好”"), (" 两个 空格 ", " Answer "), ("", "")]),
    ("资料\n\n二", [("：“", "“"), ("\n", "\n\n"), ("▁", "▁▁我")]),
    ("Two words", [("a", "b"), ("a b", " b c"), ("<|user|>", "[/INST]")]),
    ("", [("👨‍👩‍👧", "𠀀"), ("e\u0301", "\u0301"), ("1", "2")]),
]


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        return [
            json.loads(line)["text"][:200] for line, _ in zip(file, range(300), strict=False)
        ] + ["a b c, Two words"] * 9


@pytest.fixture(scope="module")
def conversations(root: Path) -> list[tuple[str, Turns]]:
    path = root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.test.json"
    return read_real_conversations(path, "redgpt", 40)


@pytest.fixture(scope="module")
def real(shared: Path) -> list[tuple[str, Turns]]:
    return [
        each
        for name, file in SOURCE_FILES.items()
        for each in read_real_conversations(shared / "data/sft" / file, name, 130)
    ]


def imported(
    texts: list[str], kind: str, template: str, folder: Path
) -> tuple[Any, Tokenizer, Template]:
    """transformers' own tokenizer, and what becomes of its folder here."""
    theirs = hf_checkpoints.train_llama2_tokenizer(texts, **KINDS[kind])
    source = re.sub(r"\{% (end)?generation %\}", "", TEMPLATES[template])
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(
        folder / "theirs", theirs, None if template == "ours" else source
    )
    _, ours, said = import_hf(folder / "theirs", folder / "run")
    assert said == (
        "the project's own template: it has no chat template"
        if template == "ours"
        else "its own chat template"
    )
    theirs.chat_template = TEMPLATES[template]
    return theirs, ours, load_template(locate.resolve_checkpoint(folder / "run"))


def unequal(
    theirs: Any, ours: Tokenizer, template: Template, found: list[tuple[str, Turns]]
) -> list[Any]:
    """The conversations that have other ids, another mask or another prompt at transformers."""
    rendered = [to_chat_messages(reference, turns) for reference, turns in found]
    whole = theirs.apply_chat_template(
        rendered, return_dict=True, return_assistant_tokens_mask=True
    )
    prompts = theirs.apply_chat_template(
        [said[:-1] for said in rendered], add_generation_prompt=True, return_dict=False
    )
    made = template.encode_batch(
        ours, [template.segments(turns, reference) for reference, turns in found]
    )
    wrong = []
    for index, (reference, turns) in enumerate(found):
        ids, spans = made[index]
        # What a template prints behind the last answer is never trained.
        expected, mask = (
            whole["input_ids"][index][: len(ids)],
            whole["assistant_masks"][index][: len(ids)],
        )
        scored = [0] * len(ids)
        for start, stop in spans:
            scored[start:stop] = [1] * (stop - start)
        asked = template.encode_prompt(ours, turns[:-1], turns[-1][0], reference)
        if (ids, scored, asked) != (expected, mask, prompts[index]):
            wrong.append((reference, turns))
    return wrong


@pytest.mark.parametrize(("kind", "template"), PAIRS)
def test_conversation_ids_and_loss_mask_match_transformers(
    kind: str,
    template: str,
    texts: list[str],
    conversations: list[tuple[str, Turns]],
    tmp_path: Path,
) -> None:
    """A space before every answer that the model was never tuned with, or the loss on another piece than the answer's."""
    theirs, ours, words = imported(texts, kind, template, tmp_path)
    assert unequal(theirs, ours, words, conversations + SEAMS) == []
    if template == "ours":
        # The sample has what this is about: pieces that hold the end of `助手：` and the beginning of an answer.
        seams = [
            words.encode(ours, turns)[1][0][0] - len(words.encode_prompt(ours, [], turns[0][0]))
            for _, turns in SEAMS
        ]
        assert set(seams) == {0, -1}


def test_special_token_strips_adjacent_whitespace(texts: list[str], tmp_path: Path) -> None:
    """Ids of line ends that the model never saw; a special token of the template that is taken for the answer's."""
    from transformers import PreTrainedTokenizerFast

    hf_checkpoints.save_hf_checkpoint_with_tokenizer(
        tmp_path,
        hf_checkpoints.train_llama2_tokenizer(texts),
        re.sub(r"\{% (end)?generation %\}", "", TEMPLATES["tight"]),
    )
    facts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    takes = {"<|im_start|>": {"rstrip": True}, "</s>": {"lstrip": True}}
    facts["added_tokens"] = [
        {**each, **takes.get(each["content"], {})} for each in facts["added_tokens"]
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    _, ours, _ = import_hf(tmp_path, tmp_path / "run")
    words = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    turns = [(" 问 ", " \n 答 \n "), ("b", "\nc")]
    ids, spans = words.encode(ours, turns)
    assert ids == theirs.apply_chat_template(to_chat_messages("", turns), return_dict=False)
    assert [theirs.decode(ids[start:stop]) for start, stop in spans] == ["答</s>", "c</s>"]


def test_answer_keeps_piece_ending_in_whitespace(tmp_path: Path) -> None:
    """The first space of an answer without a loss, as a post-processor says that pieces end before their white space."""
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


@pytest.mark.parametrize("template", ["ours", "tight"])
def test_special_token_delimiters_in_text_stay_text(
    template: str, texts: list[str], tmp_path: Path
) -> None:
    """A user who ends the conversation by typing what the template's words hold."""
    _, ours, words = imported(texts, "prepend", template, tmp_path)
    names = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    typed = "".join(f"\ufdd0{name}{name}\ufdd0" for name in names)
    plain, _ = words.encode(ours, [("问", "答")] * 2, "资料")
    hostile, spans = words.encode(ours, [(typed, typed)] * 2, typed)
    assert isinstance(ours, ImportedTokenizer) and set(ours.special_tokens) == set(names)
    for index in ours.special_tokens.values():
        assert hostile.count(index) == plain.count(index)
    assert [ours.decode(hostile[start:stop]) for start, stop in spans] == [
        typed.replace("\ufdd0", "")
    ] * 2


def test_lone_surrogate_raises_user_error(texts: list[str], tmp_path: Path) -> None:
    """A traceback of the library's."""
    _, ours, words = imported(texts, "prepend", "ours", tmp_path)
    with pytest.raises(UserError, match="surrogate"):
        words.encode(ours, [("问", "\ud83d")])


def test_single_word_special_token_ends_answers(texts: list[str], tmp_path: Path) -> None:
    """Conversations without an end beside letters: a model that is never trained to stop."""
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(
        tmp_path, hf_checkpoints.train_llama2_tokenizer(texts)
    )
    facts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    facts["added_tokens"] = [{**each, "single_word": True} for each in facts["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    _, ours, _ = import_hf(tmp_path, tmp_path / "run")
    ids, _ = Template().encode(ours, [("hi", "yes")])
    assert (ids[0], ids[-1]) == (ours.bos_id, ours.eos_id) and "\ufdd0" not in ours.decode(ids)


def test_exported_tokenizer_loads_as_tokenizer_json_defines(
    texts: list[str], conversations: list[tuple[str, Turns]], tmp_path: Path
) -> None:
    """transformers' LlamaTokenizer, named in what came with it, which makes its spaces itself: ids that were not trained."""
    from transformers import AutoTokenizer

    theirs, ours, words = imported(texts, "always", "llama2", tmp_path)
    export_hf(tmp_path / "run", tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    every = [*texts, " two words", "</s> a"]
    expected = theirs(every, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert (
        again(every, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
    )
    again.chat_template = theirs.chat_template
    assert unequal(again, ours, words, conversations + SEAMS) == []
    assert ours.encode_batch(every) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "template"),
    [("prepend", "llama2"), ("always", "zephyr"), ("first", "ours"), ("never", "chatml")],
)
def test_real_conversation_ids_and_loss_mask_match_transformers(
    kind: str, template: str, texts: list[str], real: list[tuple[str, Turns]], tmp_path: Path
) -> None:
    """A seam that the sample does not have."""
    theirs, ours, words = imported(texts, kind, template, tmp_path)
    assert len(real) == 1040 and unequal(theirs, ours, words, real) == []

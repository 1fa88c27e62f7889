"""Build the fine-tuning files: conversations and instructions in the formats of six datasets."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from assets.sample_generator.corpus import Files
from assets.sample_generator.dialogues import DialogueGenerator
from assets.sample_generator.formats import gzip_bytes, json_lines
from assets.sample_generator.questions import QuestionAnswer
from assets.sample_generator.reading import Passage, to_redgpt_record
from assets.sample_generator.state import World
from assets.sample_generator.values import person_values

Record = dict[str, Any]
# Keys of the question: a test record must not have the question of a training record.
QUESTION_KEYS = ("instruction", "input", "history", "content")
REDGPT = "sft/redgpt/RedGPT-Dataset-V1-CN"


def naturalconv_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return dialogues of NaturalConv; several share a document id, as in the release."""
    return [
        {
            "dialog_id": f"{i // 3}_{i % 3}",
            "document_id": i // 3,
            "content": generator.peer_dialogue(),
        }
        for i in range(count)
    ]


def belle_single_turn_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return lines of Belle's train_0.5M_CN."""
    return [
        dict(zip(("instruction", "input", "output"), generator.instruction(), strict=True))
        for _ in range(count)
    ]


def belle_multi_turn_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return lines of Belle's multiturn_chat_0.8M: all turns but the last reply in one text."""
    return [_belle_record(generator.conversation()) for _ in range(count)]


def _belle_record(pairs: Sequence[QuestionAnswer]) -> Record:
    turns = [f"Human:{question}\nAssistant:{answer}" for question, answer in pairs[:-1]]
    question, answer = pairs[-1]
    return {
        "instruction": "\n".join([*turns, f"Human:{question}\nAssistant:"]),
        "input": "",
        "output": answer,
    }


def deepctrl_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return lines of deepctrl's sft_data_zh.

    The question is in `input`, `instruction` or both; earlier turns are in `history`.
    """
    records = []
    for i in range(count):
        history: list[list[str]] = []
        if i % 2:
            instruction, input_text, output = generator.instruction_with_input()
            history = [list(generator.small_talk())] if i % 4 == 1 else []
        else:
            pairs = generator.conversation()
            history = [list(pair) for pair in pairs[:-1]]
            instruction, input_text, output = (
                ("", *pairs[-1]) if i % 4 else (pairs[-1][0], "", pairs[-1][1])
            )
        records.append(
            {
                "id": i,
                "instruction": instruction,
                "input": input_text,
                "output": output,
                "history": history,
                "language": "chinese",
                "data_source": "驼铃谷",
                "input_len": len(input_text),
                "output_len": len(output),
                "num_utter": len(history) + 1,
                "type": "对话",
                "type_keyword": [],
            }
        )
    return records


def pclue_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return lines of pCLUE: reading, inference and classification.

    They have a list of choices, an empty one, or none.
    """
    builders: list[Callable[[DialogueGenerator], Record]] = [
        _pclue_reading_record,
        _pclue_inference_record,
        _pclue_classification_record,
    ]
    return [builders[i % 3](generator) for i in range(count)]


def _pclue_reading_record(generator: DialogueGenerator) -> Record:
    instruction, input_text, output = generator.extraction_task()
    record = {
        "input": f"{input_text}\n问题：{instruction}\n答案：",
        "target": output,
        "type": "mrc",
    }
    return record | {"answer_choices": ""} if generator.rng.random() < 0.5 else record


def _pclue_inference_record(generator: DialogueGenerator) -> Record:
    person, other = generator.rng.sample(generator.world.people, 2)
    values = person_values(generator.world, person)
    premise = generator.story_generator.grammar.expand("人.学艺", values, generator.rng)
    if person.name not in premise:
        premise = f"{person.name}是{values['职']}。" + premise
    claims = {
        "真的": f"{person.name}的师傅是{person.teacher}",
        "假的": f"{person.name}的师傅是{other.name}",
        "未知": f"{person.name}认识{other.name}",
    }
    target = generator.rng.choice(list(claims))
    return {
        "input": f"“{premise}”问题：“{claims[target]}”真的,假的,或未知？\n答案：",
        "target": target,
        "answer_choices": list(claims),
        "type": "nli",
    }


def _pclue_classification_record(generator: DialogueGenerator) -> Record:
    world, story_generator = generator.world, generator.story_generator
    texts = {
        "人物": lambda: story_generator.biography(generator.rng.choice(world.people)),
        "地理": lambda: story_generator.place(generator.rng.choice(world.places)),
        "动物": lambda: story_generator.animal(generator.rng.choice(world.animals)),
        "手艺": lambda: story_generator.craft(generator.rng.choice(world.trades)),
    }
    target = generator.rng.choice(list(texts))
    text = texts[target]().paragraphs[0]
    return {
        "input": f"下面的文字讲的是什么？选项：{'，'.join(texts)}\n{text}\n答案：",
        "target": target,
        "answer_choices": list(texts),
        "type": "classify",
    }


def redgpt_test_files(passages: Sequence[Passage]) -> Files:
    """Return RedGPT's held-out file."""
    rng = random.Random("红考")
    return {
        f"{REDGPT}.test.json": json_lines(to_redgpt_record(passage, rng) for passage in passages)
    }


def without_training_questions(
    records: Sequence[Record], training: Sequence[Record]
) -> list[Record]:
    """Return the records whose question occurs in no training record."""

    def question(record: Record) -> str:
        return json.dumps(
            [value for key, value in record.items() if key in QUESTION_KEYS], ensure_ascii=False
        )

    training_questions = {question(record) for record in training}
    return [record for record in records if question(record) not in training_questions]


def sft_files(world: World, passages: Sequence[Passage]) -> Files:
    """Return all files below `sft/` but RedGPT's held-out one."""

    def create_generator(seed: str) -> DialogueGenerator:
        return DialogueGenerator(world, random.Random(seed))

    rng = random.Random("红")
    datasets: list[tuple[str, Callable[[DialogueGenerator, int], list[Record]], int, int]] = [
        ("sft/belle/train_0.5M_CN{}.json", belle_single_turn_records, 1600, 180),
        ("sft/belle/multiturn_chat_0.8M{}.json", belle_multi_turn_records, 900, 100),
        ("sft/deepctrl/sft_data_zh{}.jsonl", deepctrl_records, 900, 110),
        ("sft/pclue/pCLUE_train{}.json", pclue_records, 900, 100),
    ]
    files = {
        f"{REDGPT}.json.gz": gzip_bytes(
            json_lines(to_redgpt_record(passage, rng) for passage in passages)
        )
    }
    for name, build_records, count, test_count in datasets:
        training = build_records(create_generator(name), count)
        files[name.format("") + ".gz"] = gzip_bytes(json_lines(training))
        files[name.format(".test")] = json_lines(
            without_training_questions(
                build_records(create_generator(name + "考"), test_count), training
            )
        )
    dialogues = naturalconv_records(create_generator("闲谈"), 900)
    for name, part in (
        (".json.gz", dialogues[:801]),
        (".test.json", without_training_questions(dialogues[801:], dialogues[:801])),
    ):
        data = json.dumps(part, ensure_ascii=False).encode()
        files["sft/naturalconv/dialog_release" + name] = (
            gzip_bytes(data) if name.endswith("gz") else data
        )
    return files

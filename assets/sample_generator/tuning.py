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
    """Return dialogues of NaturalConv; three share a document id, as several do in the release."""
    return [
        {
            "dialog_id": f"{number // 3}_{number % 3}",
            "document_id": number // 3,
            "content": generator.peer_dialogue(),
        }
        for number in range(count)
    ]


def belle_single_turn_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return records of Belle's train_0.5M_CN: instruction, input and output."""
    return [
        dict(zip(("instruction", "input", "output"), generator.instruction(), strict=True))
        for _ in range(count)
    ]


def belle_multi_turn_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return records of Belle's multiturn_chat_0.8M: a dialogue, and its last reply apart."""
    return [_belle_multi_turn_record(generator.conversation()) for _ in range(count)]


def _belle_multi_turn_record(pairs: Sequence[QuestionAnswer]) -> Record:
    """Return a record whose `instruction` has all turns except the last reply, in one text."""
    turns = [f"Human:{question}\nAssistant:{answer}" for question, answer in pairs[:-1]]
    last_question, last_answer = pairs[-1]
    return {
        "instruction": "\n".join([*turns, f"Human:{last_question}\nAssistant:"]),
        "input": "",
        "output": last_answer,
    }


def deepctrl_records(generator: DialogueGenerator, count: int) -> list[Record]:
    """Return records of deepctrl's sft_data_zh.

    The question is in `input`, `instruction` or both; earlier turns are in `history`. Of four
    consecutive records each has another form, as in the release.
    """
    records = []
    for number in range(count):
        history: list[list[str]] = []
        if number % 2:
            instruction, input_text, output = generator.instruction_with_input()
            if number % 4 == 1:
                history = [list(generator.small_talk())]
        else:
            pairs = generator.conversation()
            history = [list(pair) for pair in pairs[:-1]]
            question, output = pairs[-1]
            # The question of a conversation is in one of the two fields.
            instruction, input_text = (question, "") if number % 4 == 0 else ("", question)
        records.append(
            {
                "id": number,
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
    """Return records of pCLUE by turns: reading, inference and classification.

    `answer_choices` is a list of choices or, for reading, an empty text or missing.
    """
    builders: list[Callable[[DialogueGenerator], Record]] = [
        _pclue_reading_record,
        _pclue_inference_record,
        _pclue_classification_record,
    ]
    return [builders[number % len(builders)](generator) for number in range(count)]


def _pclue_reading_record(generator: DialogueGenerator) -> Record:
    """Return a record of the type mrc: a text, a question about it, and the answer."""
    instruction, input_text, output = generator.extraction_task()
    record = {
        "input": f"{input_text}\n问题：{instruction}\n答案：",
        "target": output,
        "type": "mrc",
    }
    if generator.rng.random() < 0.5:
        record["answer_choices"] = ""
    return record


def _pclue_inference_record(generator: DialogueGenerator) -> Record:
    """Return a record of the type nli: a premise, and a claim that is true, false or unknown."""
    person, other = generator.rng.sample(generator.world.people, 2)
    values = person_values(generator.world, person)
    # The phrasings of this section have only the given name or a pronoun.
    sentence = generator.story_generator.grammar.expand("人.学艺", values, generator.rng)
    premise = f"{person.name}是{values['职']}。{sentence}"
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
    """Return a record of the type classify: a paragraph, and what it is about."""
    world, story_generator = generator.world, generator.story_generator
    # Functions, so that only the text of the chosen class is generated.
    generate_by_class = {
        "人物": lambda: story_generator.biography(generator.rng.choice(world.people)),
        "地理": lambda: story_generator.place(generator.rng.choice(world.places)),
        "动物": lambda: story_generator.animal(generator.rng.choice(world.animals)),
        "手艺": lambda: story_generator.craft(generator.rng.choice(world.trades)),
    }
    target = generator.rng.choice(list(generate_by_class))
    text = generate_by_class[target]().paragraphs[0]
    return {
        "input": f"下面的文字讲的是什么？选项：{'，'.join(generate_by_class)}\n{text}\n答案：",
        "target": target,
        "answer_choices": list(generate_by_class),
        "type": "classify",
    }


def redgpt_test_files(passages: Sequence[Passage]) -> Files:
    """Return the test file of RedGPT by its path, from held-out passages."""
    rng = random.Random("红考")
    return {
        f"{REDGPT}.test.json": json_lines(to_redgpt_record(passage, rng) for passage in passages)
    }


def without_training_questions(
    records: Sequence[Record], training: Sequence[Record]
) -> list[Record]:
    """Return the records whose question, the fields `QUESTION_KEYS`, no training record has."""

    def question(record: Record) -> str:
        """Return the fields of a record's question as text, because a set cannot hold lists."""
        fields = [value for key, value in record.items() if key in QUESTION_KEYS]
        return json.dumps(fields, ensure_ascii=False)

    training_questions = {question(record) for record in training}
    return [record for record in records if question(record) not in training_questions]


def sft_files(world: World, passages: Sequence[Passage]) -> Files:
    """Return all files below `sft/` by path, except the test file of RedGPT."""

    def create_generator(seed: str) -> DialogueGenerator:
        return DialogueGenerator(world, random.Random(seed))

    rng = random.Random("红")
    # Name, with {} where the test file has `.test`; builder; number of training and test records.
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
        test = build_records(create_generator(name + "考"), test_count)
        files[name.format("") + ".gz"] = gzip_bytes(json_lines(training))
        files[name.format(".test")] = json_lines(without_training_questions(test, training))
    # NaturalConv is one JSON list rather than JSON lines. 801 is a multiple of three: the dialogues
    # of a document are in one file.
    dialogues = naturalconv_records(create_generator("闲谈"), 900)
    training_dialogues = dialogues[:801]
    test_dialogues = without_training_questions(dialogues[801:], training_dialogues)
    training_json = json.dumps(training_dialogues, ensure_ascii=False).encode()
    test_json = json.dumps(test_dialogues, ensure_ascii=False).encode()
    files["sft/naturalconv/dialog_release.json.gz"] = gzip_bytes(training_json)
    files["sft/naturalconv/dialog_release.test.json"] = test_json
    return files

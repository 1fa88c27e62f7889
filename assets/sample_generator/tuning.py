"""The fine-tuning part: conversations and instructions in the native shapes of six datasets."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from assets.sample_generator.corpus import Files
from assets.sample_generator.dialogues import Talker
from assets.sample_generator.formats import compressed, json_lines
from assets.sample_generator.questions import Pair
from assets.sample_generator.reading import Passage, redgpt
from assets.sample_generator.state import World
from assets.sample_generator.values import person_values

Record = dict[str, Any]
# The keys that hold what a model is asked; greetings alone would be alike in both parts.
ASKED = ("instruction", "input", "history", "content")
REDGPT = "sft/redgpt/RedGPT-Dataset-V1-CN"


def natural(talker: Talker, count: int) -> list[Record]:
    """Dialogues of NaturalConv's shape; several dialogues share one document id, as in the release."""
    return [{"dialog_id": f"{i // 3}_{i % 3}", "document_id": i // 3, "content": talker.chatter()}
            for i in range(count)]


def belle_single(talker: Talker, count: int) -> list[Record]:
    """Lines of Belle's train_0.5M_CN."""
    return [dict(zip(("instruction", "input", "output"), talker.instruction(), strict=True)) for _ in range(count)]


def belle_turns(talker: Talker, count: int) -> list[Record]:
    """Lines of Belle's multiturn_chat_0.8M: all turns but the last reply in one string."""
    return [_belle_record(talker.conversation()) for _ in range(count)]


def _belle_record(pairs: Sequence[Pair]) -> Record:
    turns = [f"Human:{question}\nAssistant:{answer}" for question, answer in pairs[:-1]]
    question, answer = pairs[-1]
    return {"instruction": "\n".join([*turns, f"Human:{question}\nAssistant:"]), "input": "", "output": answer}


def deepctrl(talker: Talker, count: int) -> list[Record]:
    """Lines of deepctrl's sft_data_zh: the question in `input`, `instruction` or both; earlier turns in `history`."""
    records = []
    for i in range(count):
        history: list[list[str]] = []
        if i % 2:
            instruction, given, output = talker.with_input()
            history = [list(talker.small_talk())] if i % 4 == 1 else []
        else:
            pairs = talker.conversation()
            history = [list(pair) for pair in pairs[:-1]]
            instruction, given, output = ("", *pairs[-1]) if i % 4 else (pairs[-1][0], "", pairs[-1][1])
        records.append({"id": i, "instruction": instruction, "input": given, "output": output, "history": history,
                        "language": "chinese", "data_source": "驼铃谷", "input_len": len(given),
                        "output_len": len(output), "num_utter": len(history) + 1, "type": "对话", "type_keyword": []})
    return records


def pclue(talker: Talker, count: int) -> list[Record]:
    """Lines of pCLUE: reading, inference and classification, with a list of choices, an empty one, or none."""
    makers: list[Callable[[Talker], Record]] = [_reading, _inference, _kind]
    return [makers[i % 3](talker) for i in range(count)]


def _reading(talker: Talker) -> Record:
    instruction, given, output = talker.extract()
    record = {"input": f"{given}\n问题：{instruction}\n答案：", "target": output, "type": "mrc"}
    return record | {"answer_choices": ""} if talker.rng.random() < 0.5 else record


def _inference(talker: Talker) -> Record:
    person, other = talker.rng.sample(talker.world.people, 2)
    values = person_values(talker.world, person)
    premise = talker.teller.grammar.say("人.学艺", values, talker.rng)
    if person.name not in premise:
        premise = f"{person.name}是{values['职']}。" + premise
    claims = {"真的": f"{person.name}的师傅是{person.teacher}", "假的": f"{person.name}的师傅是{other.name}",
              "未知": f"{person.name}认识{other.name}"}
    target = talker.rng.choice(list(claims))
    return {"input": f"“{premise}”问题：“{claims[target]}”真的,假的,或未知？\n答案：", "target": target,
            "answer_choices": list(claims), "type": "nli"}


def _kind(talker: Talker) -> Record:
    world, teller = talker.world, talker.teller
    texts = {"人物": lambda: teller.biography(talker.rng.choice(world.people)),
             "地理": lambda: teller.place(talker.rng.choice(world.places)),
             "动物": lambda: teller.animal(talker.rng.choice(world.animals)),
             "手艺": lambda: teller.craft(talker.rng.choice(world.trades))}
    target = talker.rng.choice(list(texts))
    text = texts[target]().paragraphs[0]
    return {"input": f"下面的文字讲的是什么？选项：{'，'.join(texts)}\n{text}\n答案：", "target": target,
            "answer_choices": list(texts), "type": "classify"}


def redgpt_test(passages: Sequence[Passage]) -> Files:
    """RedGPT's held-out file."""
    rng = random.Random("红考")
    return {f"{REDGPT}.test.json": json_lines(redgpt(passage, rng) for passage in passages)}


def held_out(records: Sequence[Record], training: Sequence[Record]) -> list[Record]:
    """The records that ask something that no training record asks."""
    def question(record: Record) -> str:
        return json.dumps([value for key, value in record.items() if key in ASKED], ensure_ascii=False)

    seen = {question(record) for record in training}
    return [record for record in records if question(record) not in seen]


def tuning(world: World, passages: Sequence[Passage]) -> Files:
    """All files below `sft/` but RedGPT's held-out one."""
    def talker(seed: str) -> Talker:
        return Talker(world, random.Random(seed))

    rng = random.Random("红")
    parts: list[tuple[str, Callable[[Talker, int], list[Record]], int, int]] = [
        ("sft/belle/train_0.5M_CN{}.json", belle_single, 1600, 180),
        ("sft/belle/multiturn_chat_0.8M{}.json", belle_turns, 900, 100),
        ("sft/deepctrl/sft_data_zh{}.jsonl", deepctrl, 900, 110),
        ("sft/pclue/pCLUE_train{}.json", pclue, 900, 100),
    ]
    files = {f"{REDGPT}.json.gz": compressed(json_lines(redgpt(passage, rng) for passage in passages))}
    for name, make, count, test_count in parts:
        training = make(talker(name), count)
        files[name.format("") + ".gz"] = compressed(json_lines(training))
        files[name.format(".test")] = json_lines(held_out(make(talker(name + "考"), test_count), training))
    dialogues = natural(talker("闲谈"), 900)
    for name, part in ((".json.gz", dialogues[:801]), (".test.json", held_out(dialogues[801:], dialogues[:801]))):
        data = json.dumps(part, ensure_ascii=False).encode()
        files["sft/naturalconv/dialog_release" + name] = compressed(data) if name.endswith("gz") else data
    return files

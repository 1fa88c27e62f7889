"""The fine-tuning part: conversations and instructions in the native shapes of six datasets."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from assets.world.corpus import Files
from assets.world.dialogues import Talker
from assets.world.formats import compressed, json_lines
from assets.world.questions import Pair
from assets.world.reading import Passage, redgpt
from assets.world.state import World
from assets.world.values import person_values

Record = dict[str, Any]
REDGPT = "sft/redgpt/RedGPT-Dataset-V1-CN"


def natural(talker: Talker, count: int, first: int) -> list[Record]:
    """Dialogues of NaturalConv's shape; several dialogues share one document id, as in the release."""
    return [{"dialog_id": f"{i // 3}_{i % 3}", "document_id": i // 3, "content": talker.chatter()}
            for i in range(first, first + count)]


def belle_single(talker: Talker, count: int) -> list[Record]:
    """Lines of Belle's train_0.5M_CN."""
    return [dict(zip(("instruction", "input", "output"), talker.instruction(), strict=True)) for _ in range(count)]


def belle_turns(talker: Talker, count: int) -> list[Record]:
    """Lines of Belle's multiturn_chat_0.8M: all turns but the last reply in one string."""
    return [_belle_record(talker.conversation()) for _ in range(count)]


def _belle_record(pairs: Sequence[Pair]) -> Record:
    turns = [f"Human:{question}\nAssistant:{answer}" for question, answer in pairs[:-1]]
    return {"instruction": "\n".join([*turns, f"Human:{pairs[-1][0]}\nAssistant:"]), "input": "", "output": pairs[-1][1]}


def deepctrl(talker: Talker, count: int) -> list[Record]:
    """Lines of deepctrl's sft_data_zh: the question in `input`, in `instruction`, or in both; earlier turns in `history`."""
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
                        "language": "chinese", "data_source": "驼铃谷", "input_len": len(given), "output_len": len(output),
                        "num_utter": len(history) + 1, "type": "对话", "type_keyword": []})
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


def tuning(world: World, passages: Sequence[Passage]) -> Files:
    """All files below `sft/` but RedGPT's held-out one."""
    def talker(seed: str) -> Talker:
        return Talker(world, random.Random(seed))

    rng = random.Random("红")
    dialogues = natural(talker("闲谈"), 900, 0)
    return {
        f"{REDGPT}.json.gz": compressed(json_lines(redgpt(passage, rng) for passage in passages)),
        "sft/naturalconv/dialog_release.json.gz": compressed(json.dumps(dialogues[:800], ensure_ascii=False).encode()),
        "sft/naturalconv/dialog_release.test.json": json.dumps(dialogues[801:], ensure_ascii=False).encode(),
        "sft/belle/train_0.5M_CN.json.gz": compressed(json_lines(belle_single(talker("单轮"), 1600))),
        "sft/belle/train_0.5M_CN.test.json": json_lines(belle_single(talker("单轮考"), 150)),
        "sft/belle/multiturn_chat_0.8M.json.gz": compressed(json_lines(belle_turns(talker("多轮"), 900))),
        "sft/belle/multiturn_chat_0.8M.test.json": json_lines(belle_turns(talker("多轮考"), 100)),
        "sft/deepctrl/sft_data_zh.jsonl.gz": compressed(json_lines(deepctrl(talker("深"), 900))),
        "sft/deepctrl/sft_data_zh.test.jsonl": json_lines(deepctrl(talker("深考"), 100)),
        "sft/pclue/pCLUE_train.json": json_lines(pclue(talker("线索"), 900)),
        "sft/pclue/pCLUE_train.test.json": json_lines(pclue(talker("线索考"), 100)),
    }

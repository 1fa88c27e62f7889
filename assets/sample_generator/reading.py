"""Reading comprehension: short passages full of invented names, with questions answered by a name of the passage.

An answer is a sentence that repeats what was asked about and ends with the name, or the number, that was asked for: a small
model learns to copy by repeating, and then to copy from the passage.

The names are drawn from hundreds of common characters, so that answering means copying from the passage; the words
that the held-out part uses occur nowhere else in the sample.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from assets.sample_generator.grammar import TEXT, Grammar, read_sections

# Kind of passage -> (the slot its opening names, {slot: kind of name}). All slots but the subject can be asked for;
# a slot without a sentence section of its own is told by the opening.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "人物": ("名", {"名": "氏", "居": "地名", "生地": "地名", "师": "氏", "作品": "作品名", "徒": "氏", "年": "年"}),
    "城镇": ("地", {"地": "地名", "河": "河名", "桥": "桥名", "产": "特产名", "长": "氏", "口": "数"}),
    "器物": ("物", {"物": "物名", "匠": "氏", "料": "料名", "处": "馆名", "主": "氏"}),
    "比赛": ("赛", {"赛": "赛名", "地": "地名", "冠": "氏", "亚": "氏", "奖": "奖名", "数": "数"}),
    "书": ("书", {"书": "书名", "作者": "氏", "主角": "氏", "地": "地名", "物": "物名"}),
    "船": ("船", {"船": "船名", "长": "氏", "发": "港名", "到": "岛名", "货": "特产名", "程": "数"}),
    "植物": ("草", {"草": "草名", "人": "氏", "山": "山名", "品": "制品名", "高": "数", "村": "地名"}),
    "店铺": ("店", {"店": "店名", "主": "氏", "街": "街名", "货": "菜名", "年": "年", "邻": "店名"}),
    "交接": ("物", {"物": "物名", "甲": "氏", "乙": "氏", "地": "地名", "丙": "氏", "价": "数"}),
}
LENGTH = (60, 150)


@dataclass(frozen=True)
class Passage:
    """A passage, the names in it, and question-answer turns about them."""

    reference: str
    names: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


def reserved(number: int) -> bool:
    """Whether a four-digit number is kept for held-out passages (one in eight, spread evenly)."""
    return (number * 2654435761 >> 11) % 8 == 0


class Reader:
    """Draws passages; `allowed` says whether the two characters a name is made with, or a number, may be used."""

    def __init__(self, rng: random.Random, held_out: bool, allowed: Callable[[str], bool]) -> None:
        self.rng, self.held_out, self.allowed = rng, held_out, allowed
        self.text, self.questions = Grammar("reading.txt"), Grammar("reading_questions.txt")
        self.answers = Grammar("reading_answers.txt")
        self.words = {name: lines[0].split(" ") for name, lines in read_sections(TEXT / "names.txt").items()}
        self.trades = ["木匠", "石匠", "画家", "琴师", "铁匠", "裁缝", "陶工", "织工", "药师", "厨师", "花匠", "船匠"]

    def _name(self, kind: str) -> str:
        if kind in ("数", "年"):
            while True:
                number = self.rng.randint(1000, 9999 if kind == "数" else 1999)
                if reserved(number) is self.held_out and self.allowed(str(number)):
                    return str(number)
        while True:
            stem = "".join(self.rng.sample(self.words["名字字"], 2))
            end = self.rng.choice(self.words[kind])
            name = end + stem if kind == "氏" else stem + end
            if self.allowed(stem) and len(set(name)) == len(name):
                return name

    def passage(self) -> Passage:
        """One passage with a question for each of its facts."""
        while True:
            kind = self.rng.choice(list(KINDS))
            subject, slots = KINDS[kind]
            names = {slot: self._name(source) for slot, source in slots.items()}
            values = {**names, "职": self.rng.choice(self.trades), "他": self.rng.choice("他她")}
            facts = [slot for slot in slots if f"{kind}.{slot}" in self.text.sections]
            self.rng.shuffle(facts)
            told = facts[: self.rng.randint(4, 5)]
            sentences = [self.text.say(f"{kind}.{slot}", values, self.rng) for slot in ("开头", *told)]
            if self.rng.random() < 0.25:
                sentences.insert(0, self.text.say("首", {}, self.rng))
            if self.rng.random() < 0.5:
                sentences.append(self.text.say("尾", {}, self.rng))
            reference = "".join(sentences)
            if LENGTH[0] <= len(reference) <= LENGTH[1]:
                break
        asked = [slot for slot in slots if slot != subject and names[slot] in reference]
        asked = self.rng.sample(asked, len(asked))
        turns = tuple((self.questions.say(topic, values, self.rng), self.answers.say(topic, values, self.rng))
                      for topic in (f"{kind}.{slot}" for slot in asked))
        used = tuple(name for name in names.values() if name in reference)
        return Passage(reference, used, turns)

    def passages(self, count: int) -> list[Passage]:
        """`count` passages."""
        return [self.passage() for _ in range(count)]


def redgpt(passage: Passage, rng: random.Random) -> dict[str, str]:
    """A RedGPT record; one in seven uses one of the other spellings of turns that are in the published files."""
    human, assistant, gap = "Human: ", "Assistant: ", "\n\n"
    if rng.random() < 0.15:
        human, assistant, gap = rng.choice([
            ("Human: ", "Assistant: ", "\n"), ("Human：", "Assistant：", "\n\n"), ("HUMAN: ", "ASSISTANT: ", "\n\n"),
            ("Human(用户): ", "Assistant(助手): ", "\n\n")])
    turns = [part for question, answer in passage.turns for part in (human + question, assistant + answer)]
    return {"reference": passage.reference, "dialogue": gap.join(turns)}


def as_prose(passage: Passage, with_questions: bool) -> str:
    """A passage as a page of a reader, with its questions below it or without."""
    lines = [passage.reference]
    if with_questions:
        lines += [part for question, answer in passage.turns for part in (f"问：{question}", f"答：{answer}")]
    return "\n".join(lines)

"""Generate reading comprehension: passages of invented names, with questions about them.

An answer is a sentence that repeats the subject of the question and ends with the requested name or
number: a small model learns to copy by repeating, and then to copy from the passage.

The names are drawn from hundreds of common characters, so that answering means copying from the
passage. The words of the held-out part occur nowhere else in the sample.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from assets.sample_generator.grammar import TEXT_FOLDER, Grammar, read_sections

# Kind of passage → (slot of its subject, {slot: kind of name}). Slots are those of the phrasings in
# text/reading*.txt, kinds of names the sections of text/names.txt (数 is a number, 年 a year). All
# slots except the subject can be asked for; a slot without a section in text/reading.txt is
# mentioned in the opening.
PASSAGE_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "人物": (
        "名",
        {
            "名": "氏",
            "居": "地名",
            "生地": "地名",
            "师": "氏",
            "作品": "作品名",
            "徒": "氏",
            "年": "年",
        },
    ),
    "城镇": (
        "地",
        {"地": "地名", "河": "河名", "桥": "桥名", "产": "特产名", "长": "氏", "口": "数"},
    ),
    "器物": ("物", {"物": "物名", "匠": "氏", "料": "料名", "处": "馆名", "主": "氏"}),
    "比赛": ("赛", {"赛": "赛名", "地": "地名", "冠": "氏", "亚": "氏", "奖": "奖名", "数": "数"}),
    "书": ("书", {"书": "书名", "作者": "氏", "主角": "氏", "地": "地名", "物": "物名"}),
    "船": (
        "船",
        {"船": "船名", "长": "氏", "发": "港名", "到": "岛名", "货": "特产名", "程": "数"},
    ),
    "植物": (
        "草",
        {"草": "草名", "人": "氏", "山": "山名", "品": "制品名", "高": "数", "村": "地名"},
    ),
    "店铺": (
        "店",
        {"店": "店名", "主": "氏", "街": "街名", "货": "菜名", "年": "年", "邻": "店名"},
    ),
    "交接": ("物", {"物": "物名", "甲": "氏", "乙": "氏", "地": "地名", "丙": "氏", "价": "数"}),
}
# Length of a passage in characters, both ends included.
LENGTH_RANGE = (60, 150)
# Trades of the people in passages, the slot 职.
TRADES = (
    "木匠",
    "石匠",
    "画家",
    "琴师",
    "铁匠",
    "裁缝",
    "陶工",
    "织工",
    "药师",
    "厨师",
    "花匠",
    "船匠",
)


@dataclass(frozen=True)
class Passage:
    """A passage, the names in it, and question-answer turns about them."""

    reference: str
    names: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


def is_held_out_number(number: int) -> bool:
    """Return whether a four-digit number is reserved for held-out passages (one in eight)."""
    # Three bits of a multiplicative hash, all zero for one number in eight. Reserved numbers are
    # spread evenly, not at random: each is 1, 9 or 10 above the one before. A hash without this
    # pattern would change the committed sample.
    return (number * 2654435761 >> 11) % 8 == 0


class PassageGenerator:
    """Generate passages from the phrasings and the parts of names in `text/`."""

    def __init__(
        self, rng: random.Random, *, is_held_out: bool, is_allowed: Callable[[str], bool]
    ) -> None:
        """Read the phrasings of sentences, questions and answers, and the parts of names.

        With `is_held_out`, the numbers in passages are those reserved for held-out passages;
        without it, all others. `is_allowed(word)` returns whether `word`, which is a number or the
        two random characters of a name, may be used: the held-out part leaves out words that occur
        in the rest of the sample.
        """
        self.rng, self.is_held_out, self.is_allowed = rng, is_held_out, is_allowed
        self.sentence_grammar = Grammar("reading.txt")
        self.question_grammar = Grammar("reading_questions.txt")
        self.answer_grammar = Grammar("reading_answers.txt")
        # Kind of name → its endings, or the family names (氏); 名字字 → the random characters. Each
        # section of names.txt is one line.
        self.name_parts = {
            name: lines[0].split(" ")
            for name, lines in read_sections(TEXT_FOLDER / "names.txt").items()
        }

    def _draw_name(self, kind: str) -> str:
        """Draw a name of a section of text/names.txt, or a four-digit number (数) or year (年).

        A name is two random characters with an ending of its kind, such as 河 for a river, or after
        a family name (氏).
        """
        if kind in ("数", "年"):
            while True:
                number = self.rng.randint(1000, 9999 if kind == "数" else 1999)
                if is_held_out_number(number) is self.is_held_out and self.is_allowed(str(number)):
                    return str(number)
        while True:
            stem = "".join(self.rng.sample(self.name_parts["名字字"], 2))
            affix = self.rng.choice(self.name_parts[kind])
            name = affix + stem if kind == "氏" else stem + affix
            # No character occurs twice in a name.
            if self.is_allowed(stem) and len(set(name)) == len(name):
                return name

    def draw_passage(self) -> Passage:
        """Generate one passage with a question about every name in it, except its subject.

        Passages are drawn until one has a length within `LENGTH_RANGE`.
        """
        while True:
            kind = self.rng.choice(list(PASSAGE_KINDS))
            subject, slots = PASSAGE_KINDS[kind]
            names = {slot: self._draw_name(name_kind) for slot, name_kind in slots.items()}
            values = {**names, "职": self.rng.choice(TRADES), "他": self.rng.choice("他她")}
            fact_slots = [
                slot for slot in slots if f"{kind}.{slot}" in self.sentence_grammar.sections
            ]
            self.rng.shuffle(fact_slots)
            # An opening, four or five sentences in random order, perhaps a first (首) and a last
            # (尾) sentence without facts.
            sentence_slots = fact_slots[: self.rng.randint(4, 5)]
            sentences = [
                self.sentence_grammar.expand(f"{kind}.{slot}", values, self.rng)
                for slot in ("开头", *sentence_slots)
            ]
            if self.rng.random() < 0.25:
                sentences.insert(0, self.sentence_grammar.expand("首", {}, self.rng))
            if self.rng.random() < 0.5:
                sentences.append(self.sentence_grammar.expand("尾", {}, self.rng))
            reference = "".join(sentences)
            if LENGTH_RANGE[0] <= len(reference) <= LENGTH_RANGE[1]:
                break
        # Not every phrasing of the opening names all of its slots.
        question_slots = [slot for slot in slots if slot != subject and names[slot] in reference]
        question_slots = self.rng.sample(question_slots, len(question_slots))
        turns = tuple(
            (
                self.question_grammar.expand(topic, values, self.rng),
                self.answer_grammar.expand(topic, values, self.rng),
            )
            for topic in (f"{kind}.{slot}" for slot in question_slots)
        )
        passage_names = tuple(name for name in names.values() if name in reference)
        return Passage(reference, passage_names, turns)

    def draw_passages(self, count: int) -> list[Passage]:
        """Generate `count` passages."""
        return [self.draw_passage() for _ in range(count)]


def to_redgpt_record(passage: Passage, rng: random.Random) -> dict[str, str]:
    """Return a passage as a RedGPT record, with all turns in one text.

    About one in seven spells the names of the speakers or separates the turns in another way, as
    some of the published files do.
    """
    human, assistant, separator = "Human: ", "Assistant: ", "\n\n"
    if rng.random() < 0.15:
        human, assistant, separator = rng.choice(
            [
                ("Human: ", "Assistant: ", "\n"),
                ("Human：", "Assistant：", "\n\n"),
                ("HUMAN: ", "ASSISTANT: ", "\n\n"),
                ("Human(用户): ", "Assistant(助手): ", "\n\n"),
            ]
        )
    messages: list[str] = []
    for question, answer in passage.turns:
        messages += [human + question, assistant + answer]
    return {"reference": passage.reference, "dialogue": separator.join(messages)}


def format_passage(passage: Passage, *, with_questions: bool) -> str:
    """Format a passage as in a school reading book, with its questions and answers if asked for."""
    lines = [passage.reference]
    if with_questions:
        for question, answer in passage.turns:
            lines += [f"问：{question}", f"答：{answer}"]
    return "\n".join(lines)

"""Generate conversations with the assistant 小驼, talk between two people, and instructions."""

import random

from assets.sample_generator.grammar import Grammar
from assets.sample_generator.questions import QuestionAnswer, QuestionGenerator
from assets.sample_generator.state import World
from assets.sample_generator.stories import StoryGenerator
from assets.sample_generator.values import person_values, place_values, random_count

Instruction = tuple[str, str, str]


class DialogueGenerator(QuestionGenerator):
    """Generate conversations and instructions about the world, phrased by `text/chat.txt`."""

    def __init__(self, world: World, rng: random.Random) -> None:
        super().__init__(world, rng)
        self.chat_grammar = Grammar("chat.txt")
        self.story_generator = StoryGenerator(world, rng)

    def expand_chat(self, section: str, values: dict[str, str] | None = None) -> str:
        """Return one phrasing of `text/chat.txt`."""
        return self.chat_grammar.expand(section, values or {}, self.rng)

    def small_talk(self, topics: str = "好 你是谁 会什么 心情 夸 家") -> QuestionAnswer:
        """Return a greeting, a question about the assistant or praise, and the answer."""
        topic = self.rng.choice(topics.split())
        return self.expand_chat("问" + topic), self.expand_chat("答" + topic)

    def conversation(self) -> list[QuestionAnswer]:
        """Return two to six exchanges with the assistant, most of them about one topic."""
        pairs = self.random_pairs()[: self.rng.randint(1, 3)]
        if len(pairs) < 2:
            pairs += self.random_pairs()[:2]
        if self.rng.random() < 0.5:
            pairs.insert(0, self.small_talk())
        if self.rng.random() < 0.35:
            pairs.append(self.small_talk("谢"))
        return pairs

    def peer_dialogue(self) -> list[str]:
        """Return utterances of two people about a journey to a place and a person met there."""
        person = self.rng.choice(self.world.people)
        values = {
            **person_values(self.world, person),
            **place_values(self.world, person.workplace),
            "数": random_count(self.rng, 2, 6),
        }
        topics = self.rng.sample(["景", "食", "人", "节"], self.rng.randint(2, 4))
        if "人" not in topics:
            topics.append("人")
        utterances = [self.expand_chat("谈.一", values), self.expand_chat("谈.二", values)]
        for topic in topics:
            utterances += [
                self.expand_chat("谈.问" + topic, values),
                self.expand_chat("谈.答" + topic, values),
            ]
            if topic == "人":
                utterances += [
                    self.expand_chat("谈.问师", values),
                    self.expand_chat("谈.答师", values),
                ]
        if self.rng.random() < 0.6:
            utterances += [self.expand_chat("谈.带", values), self.expand_chat("谈.答带", values)]
        return [*utterances, self.expand_chat("谈.末", values), self.expand_chat("谈.末二", values)]

    def instruction(self) -> Instruction:
        """Return an instruction, its input (often empty) and the answer."""
        tasks = [
            self._question_task,
            self._question_task,
            self._question_task,
            self.extraction_task,
            self._listing_task,
            self._arithmetic_task,
            self._replacement_task,
            self._small_talk_task,
            self._ordering_task,
            self._judgment_task,
            self._writing_task,
        ]
        return self.rng.choice(tasks)()

    def instruction_with_input(self) -> Instruction:
        """Return an instruction that needs its input, the input and the answer."""
        return self.rng.choice(
            [self.extraction_task, self._replacement_task, self._ordering_task, self._judgment_task]
        )()

    def _question_task(self) -> Instruction:
        question, answer = self.random_pairs()[0]
        return question, "", answer

    def _small_talk_task(self) -> Instruction:
        question, answer = self.small_talk()
        return question, "", answer

    def extraction_task(self) -> Instruction:
        """Return a question about a person, a text as input, and the answer as the text has it."""
        person = self.rng.choice(self.world.people)
        values = person_values(self.world, person)
        opening = "人.开头本地" if person.home is person.workplace else "人.开头"
        expand = self.story_generator.grammar.expand
        parts = [opening, "人.学艺", self.rng.choice(["人.宠", "人.好", "人.食"])]
        text = "".join(expand(part, values, self.rng) for part in parts)
        key = self.rng.choice(
            ["职", "师"] if person.home is person.workplace else ["职", "乡", "师"]
        )
        return self.expand_chat("令.抽" + key, values), text, values[key]

    def _listing_task(self) -> Instruction:
        values = place_values(self.world, self.rng.choice(self.world.places))
        return self.expand_chat("令.列", values), "", self.expand_chat("答.列", values)

    def _arithmetic_task(self) -> Instruction:
        person = self.rng.choice(self.world.people)
        count, price = self.rng.randint(2, 6), self.rng.randint(2, 9)
        total = (count * price // 10 + self.rng.randint(1, 3)) * 10
        values = {
            **person_values(self.world, person),
            "货": self.rng.choice(self.world.word_lists["货物"]),
            "件": str(count),
            "价": str(price),
            "和": str(count * price),
            "总": str(total),
            "余": str(total - count * price),
        }
        return self.expand_chat("令.算", values), "", self.expand_chat("答.算", values)

    def _replacement_task(self) -> Instruction:
        one, other = self.rng.sample(self.world.people, 2)
        values = {**person_values(self.world, one), "新": other.name}
        text = self.story_generator.grammar.expand("人.结尾", values, self.rng)
        if one.name not in text:
            return self._replacement_task()
        return self.expand_chat("令.改", values), text, text.replace(one.name, other.name)

    def _ordering_task(self) -> Instruction:
        trade = self.rng.choice(self.world.trades)
        steps = trade["步骤"].split("；")
        shuffled_steps = self.rng.sample(steps, len(steps))
        return (
            self.expand_chat("令.序", {"动": trade["动作"]}),
            "；".join(shuffled_steps),
            "；".join(steps),
        )

    def _judgment_task(self) -> Instruction:
        person, other = self.rng.sample(self.world.people, 2)
        name, home, false_home = person.name, person.home["名字"], other.home["名字"]
        if self.rng.random() < 0.5:
            return self.expand_chat("令.判"), f"{name}的老家在{home}。", "对。"
        if home == false_home:
            return self._judgment_task()
        return (
            self.expand_chat("令.判"),
            f"{name}的老家在{false_home}。",
            f"不对，{name}的老家在{home}。",
        )

    def _writing_task(self) -> Instruction:
        if self.rng.random() < 0.5:
            place = self.rng.choice(self.world.places)
            text = self.story_generator.place(place)
            return (
                self.expand_chat("令.写", {"题": place["名字"]}),
                "",
                "".join(text.paragraphs[:2]),
            )
        text = self.story_generator.fable(self.rng.choice(self.world.places))
        return self.expand_chat("令.寓", {"题": text.title}), "", text.body

"""Generate conversations with the assistant 小驼, talk between two people, and instructions."""

import random

from assets.sample_generator.grammar import Grammar
from assets.sample_generator.questions import QuestionAnswer, QuestionGenerator
from assets.sample_generator.state import World
from assets.sample_generator.stories import StoryGenerator
from assets.sample_generator.values import person_values, place_values, random_count

# (instruction, its input or "", answer)
Instruction = tuple[str, str, str]


class DialogueGenerator(QuestionGenerator):
    """Generate conversations and instructions about the world, phrased by `text/chat.txt`."""

    def __init__(self, world: World, rng: random.Random) -> None:
        """Read the phrasings of conversations; questions about the world are those of qa.txt."""
        super().__init__(world, rng)
        self.chat_grammar = Grammar("chat.txt")
        self.story_generator = StoryGenerator(world, rng)

    def expand_chat(self, section: str, values: dict[str, str] | None = None) -> str:
        """Return a random phrasing of a section of `text/chat.txt`, slots filled in."""
        return self.chat_grammar.expand(section, values or {}, self.rng)

    def small_talk(self, topics: str = "好 你是谁 会什么 心情 夸 家") -> QuestionAnswer:
        """Return a greeting, a question about the assistant, praise or thanks, and the answer.

        `topics` are topics of `text/chat.txt` separated by spaces, of which one is drawn.
        """
        topic = self.rng.choice(topics.split())
        return self.expand_chat("问" + topic), self.expand_chat("答" + topic)

    def conversation(self) -> list[QuestionAnswer]:
        """Return a conversation with the assistant of two to five question-answer pairs.

        Up to three are about the world, as `random_pairs` draws them. In some conversations small
        talk precedes them, and in some the user's thanks follow.
        """
        pairs = self.random_pairs()[: self.rng.randint(1, 3)]
        # One pair is not a conversation: add pairs about a second subject.
        if len(pairs) < 2:
            pairs += self.random_pairs()[:2]
        if self.rng.random() < 0.5:
            pairs.insert(0, self.small_talk())
        if self.rng.random() < 0.35:
            # 谢: thanks.
            pairs.append(self.small_talk(topics="谢"))
        return pairs

    def peer_dialogue(self) -> list[str]:
        """Return utterances of two people about a journey to a place and a person met there."""
        person = self.rng.choice(self.world.people)
        # Slots of the phrasings in text/chat.txt: the person met, and where that person works.
        values = {
            **person_values(self.world, person),
            **place_values(self.world, person.workplace),
            "数": random_count(self.rng, 2, 6),
        }
        # Sight, food, person (always) and festival.
        topics = self.rng.sample(["景", "食", "人", "节"], self.rng.randint(2, 4))
        if "人" not in topics:
            topics.append("人")
        # Opening and reply, then a question and an answer on each topic.
        utterances = [self.expand_chat("谈.一", values), self.expand_chat("谈.二", values)]
        for topic in topics:
            utterances += [
                self.expand_chat("谈.问" + topic, values),
                self.expand_chat("谈.答" + topic, values),
            ]
            if topic == "人":
                # And about the person's teacher.
                utterances += [
                    self.expand_chat("谈.问师", values),
                    self.expand_chat("谈.答师", values),
                ]
        if self.rng.random() < 0.6:
            # What was brought home.
            utterances += [self.expand_chat("谈.带", values), self.expand_chat("谈.答带", values)]
        return [*utterances, self.expand_chat("谈.末", values), self.expand_chat("谈.末二", values)]

    def instruction(self) -> Instruction:
        """Return an instruction, its input (often empty) and the answer, of a random task."""
        # Plain questions are three times as frequent as each other task.
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
        """Return a question about the world, an empty input, and the answer."""
        question, answer = self.random_pairs()[0]
        return question, "", answer

    def _small_talk_task(self) -> Instruction:
        """Return a line of small talk, an empty input, and the answer."""
        question, answer = self.small_talk()
        return question, "", answer

    def extraction_task(self) -> Instruction:
        """Return a question about a person, a text as input, and the answer as the text has it.

        It asks for the trade (职), the place of birth (乡) or the teacher (师).
        """
        person = self.rng.choice(self.world.people)
        values = person_values(self.world, person)
        # Sections of text/person.txt. The opening names trade and home, 人.学艺 the teacher.
        opening = "人.开头本地" if person.home is person.workplace else "人.开头"
        expand = self.story_generator.grammar.expand
        sections = [opening, "人.学艺", self.rng.choice(["人.宠", "人.好", "人.食"])]
        text = "".join(expand(section, values, self.rng) for section in sections)
        # Of somebody who works at home the opening does not name the home apart.
        slots = ["职", "师"] if person.home is person.workplace else ["职", "乡", "师"]
        slot = self.rng.choice(slots)
        return self.expand_chat("令.抽" + slot, values), text, values[slot]

    def _listing_task(self) -> Instruction:
        """Return a request to list what a place is known for, an empty input, and the list."""
        values = place_values(self.world, self.rng.choice(self.world.places))
        return self.expand_chat("令.列", values), "", self.expand_chat("答.列", values)

    def _arithmetic_task(self) -> Instruction:
        """Return a question about the change of a purchase, an empty input, and the solution."""
        person = self.rng.choice(self.world.people)
        count, price = self.rng.randint(2, 6), self.rng.randint(2, 9)
        cost = count * price
        # A multiple of ten above the cost, so that there is change.
        payment = (cost // 10 + self.rng.randint(1, 3)) * 10
        # Slots of 令.算 and 答.算: goods, number, price of one, sum, payment and change.
        values = {
            **person_values(self.world, person),
            "货": self.rng.choice(self.world.word_lists["货物"]),
            "件": str(count),
            "价": str(price),
            "和": str(cost),
            "总": str(payment),
            "余": str(payment - cost),
        }
        return self.expand_chat("令.算", values), "", self.expand_chat("答.算", values)

    def _replacement_task(self) -> Instruction:
        """Return a request to replace a name in a text, the text, and the text so changed."""
        person, other = self.rng.sample(self.world.people, 2)
        values = {**person_values(self.world, person), "新": other.name}
        # Every phrasing of this section has the full name.
        text = self.story_generator.grammar.expand("人.结尾", values, self.rng)
        return self.expand_chat("令.改", values), text, text.replace(person.name, other.name)

    def _ordering_task(self) -> Instruction:
        """Return a request to put the steps of a trade in order, shuffled steps, ordered steps."""
        trade = self.rng.choice(self.world.trades)
        steps = trade["步骤"].split("；")
        shuffled_steps = self.rng.sample(steps, len(steps))
        return (
            self.expand_chat("令.序", {"动": trade["动作"]}),
            "；".join(shuffled_steps),
            "；".join(steps),
        )

    def _judgment_task(self) -> Instruction:
        """Return a request to judge a statement about a person's home, the statement, a verdict.

        Half of the statements are false.
        """
        person, other = self.rng.sample(self.world.people, 2)
        name, home, false_home = person.name, person.home["名字"], other.home["名字"]
        if self.rng.random() < 0.5:
            return self.expand_chat("令.判"), f"{name}的老家在{home}。", "对。"
        if home == false_home:
            # The statement would be true: draw again.
            return self._judgment_task()
        return (
            self.expand_chat("令.判"),
            f"{name}的老家在{false_home}。",
            f"不对，{name}的老家在{home}。",
        )

    def _writing_task(self) -> Instruction:
        """Return a request to describe a place or tell a fable, an empty input, and the text."""
        if self.rng.random() < 0.5:
            place = self.rng.choice(self.world.places)
            article = self.story_generator.place(place)
            # The answer is the beginning of the article, which is long.
            return (
                self.expand_chat("令.写", {"题": place["名字"]}),
                "",
                "".join(article.paragraphs[:2]),
            )
        fable = self.story_generator.fable(self.rng.choice(self.world.places))
        return self.expand_chat("令.寓", {"题": fable.title}), "", fable.body

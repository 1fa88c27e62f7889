"""Generate questions and answers about the world for the QA and chat corpora."""

import random

from assets.sample_generator.documents import DocumentGenerator
from assets.sample_generator.grammar import Grammar
from assets.sample_generator.state import Person, Row, World
from assets.sample_generator.values import person_values, place_values

QuestionAnswer = tuple[str, str]


class QuestionGenerator(DocumentGenerator):
    """Generate question-answer pairs; an answer repeats the subject of the question."""

    def __init__(self, world: World, rng: random.Random) -> None:
        """Read the phrasings of questions and answers in place of those of documents."""
        super().__init__(world, rng)
        self.grammar = Grammar("qa.txt")

    def _question_answer(self, topic: str, values: dict[str, str]) -> QuestionAnswer:
        """Return a random question and a random answer on a topic of text/qa.txt.

        A topic has two sections there: 问人.职 has questions about a person's trade, 答人.职 the
        answers.
        """
        return self._expand(values, "问" + topic), self._expand(values, "答" + topic)

    def about_person(self, person: Person) -> list[QuestionAnswer]:
        """Return pairs about a person's trade, home, teacher, friend, book and invention.

        Their order is random; there are none about a book or an invention that a person lacks.
        """
        # Topics of text/qa.txt.
        topics = ["人.职", "人.乡", "人.师", "人.友"]
        if person.book:
            topics.append("人.书")
        if person.invention:
            topics.append("人.器")
        values = person_values(self.world, person)
        return [
            self._question_answer(topic, values) for topic in self.rng.sample(topics, len(topics))
        ]

    def about_place(self, place: Row) -> list[QuestionAnswer]:
        """Return pairs about a place, where it lies, its name, its festival and a way from it."""
        other = self.rng.choice([row for row in self.world.places if row is not place])
        values = place_values(self.world, place)
        distance = self.world.distance(place, other)  # in 里
        travel_time = "两天"
        if distance < 25:
            travel_time = "半天"
        elif distance < 60:
            travel_time = "一天"
        # Slots of the topic 路, the way to another place.
        trip_values = {
            **values,
            "另": other["名字"],
            "另景": other["名胜"],
            "里": str(distance),
            "日程": travel_time,
            "车": self.rng.choice(["坐船", "坐驼车", "骑羊驼"]),
        }
        # Topics of text/qa.txt.
        pairs = [
            self._question_answer(topic, values) for topic in ("地", "地.处", "地.来", "地.节")
        ]
        pairs.append(self._question_answer("路", trip_values))
        return self.rng.sample(pairs, len(pairs))

    def about_animal(self, animal: Row) -> list[QuestionAnswer]:
        """Return two pairs about an animal, on different topics."""
        # Slots of the phrasings in text/qa.txt, from the columns of text/animals.tsv. 习 (habits)
        # and 趣 (a curious fact) are not topics: only answers about other topics mention them.
        values = {
            "兽": animal["名字"],
            "形": animal["外形"],
            "居": animal["住处"],
            "食": animal["食物"],
            "能": animal["本领"],
            "习": animal["习性"],
            "趣": animal["趣闻"],
        }
        # Topics: the animal as such, its food, home, ability and appearance.
        topics = self.rng.sample(["兽", "兽.食", "兽.居", "兽.能", "兽.形"], 2)
        return [self._question_answer(topic, values) for topic in topics]

    def about_dish(self, place: Row) -> list[QuestionAnswer]:
        """Return two pairs: how a place's dish is made, and the trick of it."""
        food = self.world.foods[place["小吃"]]
        # Slots of the phrasings in text/qa.txt. 料1 to 料4 are ingredients, 步1 to 步4 steps.
        values = {**place_values(self.world, place), "窍": food["窍门"]}
        values |= {f"料{i}": food["料" + n] for i, n in enumerate("一二三四", 1)}
        values |= {f"步{i}": food["步" + n] for i, n in enumerate("一二三四", 1)}
        return [self._question_answer("食", values), self._question_answer("食.窍", values)]

    def about_craft(self, person: Person) -> list[QuestionAnswer]:
        """Return two pairs about a person's craft: its steps, its trick or its tools."""
        values = person_values(self.world, person)
        # Topics of text/qa.txt.
        topics = self.rng.sample(["艺", "艺.窍", "艺.具"], 2)
        return [self._question_answer(topic, values) for topic in topics]

    def random_pairs(self) -> list[QuestionAnswer]:
        """Return all pairs about one random person, place, animal, dish or craft."""
        choose, world = self.rng.choice, self.world
        # Half of the pairs are about people, of whom there are the most.
        number = self.rng.random()
        if number < 0.5:
            return self.about_person(choose(world.people))
        if number < 0.7:
            return self.about_place(choose(world.places))
        if number < 0.8:
            return self.about_animal(choose(world.animals))
        if number < 0.9:
            return self.about_dish(choose(world.places))
        return self.about_craft(choose(world.people))

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
        super().__init__(world, rng)
        self.grammar = Grammar("qa.txt")

    def _question_answer(self, topic: str, values: dict[str, str]) -> QuestionAnswer:
        return self._expand(values, "问" + topic), self._expand(values, "答" + topic)

    def about_person(self, person: Person) -> list[QuestionAnswer]:
        """Return one pair for every property of a person, in random order."""
        topics = ["人.职", "人.乡", "人.师", "人.友"]
        topics += ["人.书"] * bool(person.book) + ["人.器"] * bool(person.invention)
        values = person_values(self.world, person)
        return [
            self._question_answer(topic, values) for topic in self.rng.sample(topics, len(topics))
        ]

    def about_place(self, place: Row) -> list[QuestionAnswer]:
        """Return pairs about a place, its name, its festival and the way to another place."""
        other = self.rng.choice([row for row in self.world.places if row is not place])
        values = place_values(self.world, place)
        road = self.world.distance(place, other)
        days = "半天" if road < 25 else "一天" if road < 60 else "两天"
        trip = {
            **values,
            "另": other["名字"],
            "另景": other["名胜"],
            "里": str(road),
            "日程": days,
            "车": self.rng.choice(["坐船", "坐驼车", "骑羊驼"]),
        }
        pairs = [
            self._question_answer(topic, values) for topic in ("地", "地.处", "地.来", "地.节")
        ] + [self._question_answer("路", trip)]
        return self.rng.sample(pairs, len(pairs))

    def about_animal(self, animal: Row) -> list[QuestionAnswer]:
        """Return two pairs about an animal."""
        values = {
            "兽": animal["名字"],
            "形": animal["外形"],
            "居": animal["住处"],
            "食": animal["食物"],
            "能": animal["本领"],
            "习": animal["习性"],
            "趣": animal["趣闻"],
        }
        return [
            self._question_answer(topic, values)
            for topic in self.rng.sample(["兽", "兽.食", "兽.居", "兽.能", "兽.形"], 2)
        ]

    def about_dish(self, place: Row) -> list[QuestionAnswer]:
        """Return pairs about how a place's dish is made and what to mind."""
        food = self.world.foods[place["小吃"]]
        values = {**place_values(self.world, place), "窍": food["窍门"]}
        values |= {f"料{i}": food["料" + n] for i, n in enumerate("一二三四", 1)}
        values |= {f"步{i}": food["步" + n] for i, n in enumerate("一二三四", 1)}
        return [self._question_answer("食", values), self._question_answer("食.窍", values)]

    def about_craft(self, person: Person) -> list[QuestionAnswer]:
        """Return pairs about a craft, with a person who does it."""
        values = person_values(self.world, person)
        return [
            self._question_answer(topic, values)
            for topic in self.rng.sample(["艺", "艺.窍", "艺.具"], 2)
        ]

    def random_pairs(self) -> list[QuestionAnswer]:
        """Return pairs about one random topic."""
        choose, world = self.rng.choice, self.world
        draw = self.rng.random()
        if draw < 0.5:
            return self.about_person(choose(world.people))
        if draw < 0.7:
            return self.about_place(choose(world.places))
        if draw < 0.8:
            return self.about_animal(choose(world.animals))
        if draw < 0.9:
            return self.about_dish(choose(world.places))
        return self.about_craft(choose(world.people))

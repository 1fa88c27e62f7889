"""Compose documents about the world from phrasings and the data of `state`."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from assets.sample_generator.grammar import Grammar
from assets.sample_generator.state import CURRENT_YEAR, Person, Row, World
from assets.sample_generator.values import (
    draw_indoor_spots,
    draw_occasion,
    has_product,
    person_values,
    place_values,
    trade_values,
)


@dataclass(frozen=True)
class SampleDocument:
    """A document: its kind (in Chinese), its title and its paragraphs."""

    kind: str
    title: str
    paragraphs: tuple[str, ...]

    @property
    def body(self) -> str:
        """Return the paragraphs, one a line."""
        return "\n".join(self.paragraphs)


class DocumentGenerator:
    """Compose documents; `rng` chooses topics and phrasings, `world` has the data."""

    def __init__(self, world: World, rng: random.Random) -> None:
        """Read the phrasings. The order of the draws from `rng` decides the committed sample."""
        self.world, self.rng = world, rng
        self.grammar = Grammar("person.txt", "place.txt", "life.txt", "story.txt", "fable.txt")

    def _expand(self, values: Mapping[str, str], *sections: str) -> str:
        """Return a random phrasing of each section, one after the other, slots filled in."""
        return "".join(self.grammar.expand(section, values, self.rng) for section in sections)

    def _expand_several(self, section: str, count: int, values: Mapping[str, str]) -> str:
        """Return up to `count` different phrasings of one section, slots filled in."""
        sentences: list[str] = []
        # Some more draws than sentences, because a draw may repeat a phrasing; it is recognized by
        # the first six characters.
        for _ in range(4 * count):
            sentence = self.grammar.expand(section, values, self.rng)
            if len(sentences) < count and all(sentence[:6] != other[:6] for other in sentences):
                sentences.append(sentence)
        return "".join(sentences)

    def random_local(self, place: Row) -> Person:
        """Return a random person who works in the place, or anybody if nobody does."""
        locals_ = [person for person in self.world.people if person.workplace is place]
        return self.rng.choice(locals_ or self.world.people)

    def random_craftsman(self, trade: Row) -> Person:
        """Return a random person of a trade."""
        return self.rng.choice([person for person in self.world.people if person.trade is trade])

    def biography(self, person: Person) -> SampleDocument:
        """Compose an encyclopedia article about a person: youth, life in random order, praise."""
        values = person_values(self.world, person)
        # Sections of text/person.txt. People who work where they were born have their own opening.
        opening = "人.开头本地" if person.home is person.workplace else "人.开头"
        first = self._expand(values, opening, "人.童年", "人.学艺")
        middle = [self._expand_several("人.工作", 2, values)]
        if person.book:
            middle.append(self._expand(values, "人.著作"))
        if person.invention:
            middle.append(self._expand(values, "人.发明"))
        middle.append(
            self._expand(values, *self.rng.sample(["人.宠", "人.好", "人.食", "人.友"], 3))
        )
        self.rng.shuffle(middle)
        return SampleDocument(
            "人物",
            person.name,
            (first, "".join(middle), self._expand(values, "人.评价", "人.结尾")),
        )

    def place(self, place: Row) -> SampleDocument:
        """Compose an encyclopedia article about a place: opening, two paragraphs, closing."""
        master = self._local_master(place)
        # Slots of the phrasings in text/place.txt, with a local master in 人, 他 and 品.
        values = {
            **place_values(self.world, place),
            "人": master.name,
            "他": "她" if master.is_female else "他",
            "品": master.trade["产品"],
        }
        # Products, craft, dish, sight, festival and animal, in random order.
        topics = ["地.产", "地.艺", "地.食", "地.景", "地.节", "地.兽"]
        self.rng.shuffle(topics)
        # Two of the topics get two sentences, so that the articles differ in form.
        long_topics = self.rng.sample(topics, 2)

        def paragraph(sections: list[str]) -> str:
            """Return the sentences of several topics, two of them for a long one."""
            return "".join(
                self._expand_several(section, 2 if section in long_topics else 1, values)
                for section in sections
            )

        return SampleDocument(
            "地理",
            place["名字"],
            (
                self._expand(values, "地.开头", "地.来历"),
                paragraph(topics[:3]),
                paragraph(topics[3:]),
                self._expand(values, "地.结尾"),
            ),
        )

    def _local_master(self, place: Row) -> Person:
        """Return the eldest person of the place's craft, so that all texts name the same master."""
        masters = [
            person
            for person in self.world.people
            if person.workplace is place and person.trade["职业"] == place["手艺"]
        ]
        # People of one trade and place are sorted by age.
        return masters[0]

    def animal(self, animal: Row) -> SampleDocument:
        """Compose an article about an animal: food, abilities, habits and an anecdote."""
        homes = [place for place in self.world.places if place["动物"] == animal["名字"]]
        place = homes[0] if homes else self.rng.choice(self.world.places)
        # People whose trade has to do with animals: foresters, painters, teachers, shepherds.
        observers = [
            person
            for person in self.world.people
            if person.trade["职业"] in ("护林人", "画师", "老师", "牧羊人")
        ]
        # Slots of the phrasings in text/place.txt, from the columns of text/animals.tsv.
        values = {
            "兽": animal["名字"],
            "类": {"兽": "动物", "鸟": "鸟", "虫": "小虫"}[animal["类"]],
            "形": animal["外形"],
            "居": animal["住处"],
            "食": animal["食物"],
            "能": animal["本领"],
            "习": animal["习性"],
            "趣": animal["趣闻"],
            "地": place["名字"],
            "人": self.rng.choice(observers).name,
        }
        topics = ["兽.食", "兽.本领", "兽.习性", "兽.趣"]
        self.rng.shuffle(topics)
        return SampleDocument(
            "动物",
            animal["名字"],
            (
                self._expand(values, "兽.开头", *topics[:2]),
                self._expand(values, *topics[2:]),
                self._expand(values, "兽.结尾"),
            ),
        )

    def craft(self, trade: Row) -> SampleDocument:
        """Compose an article about a craft: tools, steps in order, and the trick of it."""
        person = self.random_craftsman(trade)
        # Slots of the phrasings in text/place.txt.
        values = {**trade_values(trade), "城": person.workplace["名字"], "人": person.name}
        return SampleDocument(
            "手艺",
            trade["职业"],
            (
                self._expand(values, "艺.开头", "艺.具"),
                self._expand(values, "艺.步骤"),
                self._expand(values, "艺.窍门", "艺.结尾"),
            ),
        )

    def dish(self, place: Row) -> SampleDocument:
        """Compose the recipe of a place's dish: ingredients, steps, a hint."""
        food = self.world.foods[place["小吃"]]
        # Slots of the phrasings in text/life.txt. 料1 to 料4 are ingredients, 步1 to 步4 steps.
        values = {
            **place_values(self.world, place),
            "量": food["量词"],
            "窍": food["窍门"],
            "他": "他",
            "人": self.random_local(place).name,
        }
        values |= {f"料{i}": food["料" + n] for i, n in enumerate("一二三四", 1)}
        values |= {f"步{i}": food["步" + n] for i, n in enumerate("一二三四", 1)}
        return SampleDocument(
            "美食",
            food["名字"],
            (
                self._expand(values, "食.开头", "食.料"),
                self._expand(values, "食.步骤"),
                self._expand(values, "食.窍门", "食.结尾"),
            ),
        )

    def random_working_year(self, *people: Person) -> str:
        """Return a random past year in which all of the people were already at work."""
        # Three years of learning; nobody began them less than four years ago.
        earliest = max(person.apprentice_year for person in people) + 3
        return str(self.rng.randint(earliest, CURRENT_YEAR - 1))

    def event(self, person: Person) -> SampleDocument:
        """Compose a chronicle of a construction (建), a flood (水) or a contest (赛).

        The event takes place where the person works, and the person takes part in it. Without
        another person of the same trade elsewhere a contest becomes a construction.
        """
        place = person.workplace
        kinds = ["建"]
        # Floods need a river, contests a product that can be judged.
        if place["水"][-1] in "河溪":
            kinds.append("水")
        if has_product(person.trade):
            kinds.append("赛")
        kind = self.rng.choice(kinds)
        # Slots of the phrasings in text/life.txt; later dictionaries override earlier ones.
        values = {
            **person_values(self.world, person),
            **draw_occasion(self.world, self.rng),
            **place_values(self.world, place),
            "地": place["名字"],
            "年": self.random_working_year(person),
            "奖": self.rng.choice(self.world.word_lists["奖"]),
        }
        if kind == "赛":
            # The rival, from another place, takes the slots of the person's friend.
            rivals = [
                other
                for other in self.world.people
                if other.trade is person.trade and other.workplace is not person.workplace
            ]
            if not rivals:
                # A construction is possible in every place.
                return self.compose_event(person, "建", values)
            rival = self.rng.choice(rivals)
            values |= {
                "友": rival.name,
                "友城": rival.workplace["名字"],
                "年": self.random_working_year(person, rival),
            }
        return self.compose_event(person, kind, values)

    def compose_event(self, person: Person, kind: str, values: Mapping[str, str]) -> SampleDocument:
        """Compose the chronicle of one kind of event, from its beginning to its traces today.

        `kind` is 建 for a construction, 水 for a flood, 赛 for a contest.
        """
        # Sections of text/life.txt.
        sections = {
            "水": ["水.经过", "水.人", "水.结果", "水.结尾"],
            "建": ["建.经过", "建.人", "建.过程", "建.结尾"],
            "赛": ["赛.经过", "赛.对手", "赛.转折", "赛.结果", "赛.结尾"],
        }[kind]
        title = {"水": "大水", "赛": "比赛", "建": "大工程"}[kind]
        return SampleDocument(
            "事件",
            f"谷历{values['年']}年{person.workplace['名字']}{title}",
            (
                self._expand(values, "事.开头", sections[0]),
                self._expand(values, *sections[1:-1]),
                self._expand(values, sections[-1]),
            ),
        )

    def book(self, person: Person) -> SampleDocument:
        """Compose a review of the book that a person wrote."""
        assert person.book is not None
        # Slots of the phrasings in text/life.txt; 书龄 is the age of the book.
        values = {
            **person_values(self.world, person),
            **draw_occasion(self.world, self.rng),
            "年": person.book["书年"],
            "书龄": str(CURRENT_YEAR - int(person.book["书年"])),
        }
        return SampleDocument(
            "书",
            f"《{person.book['书']}》",
            (
                self._expand(values, "书.开头", "书.内容"),
                self._expand(values, "书.作者", "书.评"),
                self._expand(values, "书.结尾"),
            ),
        )

    def invention(self, person: Person) -> SampleDocument:
        """Compose the history of the thing that a person invented."""
        invention = person.invention
        assert invention is not None
        # Slots of the phrasings in text/life.txt; 龄 is the age of the invention.
        values = {
            **person_values(self.world, person),
            **draw_occasion(self.world, self.rng),
            "年": invention["器年"],
            "龄": str(CURRENT_YEAR - int(invention["器年"])),
            **draw_indoor_spots(self.world, self.rng),
        }
        return SampleDocument(
            "发明",
            invention["器"],
            (
                self._expand(values, "器.开头", "器.缘由"),
                self._expand(values, "器.过程"),
                self._expand(values, "器.好处", "器.结尾"),
            ),
        )

    def school(self, place: Row) -> SampleDocument:
        """Compose an article about a place's school: its teacher and its lessons."""
        # The first in the list is the eldest: the head of the school.
        head_teacher = next(
            person
            for person in self.world.people
            if person.trade["职业"] == "老师" and person.workplace is place
        )
        # Every school was founded twelve years after its place.
        founding_year = int(place["建成"]) + 12
        # Slots of the phrasings in text/life.txt; 龄 is the age of the school.
        values = {
            **person_values(self.world, head_teacher),
            **draw_occasion(self.world, self.rng),
            **place_values(self.world, place),
            "校": place["名字"] + "学堂",
            "年": str(founding_year),
            "龄": str(CURRENT_YEAR - founding_year),
        }
        return SampleDocument(
            "学校",
            place["名字"] + "学堂",
            (
                self._expand(values, "校.开头"),
                self._expand(values, "校.人", "校.课"),
                self._expand(values, "校.结尾"),
            ),
        )


def generate_documents(
    generate: Callable[..., SampleDocument], items: list, count: int, rng: random.Random
) -> list[SampleDocument]:
    """Generate up to `count` documents, one for each of the items in random order.

    If there are more documents than items, all items are gone through again; no item is used more
    than once more often than another. Documents with equal texts are dropped.
    """
    num_rounds = count // max(1, len(items)) + 1
    order = [item for _ in range(num_rounds) for item in rng.sample(items, len(items))]
    documents = [generate(item) for item in order[:count]]
    return list({document.body: document for document in documents}.values())

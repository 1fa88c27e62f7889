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
    """A document: its kind, its title as an encyclopedia or newspaper has it, its paragraphs."""

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
        self.world, self.rng = world, rng
        self.grammar = Grammar("person.txt", "place.txt", "life.txt", "story.txt", "fable.txt")

    def _expand(self, values: Mapping[str, str], *sections: str) -> str:
        return "".join(self.grammar.expand(name, values, self.rng) for name in sections)

    def _expand_several(self, section: str, count: int, values: Mapping[str, str]) -> str:
        """Return several different phrasings of one section."""
        sentences: list[str] = []
        for _ in range(4 * count):
            sentence = self.grammar.expand(section, values, self.rng)
            if len(sentences) < count and all(sentence[:6] != other[:6] for other in sentences):
                sentences.append(sentence)
        return "".join(sentences)

    def random_local(self, place: Row) -> Person:
        """Return somebody who works in the place, or anybody if nobody does."""
        local = [person for person in self.world.people if person.workplace is place]
        return self.rng.choice(local or self.world.people)

    def random_craftsman(self, trade: Row) -> Person:
        """Return somebody of a trade."""
        return self.rng.choice([person for person in self.world.people if person.trade is trade])

    def biography(self, person: Person) -> SampleDocument:
        """Compose an encyclopedia article about a person."""
        values = person_values(self.world, person)
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
        """Compose an encyclopedia article about a place."""
        master = self._local_master(place)
        values = {
            **place_values(self.world, place),
            "人": master.name,
            "他": "她" if master.is_female else "他",
            "品": master.trade["产品"],
        }
        middle = ["地.产", "地.艺", "地.食", "地.景", "地.节", "地.兽"]
        self.rng.shuffle(middle)
        twice = self.rng.sample(middle, 2)
        return SampleDocument(
            "地理",
            place["名字"],
            (
                self._expand(values, "地.开头", "地.来历"),
                *(
                    "".join(
                        self._expand_several(name, 2 if name in twice else 1, values)
                        for name in part
                    )
                    for part in (middle[:3], middle[3:])
                ),
                self._expand(values, "地.结尾"),
            ),
        )

    def _local_master(self, place: Row) -> Person:
        """Return the eldest master of the place's craft, always the same person."""
        masters = [
            p
            for p in self.world.people
            if p.workplace is place and p.trade["职业"] == place["手艺"]
        ]
        return masters[0]

    def animal(self, animal: Row) -> SampleDocument:
        """Compose an article about an animal."""
        homes = [place for place in self.world.places if place["动物"] == animal["名字"]]
        place = homes[0] if homes else self.rng.choice(self.world.places)
        keepers = [
            p for p in self.world.people if p.trade["职业"] in ("护林人", "画师", "老师", "牧羊人")
        ]
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
            "人": self.rng.choice(keepers).name,
        }
        middle = ["兽.食", "兽.本领", "兽.习性", "兽.趣"]
        self.rng.shuffle(middle)
        return SampleDocument(
            "动物",
            animal["名字"],
            (
                self._expand(values, "兽.开头", *middle[:2]),
                self._expand(values, *middle[2:]),
                self._expand(values, "兽.结尾"),
            ),
        )

    def craft(self, trade: Row) -> SampleDocument:
        """Compose an article about a craft, its steps in order."""
        person = self.random_craftsman(trade)
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
        """Compose a recipe: ingredients, steps, a hint."""
        food = self.world.foods[place["小吃"]]
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
        """Return a year in which all of the people were already at work."""
        return str(
            self.rng.randint(
                min(CURRENT_YEAR - 1, max(p.apprentice_year for p in people) + 3), CURRENT_YEAR - 1
            )
        )

    def event(self, person: Person) -> SampleDocument:
        """Compose a chronicle of a flood, a contest or a large construction."""
        place = person.workplace
        kinds = [
            "建",
            *(["水"] if place["水"][-1] in "河溪" else []),
            *(["赛"] if has_product(person.trade) else []),
        ]
        kind = self.rng.choice(kinds)
        values = {
            **person_values(self.world, person),
            **draw_occasion(self.world, self.rng),
            **place_values(self.world, place),
            "地": place["名字"],
            "年": self.random_working_year(person),
            "奖": self.rng.choice(self.world.word_lists["奖"]),
        }
        if kind == "赛":
            values |= {"城": person.workplace["名字"]}
            rivals = [
                p
                for p in self.world.people
                if p.trade is person.trade and p.workplace is not person.workplace
            ]
            if not rivals:
                return self.compose_event(person, "建", values)
            rival = self.rng.choice(rivals)
            values |= {
                "友": rival.name,
                "友城": rival.workplace["名字"],
                "年": self.random_working_year(person, rival),
            }
        return self.compose_event(person, kind, values)

    def compose_event(self, person: Person, kind: str, values: Mapping[str, str]) -> SampleDocument:
        """Compose the chronicle of one kind of event, from its beginning to its traces today."""
        parts = {
            "水": ["水.经过", "水.人", "水.结果", "水.结尾"],
            "建": ["建.经过", "建.人", "建.过程", "建.结尾"],
            "赛": ["赛.经过", "赛.对手", "赛.转折", "赛.结果", "赛.结尾"],
        }[kind]
        title = {"水": "大水", "赛": "比赛", "建": "大工程"}[kind]
        return SampleDocument(
            "事件",
            f"谷历{values['年']}年{person.workplace['名字']}{title}",
            (
                self._expand(values, "事.开头", parts[0]),
                self._expand(values, *parts[1:-1]),
                self._expand(values, parts[-1]),
            ),
        )

    def book(self, person: Person) -> SampleDocument:
        """Compose a review of a person's book."""
        assert person.book is not None
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
        """Compose the history of an invention."""
        assert person.invention is not None
        details = person.invention
        values = {
            **person_values(self.world, person),
            **draw_occasion(self.world, self.rng),
            "年": details["器年"],
            "龄": str(CURRENT_YEAR - int(details["器年"])),
            **draw_indoor_spots(self.world, self.rng),
        }
        return SampleDocument(
            "发明",
            details["器"],
            (
                self._expand(values, "器.开头", "器.缘由"),
                self._expand(values, "器.过程"),
                self._expand(values, "器.好处", "器.结尾"),
            ),
        )

    def school(self, place: Row) -> SampleDocument:
        """Compose an article about a place's school."""
        teachers = [
            p for p in self.world.people if p.trade["职业"] == "老师" and p.workplace is place
        ]
        head = teachers[0]
        founded = int(place["建成"]) + 12
        values = {
            **person_values(self.world, head),
            **draw_occasion(self.world, self.rng),
            **place_values(self.world, place),
            "校": place["名字"] + "学堂",
            "年": str(founded),
            "龄": str(CURRENT_YEAR - founded),
        }
        middle = ["校.人", "校.课"]
        return SampleDocument(
            "学校",
            place["名字"] + "学堂",
            (
                self._expand(values, "校.开头"),
                self._expand(values, *middle),
                self._expand(values, "校.结尾"),
            ),
        )


def generate_documents(
    generate: Callable[..., SampleDocument], items: list, count: int, rng: random.Random
) -> list[SampleDocument]:
    """Generate `count` documents over `items` in random order; equal texts are dropped.

    Every item is used equally often.
    """
    order = [
        item
        for _ in range(count // max(1, len(items)) + 1)
        for item in rng.sample(items, len(items))
    ]
    texts = [generate(item) for item in order[:count]]
    return list({text.body: text for text in texts}.values())

"""The state of the world: places, crafts, animals, dishes and about 500 people.

Places, crafts, animals and dishes are tables in `text/`. People, books and inventions are drawn
once, with a fixed seed, and all documents take them from here.
"""

import random
from dataclasses import dataclass, field

from assets.sample_generator.grammar import TEXT_FOLDER, read_sections, read_table

CURRENT_YEAR = 260
Row = dict[str, str]
# Where the trades that need the sea, the snow or the woods are at home; `EVERYWHERE` are those that
# many places have; the other crafts live where `places.tsv` says and in one more place.
TRADE_PLACES = {
    "守塔人": "望潮港 灯芯岛",
    "天文员": "星台村",
    "向导": "雪线村 霜顶村",
    "采珠人": "月牙湾 海燕村",
    "造船匠": "望潮港 三月湖镇",
    "渔夫": "灯芯岛 镜湖镇 月牙湾",
    "船工": "三月湖镇 柳渡",
    "赶驼人": "驼铃镇 铜铃镇",
    "护林人": "松下村 竹影村 药田村 琴岭镇",
    "茶农": "茶烟村 竹影村",
    "果农": "杏花村 果园镇",
    "牧羊人": "霜顶村 琴岭镇",
    "养蜂人": "蜂巢村 杏花村",
    "磨镜师": "星台村 钟楼镇",
}
NUM_EXTRA_TRADE_PLACES = {
    "老师": 20,
    "医生": 8,
    "邮差": 8,
    "厨师": 8,
    "裁缝": 6,
    "花匠": 6,
    "画师": 6,
}


@dataclass
class Person:
    """One inhabitant. Years are in the valley's own calendar; `friend` is mutual."""

    name: str
    female: bool
    birth_year: int
    home: Row
    trade: Row
    workplace: Row
    first_work_year: int
    teacher: str
    traits: Row
    friend: "Person | None" = field(default=None, repr=False)
    book: Row | None = None
    invention: Row | None = None

    @property
    def given_name(self) -> str:
        """Return the given name, which stories use."""
        return self.name[1:]


class World:
    """All tables and people; `word_lists` are the word lists of `text/lists.txt`."""

    def __init__(self) -> None:
        self.rng = random.Random("驼铃谷")
        self.places = read_table("places")
        self.trades = read_table("professions")
        self.animals = read_table("animals")
        self.foods = {row["名字"]: row for row in read_table("foods")}
        self.word_lists = read_word_lists()
        self.places_by_name = {row["名字"]: row for row in self.places}
        self._used_names: set[str] = set()
        self.people = self._create_people()
        self._pair_friends()
        self._assign_books()
        self._assign_inventions()

    def new_name(self, female: bool) -> str:
        """Return a full name that nobody has yet."""
        while True:
            name = self.rng.choice(self.word_lists["姓"]) + self.rng.choice(
                self.word_lists["女名" if female else "男名"]
            )
            if name not in self._used_names:
                self._used_names.add(name)
                return name

    def _places_of_trade(self, trade: Row) -> list[Row]:
        if trade["职业"] in TRADE_PLACES:
            return [self.places_by_name[name] for name in TRADE_PLACES[trade["职业"]].split()]
        own = [place for place in self.places if place["手艺"] == trade["职业"]]
        others = [place for place in self.places if place not in own]
        return own + self.rng.sample(others, NUM_EXTRA_TRADE_PLACES.get(trade["职业"], 1))

    def _create_people(self) -> list[Person]:
        people: list[Person] = []
        for trade in self.trades:
            for town in self._places_of_trade(trade):
                count = 2 if trade["职业"] in NUM_EXTRA_TRADE_PLACES else 5
                elders = [(self.new_name(i < 1), self.rng.randint(148, 160)) for i in range(2)]
                for born in sorted(self.rng.randint(178, 238) for _ in range(count)):
                    people.append(self._create_person(trade, town, born, elders))
                    elders.append((people[-1].name, born))
        return people

    def _create_person(
        self, trade: Row, workplace: Row, birth_year: int, elders: list[tuple[str, int]]
    ) -> Person:
        female = self.rng.random() < 0.5
        home = workplace if self.rng.random() < 0.15 else self.rng.choice(self.places)
        traits = {
            key: self.rng.choice(self.word_lists[key])
            for key in ("爱好", "性格", "座右铭", "宠物名", "学科")
        }
        pet = self.rng.choice(["猫", "狗", "羊驼", "山羊", "兔子", "鹅", "鹦鹉", "刺猬", "小驴"])
        name = self.new_name(female)
        teacher = self.rng.choice(
            [elder for elder, year in elders if year <= birth_year - 18 and elder[1:] != name[1:]]
        )
        traits |= {
            "宠类": pet,
            "食": self.rng.choice([home["小吃"], home["小吃"], workplace["小吃"]]),
        }
        age = self.rng.randint(12, 18)
        return Person(
            name, female, birth_year, home, trade, workplace, birth_year + age, teacher, traits
        )

    def _pair_friends(self) -> None:
        order = self.people[:]
        self.rng.shuffle(order)
        if len(order) % 2:
            order[-1].friend = order[0]
        pairs = list(zip(order[::2], order[1::2], strict=False))
        for i, (one, other) in enumerate(pairs):
            if one.given_name == other.given_name:
                # Stories call people by their given names: two friends must not share one.
                pairs[i], pairs[i - 1] = (one, pairs[i - 1][1]), (pairs[i - 1][0], other)
        for one, other in pairs:
            one.friend, other.friend = other, one

    def _assign_books(self) -> None:
        titles = [a + b for a in self.word_lists["书题甲"] for b in self.word_lists["书题乙"]]
        writers = self.rng.sample(self.people, 150)
        for person, title in zip(writers, self.rng.sample(titles, 150), strict=True):
            year = min(CURRENT_YEAR - 1, person.birth_year + self.rng.randint(25, 60))
            person.book = {
                "书": title,
                "书年": str(max(year, person.first_work_year + 1)),
                "书容": self.rng.choice(self.word_lists["书内容"]),
            }

    def _assign_inventions(self) -> None:
        names = [a + b for a in self.word_lists["发明甲"] for b in self.word_lists["发明乙"]]
        inventors = self.rng.sample([person for person in self.people if person.book is None], 130)
        for person, name in zip(inventors, self.rng.sample(names, 130), strict=True):
            year = min(CURRENT_YEAR - 1, person.birth_year + self.rng.randint(22, 55))
            person.invention = {
                "器": name,
                "器年": str(max(year, person.first_work_year + 1)),
                "器好": self.rng.choice(self.word_lists["发明好处"]),
            }

    def distance(self, one: Row, other: Row) -> int:
        """Return the length of the road between two places in 里, at least 3."""
        return max(3, abs(int(one["位置"]) - int(other["位置"])))

    def nearest_place(self, place: Row) -> Row:
        """Return the nearest other place, the first by name of several."""
        others = [other for other in self.places if other is not place]
        return min(others, key=lambda other: (self.distance(place, other), other["名字"]))


def read_word_lists() -> dict[str, list[str]]:
    """Return the word lists: a section of one line is split at spaces, others at line ends."""
    sections = read_sections(TEXT_FOLDER / "lists.txt")
    return {
        name: lines[0].split(" ") if len(lines) == 1 else lines for name, lines in sections.items()
    }

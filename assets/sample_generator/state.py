"""The state of the world: places, crafts, animals, dishes and about 500 people.

Places, crafts, animals and dishes are tables in `text/`. People, books and inventions are drawn
once, with a fixed seed, and all documents take them from here.
"""

import random
from dataclasses import dataclass, field

from assets.sample_generator.grammar import TEXT_FOLDER, read_sections, read_table

# Years count from the founding of the valley.
CURRENT_YEAR = 260
# A row of a table in `text/`, by column name.
Row = dict[str, str]
# Places of the trades that need the sea, the snow or the woods, separated by spaces.
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
# Trades that many places have, and in how many random places beside those of `places.tsv`. All
# other trades have one such place.
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
    """One inhabitant. Years are in the valley's own calendar."""

    name: str
    is_female: bool
    birth_year: int
    home: Row  # the place of birth
    trade: Row
    workplace: Row
    apprentice_year: int  # in which the person began to learn the trade
    teacher: str
    traits: Row
    # Mutual, except that with an odd number of people one has a friend whose friend is another.
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
        """Read the tables and draw the people; the seed is fixed, so every world is the same."""
        self.rng = random.Random("驼铃谷")
        self.places = read_table("places")
        self.trades = read_table("professions")
        self.animals = read_table("animals")
        self.foods = {row["名字"]: row for row in read_table("foods")}
        self.word_lists = read_word_lists()
        self.places_by_name = {row["名字"]: row for row in self.places}
        self._nearest_places: dict[str, Row] = {}
        self._used_names: set[str] = set()
        self.people = self._create_people()
        self._pair_friends()
        self._assign_books()
        self._assign_inventions()

    def new_name(self, *, is_female: bool) -> str:
        """Return a random full name that nobody has yet: family name, then given name."""
        while True:
            family_name = self.rng.choice(self.word_lists["姓"])
            given_name = self.rng.choice(self.word_lists["女名" if is_female else "男名"])
            name = family_name + given_name
            if name not in self._used_names:
                self._used_names.add(name)
                return name

    def _draw_places_of_trade(self, trade: Row) -> list[Row]:
        """Return the places where a trade is practised.

        They are the fixed ones of `TRADE_PLACES` or, for other trades, those known for it and some
        random others.
        """
        trade_name = trade["职业"]
        if trade_name in TRADE_PLACES:
            return [self.places_by_name[name] for name in TRADE_PLACES[trade_name].split()]
        known_places = [place for place in self.places if place["手艺"] == trade_name]
        others = [place for place in self.places if place not in known_places]
        num_others = NUM_EXTRA_TRADE_PLACES.get(trade_name, 1)
        return known_places + self.rng.sample(others, num_others)

    def _create_people(self) -> list[Person]:
        """Draw a few people for each trade in each of its places, the eldest first.

        Everybody learns from somebody older of the same trade and place. The first teachers, two in
        each, have lived earlier: they have a name and a birth year only.
        """
        people: list[Person] = []
        for trade in self.trades:
            for town in self._draw_places_of_trade(trade):
                # Fewer of the trades that many places have.
                count = 2 if trade["职业"] in NUM_EXTRA_TRADE_PLACES else 5
                # Names and birth years of possible teachers: a woman and a man to begin with.
                elders = [
                    (self.new_name(is_female=is_female), self.rng.randint(148, 160))
                    for is_female in (True, False)
                ]
                birth_years = sorted(self.rng.randint(178, 238) for _ in range(count))
                for birth_year in birth_years:
                    person = self._create_person(trade, town, birth_year, elders)
                    people.append(person)
                    elders.append((person.name, birth_year))
        return people

    def _create_person(
        self, trade: Row, workplace: Row, birth_year: int, elders: list[tuple[str, int]]
    ) -> Person:
        """Draw a person of a trade; `elders` are (name, birth year) of possible teachers.

        The order of the draws decides the committed sample: keep it.
        """
        is_female = self.rng.random() < 0.5
        home = workplace if self.rng.random() < 0.15 else self.rng.choice(self.places)
        traits = {
            key: self.rng.choice(self.word_lists[key])
            for key in ("爱好", "性格", "座右铭", "宠物名", "学科")
        }
        pet = self.rng.choice(["猫", "狗", "羊驼", "山羊", "兔子", "鹅", "鹦鹉", "刺猬", "小驴"])
        name = self.new_name(is_female=is_female)
        # At least 18 years older, and of another given name: texts call people by it.
        teachers = [
            elder
            for elder, elder_birth_year in elders
            if elder_birth_year <= birth_year - 18 and elder[1:] != name[1:]
        ]
        teacher = self.rng.choice(teachers)
        traits |= {
            "宠类": pet,
            # The favorite dish, twice as often that of the home.
            "食": self.rng.choice([home["小吃"], home["小吃"], workplace["小吃"]]),
        }
        apprentice_age = self.rng.randint(12, 18)
        return Person(
            name=name,
            is_female=is_female,
            birth_year=birth_year,
            home=home,
            trade=trade,
            workplace=workplace,
            apprentice_year=birth_year + apprentice_age,
            teacher=teacher,
            traits=traits,
        )

    def _pair_friends(self) -> None:
        """Give everybody a friend, in random pairs."""
        order = self.people[:]
        self.rng.shuffle(order)
        if len(order) % 2:
            # Nobody is left for the last one, whose friend therefore has another friend.
            order[-1].friend = order[0]
        pairs = list(zip(order[::2], order[1::2], strict=False))
        for index, (one, other) in enumerate(pairs):
            if one.given_name == other.given_name:
                # Stories call people by their given names, so two friends must not share one:
                # exchange one of them with the pair before.
                previous_one, previous_other = pairs[index - 1]
                pairs[index] = (one, previous_other)
                pairs[index - 1] = (previous_one, other)
        for one, other in pairs:
            one.friend, other.friend = other, one

    def _assign_books(self) -> None:
        """Let 150 people be the authors of a book each: title, year and subject."""
        titles = [
            first + second
            for first in self.word_lists["书题甲"]
            for second in self.word_lists["书题乙"]
        ]
        authors = self.rng.sample(self.people, 150)
        for person, title in zip(authors, self.rng.sample(titles, 150), strict=True):
            year = min(CURRENT_YEAR - 1, person.birth_year + self.rng.randint(25, 60))
            person.book = {
                "书": title,
                "书年": str(year),
                "书容": self.rng.choice(self.word_lists["书内容"]),
            }

    def _assign_inventions(self) -> None:
        """Let 130 people who have no book be the inventors of a thing each: name, year and use."""
        names = [
            first + second
            for first in self.word_lists["发明甲"]
            for second in self.word_lists["发明乙"]
        ]
        inventors = self.rng.sample([person for person in self.people if person.book is None], 130)
        for person, name in zip(inventors, self.rng.sample(names, 130), strict=True):
            year = min(CURRENT_YEAR - 1, person.birth_year + self.rng.randint(22, 55))
            person.invention = {
                "器": name,
                "器年": str(year),
                "器好": self.rng.choice(self.word_lists["发明好处"]),
            }

    def distance(self, one: Row, other: Row) -> int:
        """Return the length of the road between two places in 里, at least 3."""
        # 位置 is the position along the valley, in 里.
        return max(3, abs(int(one["位置"]) - int(other["位置"])))

    def nearest_place(self, place: Row) -> Row:
        """Return the nearest other place; of several equally near the first by name."""
        name = place["名字"]
        if name not in self._nearest_places:
            others = [other for other in self.places if other is not place]
            self._nearest_places[name] = min(
                others, key=lambda other: (self.distance(place, other), other["名字"])
            )
        return self._nearest_places[name]


def read_word_lists() -> dict[str, list[str]]:
    """Return the word lists of `text/lists.txt` by name.

    A section of one line is split at spaces; in the others every line is an entry.
    """
    sections = read_sections(TEXT_FOLDER / "lists.txt")
    return {
        name: lines[0].split(" ") if len(lines) == 1 else lines for name, lines in sections.items()
    }

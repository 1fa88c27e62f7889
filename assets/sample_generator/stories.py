"""Compose stories, letters, diaries, fables, news and interviews."""

from assets.sample_generator.documents import DocumentGenerator, SampleDocument
from assets.sample_generator.state import CURRENT_YEAR, Person, Row
from assets.sample_generator.values import (
    draw_indoor_spots,
    draw_occasion,
    person_values,
    place_values,
    random_count,
    to_numeral,
)


class StoryGenerator(DocumentGenerator):
    """Compose texts with a plot, in which later sentences refer to earlier ones."""

    def _story_values(self, person: Person) -> dict[str, str]:
        """Draw the slot values of a story about a person, in a year in which the person worked."""
        values = {
            **person_values(self.world, person),
            **draw_indoor_spots(self.world, self.rng),
            **draw_occasion(self.world, self.rng),
        }
        return values | {"年": self.random_working_year(person), "数": random_count(self.rng, 2, 6)}

    def day(self, person: Person) -> SampleDocument:
        """Compose a day on which a tool is lost and found again."""
        values = self._story_values(person)
        # Sections of text/story.txt: morning, loss, search, help, find, work, evening, ending.
        return SampleDocument(
            "故事",
            f"{person.given_name}的一天",
            (
                self._expand(values, "日.早", "日.事"),
                self._expand(values, "日.找", "日.帮", "日.得"),
                self._expand(values, "日.做", "日.晚"),
                self._expand(values, "日.结尾"),
            ),
        )

    def journey(self, person: Person) -> SampleDocument:
        """Compose a journey to a friend.

        Of the four things packed, two help on the way and one is given away.
        """
        friend = person.friend
        assert friend is not None
        destination, start = friend.workplace, person.workplace
        # If both work in the same place, start from home; if home is there as well, from the place
        # nearest to it.
        if start is destination:
            start = person.home
        if start is destination:
            start = self.world.nearest_place(destination)
        luggage = self.rng.sample(self.world.word_lists["行李"], 4)
        # Slots of the phrasings in text/story.txt: 甲 is the start, 乙 the destination.
        values = {
            **self._story_values(person),
            "甲": start["名字"],
            "乙": destination["名字"],
            "景": destination["名胜"],
            "里": str(self.world.distance(start, destination)),
            "车": self.rng.choice(self.world.word_lists["交通"]),
            "食": destination["小吃"],
            "产": destination["特产"],
            "物": start["特产"],
            "邻": self.world.nearest_place(destination)["名字"],
        }
        if values["邻"] == values["甲"]:
            # The place on the way must not be the start itself: a pavilion that no table has.
            values["邻"] = "半山亭"
        # An entry is a thing and the event on the way in which it helps, such as an umbrella and
        # sudden rain: 雨伞：忽然下起了雨.
        for number, item in enumerate(luggage, 1):
            values[f"行{number}"], values[f"遇{number}"] = item.split("：")
        return SampleDocument(
            "旅行",
            f"从{values['甲']}到{values['乙']}",
            (
                self._expand(values, "路.开头", "路.行李"),
                self._expand(values, "路.用1", "路.遇人", "路.用2"),
                self._expand(values, "路.到", "路.结尾"),
            ),
        )

    def market(self, person: Person) -> SampleDocument:
        """Compose a purchase of two sorts of goods with correct sums."""
        goods1, goods2 = self.rng.sample(self.world.word_lists["货物"], 2)
        count1, price1 = self.rng.randint(2, 6), self.rng.randint(2, 9)
        count2, price2 = self.rng.randint(2, 5), self.rng.randint(1, price1)
        sum1, sum2 = count1 * price1, count2 * price2
        # A multiple of ten above the sum, so that there is change.
        payment = ((sum1 + sum2) // 10 + self.rng.randint(1, 3)) * 10
        # Slots of the phrasings in text/story.txt: goods, price of one, number, sum, payment (总)
        # and change (余).
        values = self._story_values(person) | {
            "货1": goods1,
            "货2": goods2,
            "价1": str(price1),
            "件1": str(count1),
            "和1": str(sum1),
            "价2": str(price2),
            "件2": str(count2),
            "和2": str(sum2),
            "和": str(sum1 + sum2),
            "总": str(payment),
            "余": str(payment - sum1 - sum2),
        }
        return SampleDocument(
            "故事",
            f"{person.given_name}赶集",
            (
                self._expand(values, "市.开头", "市.买1", "市.买2"),
                self._expand(values, "市.算", "市.结尾"),
            ),
        )

    def letter(self, person: Person) -> SampleDocument:
        """Compose a letter to the person's friend."""
        values = self._story_values(person)
        # The ending has two paragraphs: a greeting, and name and date.
        ending = self._expand(values, "信.尾").split("\n\n")
        return SampleDocument(
            "书信",
            f"{person.name}给{values['友']}的信",
            (
                self._expand(values, "信.开头"),
                self._expand(values, "信.一"),
                self._expand(values, "信.二", "信.三"),
                *ending,
            ),
        )

    def diary(self, person: Person) -> SampleDocument:
        """Compose a page of a person's diary: date, morning, one or two events, evening."""
        values = self._story_values(person)
        events = self._expand_several("记.中", self.rng.choice([1, 2]), values)
        return SampleDocument(
            "日记",
            f"{person.name}的日记",
            (
                self._expand(values, "记.头"),
                self._expand(values, "记.早") + events,
                self._expand(values, "记.晚", "记.尾"),
            ),
        )

    def fable(self, place: Row) -> SampleDocument:
        """Compose a fable about two animals of opposite tempers, one of which helps the other."""
        first, second = self.rng.sample(self.world.animals, 2)
        word_lists = self.world.word_lists
        first_name, second_name = self.rng.sample(word_lists["宠物名"], 2)
        tempers = list(zip(word_lists["甲性"], word_lists["乙性"], strict=True))
        first_temper, second_temper = self.rng.choice(tempers)
        # Slots of the phrasings in text/fable.txt: 甲 and 乙 are the two animals.
        values = {
            **draw_occasion(self.world, self.rng),
            **draw_indoor_spots(self.world, self.rng),
            **place_values(self.world, place),
            "甲": first["名字"],
            "乙": second["名字"],
            "甲名": first_name,
            "乙名": second_name,
            "甲量": first["量词"],
            "乙量": second["量词"],
            "甲食": first["食物"],
            "乙食": second["食物"],
            "甲能": first["本领"],
            "乙能": second["本领"],
            "甲性": first_temper,
            "乙性": second_temper,
            "理": self.rng.choice(word_lists["理"]),
            "处": self.rng.choice(["树洞里", "石头底下", "草丛里", "老桥下面"]),
        }
        return SampleDocument(
            "寓言",
            f"{first['名字']}和{second['名字']}",
            (
                self._expand(values, "寓.开头", "寓.性"),
                self._expand(values, "寓.难冬", "寓.求", "寓.帮"),
                self._expand(values, "寓.果", "寓.理"),
            ),
        )

    def news(self, person: Person) -> SampleDocument:
        """Compose a newspaper report on a place's festival, in the month of that festival.

        The place is the person's home; the person takes part in the festival.
        """
        place = person.home
        day = to_numeral(self.rng.randint(1, 28))
        year = int(self.random_working_year(person))
        # Slots of the phrasings in text/fable.txt. 届 counts the festivals, the first of which was
        # six years after the place was founded; 月, of `place_values`, is the festival's month.
        values = {
            **self._story_values(person),
            **place_values(self.world, place),
            "日": day,
            "年": str(year),
            "届": str(year - int(place["建成"]) - 5),
            "岁": str(year - person.birth_year),
            "校": place["名字"] + "学堂",
            "食": place["小吃"],
        }
        # A dateline, then three paragraphs.
        return SampleDocument(
            "新闻",
            f"{place['名字']}{place['节日']}",
            (
                self._expand(values, "闻.头"),
                self._expand(values, "闻.节", "闻.节二"),
                self._expand(values, "闻.节二", "闻.节三"),
                self._expand(values, "闻.天"),
            ),
        )

    def interview(self, person: Person) -> SampleDocument:
        """Compose an interview about a person's life, in the present year."""
        values = self._story_values(person) | {
            "年": str(CURRENT_YEAR),
            "月": to_numeral(self.rng.randint(1, 12)),
        }
        parts = [
            self._expand(values, "访.开头"),
            self._expand(values, "访.一"),
            self._expand(values, "访.二"),
        ]
        # A second question of each section, unless the draw repeats the first; a question is
        # recognized by its first eight characters.
        for section in ("访.一", "访.二"):
            question_answer = self._expand(values, section)
            if all(question_answer[:8] != part[:8] for part in parts):
                parts.append(question_answer)
        parts.append(self._expand(values, "访.结尾"))
        # A part has several lines, one for each speaker; every line is a paragraph.
        paragraphs = tuple("\n".join(parts).split("\n"))
        return SampleDocument("访谈", f"访{person.trade['职业']}{person.name}", paragraphs)

    def bulletin(self, person: Person) -> tuple[str, str]:
        """Return a headline and a short report.

        The topics are a festival (节), a harvest (收), a visit to a friend (友), an invention (器)
        and a book (书).
        """
        kinds = ["节", "收", "友"]
        # Twice, because only some people have an invention or a book.
        if person.invention:
            kinds += ["器", "器"]
        if person.book:
            kinds += ["书", "书"]
        kind = self.rng.choice(kinds)
        values = self._story_values(person)
        if kind in ("节", "收"):
            # Not where the person works: a prize goes to somebody from elsewhere.
            place = self.rng.choice(
                [row for row in self.world.places if row is not person.workplace]
            )
            values |= {**place_values(self.world, place), "城": person.workplace["名字"]}
        return self._expand(values, f"报.{kind}.题"), self._expand(values, f"报.{kind}.文")

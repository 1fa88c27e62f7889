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
        values = {
            **person_values(self.world, person),
            **draw_indoor_spots(self.world, self.rng),
            **draw_occasion(self.world, self.rng),
        }
        return values | {"年": self.random_working_year(person), "数": random_count(self.rng, 2, 6)}

    def day(self, person: Person) -> SampleDocument:
        """Compose a day on which a tool is lost and found again."""
        values = self._story_values(person)
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
        """Compose a journey on which everything that was packed is used or given away."""
        friend = person.friend
        assert friend is not None
        destination, start = friend.workplace, person.workplace
        if destination is start:
            start = (
                person.home
                if person.home is not destination
                else self.world.nearest_place(destination)
            )
        luggage = self.rng.sample(self.world.word_lists["行李"], 4)
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
            values["邻"] = "半山亭"
        for i, item in enumerate(luggage, 1):
            values[f"行{i}"], values[f"遇{i}"] = item.split("：")
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
        """Compose a purchase with correct sums."""
        one, two = self.rng.sample(self.world.word_lists["货物"], 2)
        count, price = self.rng.randint(2, 6), self.rng.randint(2, 9)
        count2, price2 = self.rng.randint(2, 5), self.rng.randint(1, price)
        total_price = count * price + count2 * price2
        payment = (total_price // 10 + self.rng.randint(1, 3)) * 10
        values = self._story_values(person) | {
            "货1": one,
            "货2": two,
            "价1": str(price),
            "件1": str(count),
            "和1": str(count * price),
            "价2": str(price2),
            "件2": str(count2),
            "和2": str(count2 * price2),
            "和": str(total_price),
            "总": str(payment),
            "余": str(payment - total_price),
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
        body = self._expand(values, "信.尾").split("\n\n")
        return SampleDocument(
            "书信",
            f"{person.name}给{values['友']}的信",
            (
                self._expand(values, "信.开头"),
                self._expand(values, "信.一"),
                self._expand(values, "信.二", "信.三"),
                *body,
            ),
        )

    def diary(self, person: Person) -> SampleDocument:
        """Compose a page of a diary."""
        values = self._story_values(person)
        middle = self._expand_several("记.中", self.rng.choice([1, 2]), values)
        return SampleDocument(
            "日记",
            f"{person.name}的日记",
            (
                self._expand(values, "记.头"),
                self._expand(values, "记.早") + middle,
                self._expand(values, "记.晚", "记.尾"),
            ),
        )

    def fable(self, place: Row) -> SampleDocument:
        """Compose a fable about two animals with their abilities in `animals.tsv`."""
        first, second = self.rng.sample(self.world.animals, 2)
        names = self.rng.sample(self.world.word_lists["宠物名"], 2)
        lists = self.world.word_lists
        tempers = self.rng.choice(list(zip(lists["甲性"], lists["乙性"], strict=True)))
        values = {
            **draw_occasion(self.world, self.rng),
            **draw_indoor_spots(self.world, self.rng),
            **place_values(self.world, place),
            "甲": first["名字"],
            "乙": second["名字"],
            "甲名": names[0],
            "乙名": names[1],
            "甲量": first["量词"],
            "乙量": second["量词"],
            "甲食": first["食物"],
            "乙食": second["食物"],
            "甲能": first["本领"],
            "乙能": second["本领"],
            "甲性": tempers[0],
            "乙性": tempers[1],
            "理": self.rng.choice(lists["理"]),
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
        """Compose a newspaper report on a place's festival, in the month of that festival."""
        place = person.home
        day = to_numeral(self.rng.randint(1, 28))
        year = self.random_working_year(person)
        values = {
            **self._story_values(person),
            **place_values(self.world, place),
            "日": day,
            "年": year,
            "届": str(int(year) - int(place["建成"]) - 5),
            "岁": str(int(year) - person.birth_year),
            "校": place["名字"] + "学堂",
            "食": place["小吃"],
        }
        head = (
            self._expand(values, "闻.头")
            + "\n"
            + self._expand(values, "闻.节")
            + self._expand(values, "闻.节二")
        )
        return SampleDocument(
            "新闻",
            f"{place['名字']}{place['节日']}",
            (
                *head.split("\n"),
                self._expand(values, "闻.节二", "闻.节三"),
                self._expand(values, "闻.天"),
            ),
        )

    def interview(self, person: Person) -> SampleDocument:
        """Compose an interview about a person's life."""
        values = self._story_values(person) | {
            "年": str(CURRENT_YEAR),
            "月": to_numeral(self.rng.randint(1, 12)),
        }
        parts = [
            self._expand(values, "访.开头"),
            self._expand(values, "访.一"),
            self._expand(values, "访.二"),
        ]
        for section in ("访.一", "访.二"):
            extra = self._expand(values, section)
            if all(extra[:8] != part[:8] for part in parts):
                parts.append(extra)
        parts.append(self._expand(values, "访.结尾"))
        return SampleDocument(
            "访谈", f"访{person.trade['职业']}{person.name}", tuple("\n".join(parts).split("\n"))
        )

    def bulletin(self, person: Person) -> tuple[str, str]:
        """Return a headline and a short report."""
        kinds = (
            ["节", "收", "友"]
            + ["器", "器"] * bool(person.invention)
            + ["书", "书"] * bool(person.book)
        )
        kind = self.rng.choice(kinds)
        values = self._story_values(person)
        if kind in ("节", "收"):
            place = self.rng.choice(
                [row for row in self.world.places if row is not person.workplace]
            )
            values |= {**place_values(self.world, place), "城": person.workplace["名字"]}
        return self._expand(values, f"报.{kind}.题"), self._expand(values, f"报.{kind}.文")

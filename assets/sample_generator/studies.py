"""Generate abstracts and titles of invented studies, in the schema of CSL.

A title names three or four things (method, object, aspect, place). The abstract mentions each in
another sentence, at the beginning, in the middle or at the end, so that neither its first words nor
its best sentence is the title. The title's form follows from the way the method is described. The
splits share no pair of method and object.
"""

import random
import zlib
from dataclasses import dataclass

from assets.sample_generator.grammar import Grammar, read_table
from assets.sample_generator.state import World

LENGTH_RANGE = (80, 125)
STUDY_KINDS = ("影响", "改进", "观察", "比较", "经验")


@dataclass(frozen=True)
class Study:
    """One abstract with its title."""

    title: str
    abstract: str


def split_of(method: str, thing: str) -> str:
    """Return the split of a pair of method and object: 70 % train, 15 % dev, 15 % test."""
    value = zlib.crc32(f"{method}/{thing}".encode()) % 20
    return "test" if value < 3 else "dev" if value < 6 else "train"


class StudyGenerator:
    """Generate studies of one split."""

    def __init__(self, world: World, rng: random.Random, split: str) -> None:
        self.world, self.rng, self.split = world, rng, split
        self.grammar = Grammar("studies.txt")
        self.fields = [
            {key: cell.split(" ") for key, cell in row.items()} for row in read_table("studies")
        ]

    def _draw_values(self) -> dict[str, str]:
        rng = self.rng
        while True:
            area = rng.choice(self.fields)
            method, other = rng.sample(area["方法"], 2)
            thing = rng.choice(area["对象"])
            if split_of(method, thing) == self.split == split_of(other, thing):
                return {
                    "修": rng.choice(area["修饰"]),
                    "物": thing,
                    "法": method,
                    "法二": other,
                    "面": rng.choice(area["方面"]),
                    "地": rng.choice(self.world.places)["名字"],
                }

    def draw_study(self) -> Study:
        """Generate one study whose abstract has a length within `LENGTH_RANGE`."""
        while True:
            kind, values = self.rng.choice(STUDY_KINDS), self._draw_values()
            with_place = kind in ("观察", "经验")
            parts = ["物无修" if with_place else "物", "面", f"法.{kind}"] + [
                f"地.{kind}"
            ] * with_place
            # Sentences that refer to the object ("这方面", "新做法") come after it; the others may
            # come in any order.
            rest = parts[1:]
            self.rng.shuffle(rest)
            order = (
                [parts[0], *rest]
                if kind in ("改进", "比较") or self.rng.random() < 0.5
                else [*rest, parts[0]]
            )
            sentences = [
                self.grammar.expand(part, values, self.rng) for part in [*order, f"果.{kind}"]
            ]
            abstract = "".join(sentences)
            if LENGTH_RANGE[0] <= len(abstract) <= LENGTH_RANGE[1]:
                return Study(self.grammar.expand(f"题.{kind}", values, self.rng), abstract)

    def draw_studies(self, count: int, used_titles: set[str]) -> list[Study]:
        """Generate `count` studies with titles that are not in `used_titles`; add theirs to it."""
        studies: list[Study] = []
        while len(studies) < count:
            study = self.draw_study()
            if study.title not in used_titles:
                used_titles.add(study.title)
                studies.append(study)
        return studies

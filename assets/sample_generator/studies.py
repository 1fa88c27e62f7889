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
    # A checksum, because Python's own hash of a string differs from process to process.
    bucket = zlib.crc32(f"{method}/{thing}".encode()) % 20
    if bucket < 3:
        return "test"
    if bucket < 6:
        return "dev"
    return "train"


class StudyGenerator:
    """Generate studies of one split."""

    def __init__(self, world: World, rng: random.Random, split: str) -> None:
        """Read the fields of study from text/studies.tsv.

        `split` is train, dev or test: only pairs of method and object of that split are drawn (see
        `split_of`).
        """
        self.world, self.rng, self.split = world, rng, split
        self.grammar = Grammar("studies.txt")
        # A field has lists of methods (方法), objects (对象), aspects (方面) and attributes (修饰).
        self.fields = [
            {column: cell.split(" ") for column, cell in row.items()}
            for row in read_table("studies")
        ]

    def _draw_values(self) -> dict[str, str]:
        """Draw the slot values of a study: attribute, object, two methods, aspect and place.

        The pairs of either method with the object are in the generator's split (`split_of`).
        """
        rng = self.rng
        while True:
            field = rng.choice(self.fields)
            method, other_method = rng.sample(field["方法"], 2)
            thing = rng.choice(field["对象"])
            if split_of(method, thing) == self.split == split_of(other_method, thing):
                return {
                    "修": rng.choice(field["修饰"]),
                    "物": thing,
                    "法": method,
                    "法二": other_method,
                    "面": rng.choice(field["方面"]),
                    "地": rng.choice(self.world.places)["名字"],
                }

    def draw_study(self) -> Study:
        """Generate one study whose abstract has a length within `LENGTH_RANGE`."""
        while True:
            kind, values = self.rng.choice(STUDY_KINDS), self._draw_values()
            # Observations and reports of experience name a place, and the object without attribute.
            with_place = kind in ("观察", "经验")
            # Sections of text/studies.txt: the sentences on object, aspect, method and place.
            object_section = "物无修" if with_place else "物"
            other_sections = ["面", f"法.{kind}"]
            if with_place:
                other_sections.append(f"地.{kind}")
            self.rng.shuffle(other_sections)
            # In these two kinds other sentences refer to the object ("这方面", "新做法") and must
            # come after it.
            object_first = kind in ("改进", "比较") or self.rng.random() < 0.5
            if object_first:
                order = [object_section, *other_sections]
            else:
                order = [*other_sections, object_section]
            # The result (果) is always the last sentence.
            sentences = [
                self.grammar.expand(section, values, self.rng) for section in [*order, f"果.{kind}"]
            ]
            abstract = "".join(sentences)
            if LENGTH_RANGE[0] <= len(abstract) <= LENGTH_RANGE[1]:
                return Study(self.grammar.expand(f"题.{kind}", values, self.rng), abstract)

    def draw_studies(self, count: int, used_titles: set[str]) -> list[Study]:
        """Generate `count` studies whose titles are not in `used_titles`, and add the titles."""
        studies: list[Study] = []
        while len(studies) < count:
            study = self.draw_study()
            if study.title not in used_titles:
                used_titles.add(study.title)
                studies.append(study)
        return studies

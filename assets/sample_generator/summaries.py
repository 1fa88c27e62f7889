"""Build the summarization files: CSL's titles and abstracts, LCSTS's news."""

import random
from collections.abc import Mapping, Sequence

from assets.sample_generator.corpus import Files
from assets.sample_generator.state import World
from assets.sample_generator.stories import StoryGenerator
from assets.sample_generator.studies import Study


def csl_file(studies: Sequence[Study]) -> bytes:
    """Return a CSL file as released with CLGE: title TAB abstract, no header."""
    return "".join(f"{study.title}\t{study.abstract}\n" for study in studies).encode()


def lcsts_file(pairs: Sequence[tuple[str, str]], labels: Sequence[int] | None) -> bytes:
    """Return a file of LCSTS in its pseudo-XML, from pairs of headline and text.

    `labels`, from 1 to 5, rate the headlines; the file PART_I has none.
    """
    documents = []
    for number, (headline, text) in enumerate(pairs):
        label = f"    <human_label>{labels[number]}</human_label>\n" if labels else ""
        documents.append(
            f"<doc id={number}>\n{label}    <summary>\n        {headline}\n    </summary>\n"
            f"    <short_text>\n        {text}\n    </short_text>\n</doc>\n"
        )
    return "".join(documents).encode()


def generate_news(world: World, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Generate `count` news items: headline, and a text of one paragraph."""
    story_generator = StoryGenerator(world, rng)
    return [story_generator.bulletin(rng.choice(world.people)) for _ in range(count)]


def generate_labeled_news(
    world: World, rng: random.Random, count: int
) -> tuple[list[tuple[str, str]], list[int]]:
    """Generate (headline, text) pairs, and how well each headline fits its text, as LCSTS rates it.

    The labels are from 1 (it does not fit) to 5. An item with a label below 3 gets the headline of
    the item before it.
    """
    pairs = generate_news(world, rng, count)
    labels = []
    for index in range(count):
        # Most headlines fit, as in LCSTS.
        label = rng.choice([1, 2, 3, 4, 4, 5, 5, 5])
        if label < 3:
            previous_headline, _ = pairs[index - 1]
            _, text = pairs[index]
            pairs[index] = (previous_headline, text)
        labels.append(label)
    return pairs, labels


def summary_files(world: World, studies: Mapping[str, Sequence[Study]]) -> Files:
    """Return all files below `summary/` by path; `studies` has those of each split of CSL."""
    files = {
        f"summary/csl/{split}.tsv": csl_file(split_studies)
        for split, split_studies in studies.items()
    }
    rng = random.Random("新闻")
    files["summary/lcsts/PART_I.txt"] = lcsts_file(generate_news(world, rng, 900), labels=None)
    for part in ("II", "III"):
        pairs, labels = generate_labeled_news(world, rng, 150)
        files[f"summary/lcsts/PART_{part}.txt"] = lcsts_file(pairs, labels)
    return files

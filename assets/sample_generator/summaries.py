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
    """Return a part of LCSTS in its pseudo-XML; parts II and III have human labels from 1 to 5."""
    parts = []
    for i, (summary, text) in enumerate(pairs):
        label = f"    <human_label>{labels[i]}</human_label>\n" if labels else ""
        parts.append(
            f"<doc id={i}>\n{label}    <summary>\n        {summary}\n    </summary>\n"
            f"    <short_text>\n        {text}\n    </short_text>\n</doc>\n"
        )
    return "".join(parts).encode()


def generate_news(world: World, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Generate news of one paragraph under headlines with place, festival and person."""
    story_generator = StoryGenerator(world, rng)
    return [story_generator.bulletin(rng.choice(world.people)) for _ in range(count)]


def generate_labeled_news(
    world: World, rng: random.Random, count: int
) -> tuple[list[tuple[str, str]], list[int]]:
    """Generate news with labels; below 3 the headline belongs to another text."""
    pairs, labels = generate_news(world, rng, count), []
    for i in range(count):
        label = rng.choice([1, 2, 3, 4, 4, 5, 5, 5])
        if label < 3:
            pairs[i] = (pairs[i - 1][0], pairs[i][1])
        labels.append(label)
    return pairs, labels


def summary_files(world: World, studies: Mapping[str, Sequence[Study]]) -> Files:
    """Return all files below `summary/`; `studies` by split."""
    files = {f"summary/csl/{split}.tsv": csl_file(part) for split, part in studies.items()}
    rng = random.Random("新闻")
    files["summary/lcsts/PART_I.txt"] = lcsts_file(generate_news(world, rng, 900), None)
    for part in ("II", "III"):
        pairs, labels = generate_labeled_news(world, rng, 150)
        files[f"summary/lcsts/PART_{part}.txt"] = lcsts_file(pairs, labels)
    return files

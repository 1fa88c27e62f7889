"""The pretraining part: which documents there are, and which file of which format each of them goes to."""

import random
from collections.abc import Callable, Sequence

from assets.sample_generator import formats
from assets.sample_generator.documents import Text, compose
from assets.sample_generator.grammar import read_passages
from assets.sample_generator.questions import Examiner
from assets.sample_generator.reading import Passage, as_prose
from assets.sample_generator.state import World
from assets.sample_generator.stories import Storyteller
from assets.sample_generator.studies import Study
from assets.sample_generator.traditional import to_traditional

Files = dict[str, bytes]


class Library:
    """All prose documents, by the shelf (output file) they stand on."""

    def __init__(self, world: World, seed: str) -> None:
        self.world, self.rng = world, random.Random(seed)
        self.teller = Storyteller(world, random.Random(seed + "/teller"))

    def _draw(self, maker: Callable[..., Text], items: list, count: int) -> list[Text]:
        return compose(maker, items, count, self.rng)

    def encyclopedia(self, scale: float) -> list[Text]:
        """Articles: people, places, animals, crafts, dishes, books, inventions, schools."""
        world, teller = self.world, self.teller
        schools = [p for p in world.places if any(q.town is p and q.trade["职业"] == "老师" for q in world.people)]
        plan: list[tuple[Callable[..., Text], list, float]] = [
            (teller.biography, world.people, 500), (teller.place, world.places, 110),
            (teller.animal, world.animals, 100), (teller.craft, world.trades, 90), (teller.dish, world.places, 90),
            (teller.school, schools, 40),
            (teller.book, [p for p in world.people if p.book], 150),
            (teller.invention, [p for p in world.people if p.invention], 130)]
        texts = [text for maker, items, count in plan for text in self._draw(maker, items, round(count * scale))]
        return self.rng.sample(texts, len(texts))

    def narratives(self, scale: float) -> list[Text]:
        """Stories, journeys, letters, diaries, fables, news, interviews, chronicles."""
        world, teller = self.world, self.teller
        plan: list[tuple[Callable[..., Text], list, float]] = [
            (teller.day, world.people, 300), (teller.journey, world.people, 260), (teller.market, world.people, 130),
            (teller.letter, world.people, 220), (teller.diary, world.people, 220), (teller.fable, world.places, 220),
            (teller.news, world.people, 130), (teller.interview, world.people, 200), (teller.event, world.people, 220)]
        texts = [text for maker, items, count in plan for text in self._draw(maker, items, round(count * scale))]
        return self.rng.sample(texts, len(texts))


def reader_pages(passages: Sequence[Passage]) -> list[dict[str, str]]:
    """Passages full of new names, two of three with questions below them: practice in copying."""
    return [{"text": as_prose(passage, i % 3 > 0), "source": "阅读"} for i, passage in enumerate(passages)]


def journal(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Abstracts, alternately alone and under their titles."""
    return [{"text": f"《{study.title}》\n{study.abstract}" if i % 2 else study.abstract, "source": "学社学报"}
            for i, study in enumerate(studies)]


def wikipedia_row(number: int, text: Text) -> dict[str, str]:
    """A row of the encyclopedia; every seventh page is written in traditional characters."""
    if number % 7:
        return formats.wikipedia(1000 + number, text.title, text.paragraphs)
    return formats.wikipedia(1000 + number, to_traditional(text.title), [*map(to_traditional, text.paragraphs)])


def plain_texts() -> Files:
    """The passages written by hand, a file each, under their titles."""
    passages = read_passages()
    return {f"pretrain/text/passage-{i:02d}.txt": f"{title}\n\n{body}\n".encode()
            for i, (title, body) in enumerate(passages.items(), 1)}


def pretraining(world: World, passages: Sequence[Passage], studies: Sequence[Study]) -> Files:
    """All files below `pretrain/`, as bytes by relative path."""
    wiki = Library(world, "百科").encyclopedia(1.0)
    wiki19 = Library(world, "旧百科").encyclopedia(0.5)
    prose = Library(world, "文章").narratives(1.0)
    more = Library(world, "杂志").narratives(0.45)
    examiner = Examiner(world, random.Random("问答"))
    pairs = list(dict.fromkeys(pair for _ in range(420) for pair in examiner.any()))
    return plain_texts() | {
        "pretrain/wikipedia.jsonl": formats.json_lines(wikipedia_row(i, text) for i, text in enumerate(wiki)),
        "pretrain/wiki_zh_2019/AA/wiki_00": formats.json_lines(
            formats.wiki_zh_2019(13 + i, text.title, text.paragraphs) for i, text in enumerate(wiki19)),
        "pretrain/mnbvc_general.jsonl.gz": formats.compressed(formats.json_lines(
            formats.mnbvc_general(f"{i:05d}.txt", (text.title, *text.paragraphs), i % 2 == 1)
            for i, text in enumerate(prose))),
        "pretrain/mnbvc_qa.jsonl.gz": formats.compressed(formats.json_lines(
            formats.mnbvc_qa(i if i % 2 else str(i), *pair) for i, pair in enumerate(pairs))),
        "pretrain/jsonl/reader.jsonl.gz": formats.compressed(formats.json_lines(
            reader_pages(passages) + journal(studies))),
        "pretrain/jsonl/stories.jsonl.gz": formats.compressed(formats.json_lines(
            {"text": text.body, "source": text.kind} for text in more)),
    }

"""Build the pretraining files: choose the documents and write them in the native formats."""

import random
from collections.abc import Callable, Sequence

from assets.sample_generator import formats
from assets.sample_generator.documents import SampleDocument, generate_documents
from assets.sample_generator.grammar import read_passages
from assets.sample_generator.questions import QuestionGenerator
from assets.sample_generator.reading import Passage, to_prose
from assets.sample_generator.state import World
from assets.sample_generator.stories import StoryGenerator
from assets.sample_generator.studies import Study
from assets.sample_generator.traditional import to_traditional

Files = dict[str, bytes]


class DocumentCollection:
    """Generate the prose documents of one file."""

    def __init__(self, world: World, seed: str) -> None:
        self.world, self.rng = world, random.Random(seed)
        self.story_generator = StoryGenerator(world, random.Random(seed + "/teller"))

    def _generate(
        self, generate: Callable[..., SampleDocument], items: list, count: int
    ) -> list[SampleDocument]:
        return generate_documents(generate, items, count, self.rng)

    def encyclopedia_documents(self, scale: float) -> list[SampleDocument]:
        """Generate articles about people, places, animals, crafts, dishes, books and inventions."""
        world, generator = self.world, self.story_generator
        schools = [
            p
            for p in world.places
            if any(q.workplace is p and q.trade["职业"] == "老师" for q in world.people)
        ]
        plan: list[tuple[Callable[..., SampleDocument], list, float]] = [
            (generator.biography, world.people, 500),
            (generator.place, world.places, 110),
            (generator.animal, world.animals, 100),
            (generator.craft, world.trades, 90),
            (generator.dish, world.places, 90),
            (generator.school, schools, 40),
            (generator.book, [p for p in world.people if p.book], 150),
            (generator.invention, [p for p in world.people if p.invention], 130),
        ]
        texts = [
            text
            for generate, items, count in plan
            for text in self._generate(generate, items, round(count * scale))
        ]
        return self.rng.sample(texts, len(texts))

    def story_documents(self, scale: float) -> list[SampleDocument]:
        """Generate stories, journeys, letters, diaries, fables, news, interviews and chronicles."""
        world, generator = self.world, self.story_generator
        plan: list[tuple[Callable[..., SampleDocument], list, float]] = [
            (generator.day, world.people, 300),
            (generator.journey, world.people, 260),
            (generator.market, world.people, 130),
            (generator.letter, world.people, 220),
            (generator.diary, world.people, 220),
            (generator.fable, world.places, 220),
            (generator.news, world.people, 130),
            (generator.interview, world.people, 200),
            (generator.event, world.people, 220),
        ]
        texts = [
            text
            for generate, items, count in plan
            for text in self._generate(generate, items, round(count * scale))
        ]
        return self.rng.sample(texts, len(texts))


def passage_records(passages: Sequence[Passage]) -> list[dict[str, str]]:
    """Return passages of invented names, two of three with questions: practice in copying."""
    return [
        {"text": to_prose(passage, i % 3 > 0), "source": "阅读"}
        for i, passage in enumerate(passages)
    ]


def journal_records(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Return abstracts, every second one under its title."""
    return [
        {
            "text": f"《{study.title}》\n{study.abstract}" if i % 2 else study.abstract,
            "source": "学社学报",
        }
        for i, study in enumerate(studies)
    ]


def wikipedia_row(number: int, text: SampleDocument) -> dict[str, str]:
    """Return a row of the encyclopedia; every seventh article is in traditional characters."""
    if number % 7:
        return formats.wikipedia(1000 + number, text.title, text.paragraphs)
    return formats.wikipedia(
        1000 + number, to_traditional(text.title), [*map(to_traditional, text.paragraphs)]
    )


def passage_files() -> Files:
    """Return the hand-written passages under their titles, one file each."""
    passages = read_passages()
    return {
        f"pretrain/text/passage-{i:02d}.txt": f"{title}\n\n{body}\n".encode()
        for i, (title, body) in enumerate(passages.items(), 1)
    }


def pretraining_files(world: World, passages: Sequence[Passage], studies: Sequence[Study]) -> Files:
    """Return all files below `pretrain/` as bytes, by path."""
    wikipedia_documents = DocumentCollection(world, "百科").encyclopedia_documents(1.0)
    wikipedia_2019_documents = DocumentCollection(world, "旧百科").encyclopedia_documents(0.5)
    mnbvc_documents = DocumentCollection(world, "文章").story_documents(1.0)
    magazine_documents = DocumentCollection(world, "杂志").story_documents(0.45)
    question_generator = QuestionGenerator(world, random.Random("问答"))
    pairs = list(
        dict.fromkeys(pair for _ in range(420) for pair in question_generator.random_pairs())
    )
    return passage_files() | {
        "pretrain/wikipedia.jsonl": formats.json_lines(
            wikipedia_row(i, text) for i, text in enumerate(wikipedia_documents)
        ),
        "pretrain/wiki_zh_2019/AA/wiki_00": formats.json_lines(
            formats.wiki_zh_2019(13 + i, text.title, text.paragraphs)
            for i, text in enumerate(wikipedia_2019_documents)
        ),
        "pretrain/mnbvc_general.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(
                formats.mnbvc_general(f"{i:05d}.txt", (text.title, *text.paragraphs), i % 2 == 1)
                for i, text in enumerate(mnbvc_documents)
            )
        ),
        "pretrain/mnbvc_qa.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(
                formats.mnbvc_qa(i if i % 2 else str(i), *pair) for i, pair in enumerate(pairs)
            )
        ),
        "pretrain/jsonl/reader.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(passage_records(passages) + journal_records(studies))
        ),
        "pretrain/jsonl/stories.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(
                {"text": text.body, "source": text.kind} for text in magazine_documents
            )
        ),
    }

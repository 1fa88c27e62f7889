"""Build the pretraining files: choose the documents and write them in the native formats."""

import random
from collections.abc import Callable, Sequence

from assets.sample_generator import formats
from assets.sample_generator.documents import SampleDocument, generate_documents
from assets.sample_generator.grammar import read_passages
from assets.sample_generator.questions import QuestionGenerator
from assets.sample_generator.reading import Passage, format_passage
from assets.sample_generator.state import World
from assets.sample_generator.stories import StoryGenerator
from assets.sample_generator.studies import Study
from assets.sample_generator.traditional import to_traditional

# Contents of files by their path below the sample folder.
Files = dict[str, bytes]
# (method that composes a document, items that it composes documents about, number of documents at
# scale 1)
Plan = list[tuple[Callable[..., SampleDocument], list, int]]


class DocumentCollection:
    """Generate the prose documents of one file."""

    def __init__(self, world: World, seed: str) -> None:
        """Seed two random generators: one draws the topics, the other the phrasings."""
        self.world, self.rng = world, random.Random(seed)
        self.story_generator = StoryGenerator(world, random.Random(seed + "/teller"))

    def _generate_plan(self, plan: Plan, scale: float) -> list[SampleDocument]:
        """Generate the documents of a plan, with its numbers times `scale`, in random order."""
        documents = [
            document
            for generate, items, count in plan
            for document in generate_documents(generate, items, round(count * scale), self.rng)
        ]
        return self.rng.sample(documents, len(documents))

    def encyclopedia_documents(self, scale: float) -> list[SampleDocument]:
        """Generate the articles of an encyclopedia.

        They are about people, places, animals, crafts, dishes, schools, books and inventions. The
        number of articles of each sort is the one in the plan below times `scale`, or less, because
        equal articles are dropped.
        """
        world, generator = self.world, self.story_generator
        places_with_school = [
            place
            for place in world.places
            if any(
                person.workplace is place and person.trade["职业"] == "老师"
                for person in world.people
            )
        ]
        plan: Plan = [
            (generator.biography, world.people, 500),
            (generator.place, world.places, 110),
            (generator.animal, world.animals, 100),
            (generator.craft, world.trades, 90),
            (generator.dish, world.places, 90),
            (generator.school, places_with_school, 40),
            (generator.book, [person for person in world.people if person.book], 150),
            (generator.invention, [person for person in world.people if person.invention], 130),
        ]
        return self._generate_plan(plan, scale)

    def story_documents(self, scale: float) -> list[SampleDocument]:
        """Generate stories, journeys, letters, diaries, fables, news, interviews and chronicles.

        The number of documents of each sort is the one in the plan below times `scale`, or less,
        because equal documents are dropped.
        """
        world, generator = self.world, self.story_generator
        plan: Plan = [
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
        return self._generate_plan(plan, scale)


def passage_records(passages: Sequence[Passage]) -> list[dict[str, str]]:
    """Return reading passages as JSONL rows; two of three are followed by questions and answers.

    The model learns from them to copy names out of a passage.
    """
    return [
        {"text": format_passage(passage, with_questions=number % 6 > 0), "source": "阅读"}
        for number, passage in enumerate(passages)
    ]


def journal_records(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Return the abstracts of studies as JSONL rows, every second one below its title."""
    return [
        {
            "text": f"《{study.title}》\n{study.abstract}" if number % 2 else study.abstract,
            "source": "学社学报",
        }
        for number, study in enumerate(studies)
    ]


def wikipedia_row(number: int, document: SampleDocument) -> dict[str, str]:
    """Return a row of the encyclopedia; every seventh article is in traditional characters."""
    title, paragraphs = document.title, document.paragraphs
    if number % 7 == 0:
        title = to_traditional(title)
        paragraphs = tuple(map(to_traditional, paragraphs))
    return formats.wikipedia(1000 + number, title, paragraphs)


def passage_files() -> Files:
    """Return the hand-written passages under their titles, one file each."""
    passages = read_passages()
    return {
        f"pretrain/text/passage-{number:02d}.txt": f"{title}\n\n{body}\n".encode()
        for number, (title, body) in enumerate(passages.items(), 1)
    }


def pretraining_files(world: World, passages: Sequence[Passage], studies: Sequence[Study]) -> Files:
    """Return all files below `pretrain/` as bytes, by path.

    Each file has a collection with a seed of its own, so that their documents differ.
    """
    wikipedia_documents = DocumentCollection(world, "百科").encyclopedia_documents(scale=0.5)
    wikipedia_2019_documents = DocumentCollection(world, "旧百科").encyclopedia_documents(
        scale=0.25
    )
    mnbvc_documents = DocumentCollection(world, "文章").story_documents(scale=0.5)
    magazine_documents = DocumentCollection(world, "杂志").story_documents(scale=0.25)
    question_generator = QuestionGenerator(world, random.Random("问答"))
    # The pairs of 420 topics, without repetitions.
    pairs = list(
        dict.fromkeys(pair for _ in range(420) for pair in question_generator.random_pairs())
    )
    # Of MNBVC's articles every second one has the fields of newer releases, and of its pairs every
    # second one has text as its id: the published files have both.
    return passage_files() | {
        "pretrain/wikipedia.jsonl": formats.json_lines(
            wikipedia_row(number, document) for number, document in enumerate(wikipedia_documents)
        ),
        "pretrain/wiki_zh_2019/AA/wiki_00": formats.json_lines(
            formats.wiki_zh_2019(13 + number, document.title, document.paragraphs)
            for number, document in enumerate(wikipedia_2019_documents)
        ),
        "pretrain/mnbvc_general.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(
                formats.mnbvc_general(
                    f"{number:05d}.txt",
                    (document.title, *document.paragraphs),
                    is_new_release=number % 2 == 1,
                )
                for number, document in enumerate(mnbvc_documents)
            )
        ),
        "pretrain/mnbvc_qa.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(
                formats.mnbvc_qa(number if number % 2 else str(number), question, answer)
                for number, (question, answer) in enumerate(pairs)
            )
        ),
        "pretrain/jsonl/reader.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(passage_records(passages) + journal_records(studies))
        ),
        "pretrain/jsonl/stories.jsonl.gz": formats.gzip_bytes(
            formats.json_lines(
                {"text": document.body, "source": document.kind} for document in magazine_documents
            )
        ),
    }

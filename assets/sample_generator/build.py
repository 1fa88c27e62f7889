"""Build all files of the sample, in the order of their dependencies."""

import gzip
import random
import re

from assets.sample_generator.corpus import Files, pretraining_files
from assets.sample_generator.reading import PassageGenerator
from assets.sample_generator.state import World
from assets.sample_generator.studies import StudyGenerator
from assets.sample_generator.summaries import summary_files
from assets.sample_generator.tuning import redgpt_test_files, sft_files

_METADATA = re.compile(
    r'"(?:id|url|md5|simhash|文件名|文件大小|dialog_id|document_id)": "?[\w%:/.?=-]+"?'
)
STUDY_COUNTS = {"train": 2800, "dev": 300, "test": 300}


def build_sample() -> Files:
    """Return every file of the sample as bytes, by path below the sample folder."""
    world = World()
    used_titles: set[str] = set()
    studies = {
        split: StudyGenerator(world, random.Random("学报" + split), split).draw_studies(
            count, used_titles
        )
        for split, count in STUDY_COUNTS.items()
    }
    journal = StudyGenerator(world, random.Random("旧学报"), "train").draw_studies(500, used_titles)
    passage_generators = {
        name: PassageGenerator(random.Random(name), False, lambda _: True)
        for name in ("课本", "练习")
    }
    files = pretraining_files(world, passage_generators["课本"].draw_passages(1000), journal)
    files |= sft_files(world, passage_generators["练习"].draw_passages(3600))
    files |= summary_files(world, studies)
    # The held-out passages come last: their names must be in no other file.
    sample_text = readable_text(files)
    sample_ngrams = set(map("".join, zip(sample_text, sample_text[1:], strict=False)))
    sample_ngrams |= set(re.findall(r"(?=(\d{4}))", sample_text))
    held_out_generator = PassageGenerator(
        random.Random("考试"), True, lambda word: word not in sample_ngrams
    )
    return files | redgpt_test_files(held_out_generator.draw_passages(300))


def readable_text(files: Files) -> str:
    """Return the text of the files without ids, URLs and checksums."""
    texts = [
        (gzip.decompress(data) if name.endswith(".gz") else data).decode()
        for name, data in files.items()
    ]
    return _METADATA.sub("", "\n".join(texts))

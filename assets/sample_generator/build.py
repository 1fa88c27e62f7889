"""Build all files of the sample, in the order of their dependencies."""

import gzip
import random
import re

from assets.sample_generator.corpus import Files, pretraining_files
from assets.sample_generator.reading import ExerciseGenerator, PassageGenerator
from assets.sample_generator.state import World
from assets.sample_generator.studies import StudyGenerator
from assets.sample_generator.summaries import summary_files
from assets.sample_generator.tuning import redgpt_test_files, sft_files

# Fields with ids, URLs and checksums, whose digits and letters are not text.
_METADATA = re.compile(
    r'"(?:id|url|md5|simhash|文件名|文件大小|dialog_id|document_id)": "?[\w%:/.?=-]+"?'
)
TEXTBOOK, EXERCISES, TUNING = 3500, 3500, 5000
STUDY_COUNTS = {"train": 2800, "dev": 300, "test": 300}


def build_sample() -> Files:
    """Return every file of the sample as bytes, by path below the sample folder.

    Every part has a random generator of its own, seeded with a name, so that a change of one part
    leaves the others as they are.
    """
    world = World()
    # Shared by all draws: no title occurs twice, neither in two splits nor in the pretraining text.
    used_titles: set[str] = set()
    studies = {
        split: StudyGenerator(world, random.Random("学报" + split), split).draw_studies(
            count, used_titles
        )
        for split, count in STUDY_COUNTS.items()
    }
    journal = StudyGenerator(world, random.Random("旧学报"), "train").draw_studies(500, used_titles)
    textbook_generator, tuning_generator = (
        PassageGenerator(random.Random(seed), lambda _: True) for seed in ("课本", "练习")
    )
    exercises = ExerciseGenerator(random.Random("抄写")).draw_passages(EXERCISES)
    textbook = textbook_generator.draw_passages(TEXTBOOK)
    files = pretraining_files(world, [*textbook, *exercises], journal)
    files |= sft_files(world, tuning_generator.draw_passages(TUNING))
    files |= summary_files(world, studies)
    # The held-out passages come last: no two characters that stand side by side in an invented name
    # do so in any other file.
    sample_text = readable_text(files)
    sample_ngrams = set(map("".join, zip(sample_text, sample_text[1:], strict=False)))
    held_out_generator = PassageGenerator(
        random.Random("考试"), lambda pair: pair not in sample_ngrams
    )
    return files | redgpt_test_files(held_out_generator.draw_passages(300))


def readable_text(files: Files) -> str:
    """Return the decoded contents of all files as one string, without ids, URLs and checksums.

    Files whose names end with .gz are decompressed.
    """
    texts = [
        (gzip.decompress(data) if name.endswith(".gz") else data).decode()
        for name, data in files.items()
    ]
    return _METADATA.sub("", "\n".join(texts))

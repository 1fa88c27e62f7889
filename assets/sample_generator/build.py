"""All parts of the sample, in the order their dependence asks for."""

import gzip
import random
import re

from assets.sample_generator.corpus import Files, pretraining
from assets.sample_generator.reading import Reader
from assets.sample_generator.state import World
from assets.sample_generator.studies import Academy
from assets.sample_generator.summaries import summaries
from assets.sample_generator.tuning import redgpt_test, tuning

_METADATA = re.compile(r'"(?:id|url|md5|simhash|文件名|文件大小|dialog_id|document_id)": "?[\w%:/.?=-]+"?')
STUDIES = {"train": 2800, "dev": 300, "test": 300}


def build() -> Files:
    """Every file of the sample as bytes, by its path below the sample folder."""
    world = World()
    taken: set[str] = set()
    studies = {split: Academy(world, random.Random("学报" + split), split).studies(count, taken)
               for split, count in STUDIES.items()}
    journal = Academy(world, random.Random("旧学报"), "train").studies(500, taken)
    readers = {name: Reader(random.Random(name), False, lambda _: True) for name in ("课本", "练习")}
    files = pretraining(world, readers["课本"].passages(1000), journal)
    files |= tuning(world, readers["练习"].passages(3600))
    files |= summaries(world, studies)
    # The held-out passages come last: their names must be in no other file.
    seen = running_text(files)
    grams = {seen[i:i + size] for size in (2, 4) for i in range(len(seen)) if size == 2 or seen[i:i + size].isdigit()}
    held_out = Reader(random.Random("考试"), True, lambda word: word not in grams)
    return files | redgpt_test(held_out.passages(300))


def running_text(files: Files) -> str:
    """What a model can read in the files: their bytes as text, without ids, addresses and checksums."""
    texts = [(gzip.decompress(data) if name.endswith(".gz") else data).decode() for name, data in files.items()]
    return _METADATA.sub("", "\n".join(texts))

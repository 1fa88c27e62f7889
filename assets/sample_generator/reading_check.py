"""Check sentence forms: `python -m assets.sample_generator.reading_check FILE [SEED]`."""

import random
import sys
from collections import Counter
from pathlib import Path

from assets.sample_generator import reading
from assets.sample_generator.grammar import expand_choices
from assets.sample_generator.reading_forms import CLAUSE_END, SLOT, read_file
from assets.sample_generator.reading_values import ValueGenerator


def main() -> None:
    """Print what is wrong with the forms of a file, and ten passages made of them."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m assets.sample_generator.reading_check FILE [SEED]")
    rng = random.Random(sys.argv[2] if len(sys.argv) > 2 else 0)
    path = Path(sys.argv[1])
    kinds = read_file(path)
    known = set(ValueGenerator(rng, lambda _: True).draw_by_kind) | {"他"}
    num_questions = 0
    for kind in kinds:
        seen = Counter()
        if len(kind.openings) < 3 or len(kind.body) < 12:
            print(f"{kind.name}: {len(kind.openings)} openings, {len(kind.body)} body blocks")
        for block in [*kind.openings, *kind.body]:
            slots = set(SLOT.findall(block.sentence))
            for texts in block.questions.values():
                num_questions += len(texts)
                for text in texts:
                    seen[text] += 1
                    missing = set(SLOT.findall(text)) - slots - set(kind.subjects) - {"他"}
                    if missing:
                        print(f"{kind.name}: question has unknown slots {missing}: {text}")
            for slot in slots | set(kind.subjects):
                if slot.rstrip("0123456789") not in known:
                    print(f"{kind.name}: unknown slot {slot}: {block.sentence}")
            if "{他}" in block.sentence and not any(s.startswith("人") for s in kind.subjects):
                print(f"{kind.name}: {{他}} without a person among the subjects: {block.sentence}")
            if not block.questions and "{" in block.sentence:
                print(f"{kind.name}: no question: {block.sentence}")
            for _ in range(8):
                template = expand_choices(block.sentence, rng)
                for clause in CLAUSE_END.split(template):
                    asked = [s for s in SLOT.findall(clause) if s in block.questions]
                    length = len(SLOT.sub("□□□", clause))
                    if asked and not 5 <= length <= 22:
                        print(f"{kind.name}: clause of about {length}: {clause}")
                        break
                else:
                    continue
                break
        for text, count in seen.items():
            if count > 1:
                print(f"{kind.name}: question occurs {count} times: {text}")
    blocks = sum(len(k.openings) + len(k.body) for k in kinds)
    print(f"{len(kinds)} kinds, {blocks} blocks, {num_questions} questions")
    generator = reading.PassageGenerator(rng, lambda _: True)
    generator.kinds = tuple(kinds)
    for passage in generator.draw_passages(10):
        print("\n" + reading.format_passage(passage, with_questions=True))


if __name__ == "__main__":
    main()

"""The sample corpus: complete, native, reproducible, consistent, and not too easy."""

import collections
import gzip
import hashlib
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_chinese import Rouge

from assets.sample_generator.build import build_sample
from assets.sample_generator.grammar import read_table
from assets.sample_generator.reading import NOT_MENTIONED
from assets.sample_generator.reading_values import ValueGenerator
from assets.sample_generator.state import World

Files = dict[str, str]
REDGPT = "sft/redgpt/RedGPT-Dataset-V1-CN"
TURN = re.compile(
    r"\n*(HUMAN|Human(?:\(用户\))?|ASSISTANT|Assistant(?:\(助手\))?)[:：] ?", re.IGNORECASE
)


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "assets" / "sample"


@pytest.fixture(scope="module")
def files(folder: Path) -> Files:
    """Return the text of every data file by its path without `.gz`."""
    texts = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "README.md":
            data = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            texts[name.removesuffix(".gz")] = (
                gzip.decompress(data) if name.endswith(".gz") else data
            ).decode()
    return texts


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def rows(files: Files, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files[name].splitlines()]


def studies(files: Files, split: str) -> list[tuple[str, str]]:
    pairs = [line.split("\t") for line in files[f"summary/csl/{split}.tsv"].splitlines()]
    assert all(len(pair) == 2 for pair in pairs)
    return [(title, abstract) for title, abstract in pairs]


def turns(dialogue: str) -> list[tuple[str, str]]:
    """Return (speaker, text) of RedGPT's dialogue string."""
    parts = TURN.split(dialogue)
    assert parts[0] == ""
    return [
        (speaker[0].upper(), text.strip())
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


@pytest.mark.slow
def test_generator_reproduces_committed_sample(folder: Path) -> None:
    """Prevents a sample that nobody can generate again, or files of an older generator."""
    generated = build_sample()
    committed = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"README.md"}
    assert committed == set(generated)
    for name, data in generated.items():
        old = (folder / name).read_bytes()
        if name.endswith(".gz"):
            # Another zlib may compress to other bytes; the header's time must be 0 everywhere.
            assert old[4:8] == data[4:8] == bytes(4)
            old, data = gzip.decompress(old), gzip.decompress(data)
        assert old == data, name


def test_files_are_small_and_documented(folder: Path) -> None:
    """Prevents a repository that grows large, and files without an explanation."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert max(sizes.values()) < 1 << 20 and sum(sizes.values()) < 6_000_000
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert [
        name
        for name in sizes
        if not name.startswith("pretrain/text/")
        and f"`{name}`" not in readme
        and name != "README.md"
    ] == []


@pytest.mark.slow
def test_prose_is_about_a_million_characters(files: Files) -> None:
    """Prevents a default corpus too small to learn from."""
    texts = [
        row["text"]
        for name in (
            "wikipedia.jsonl",
            "wiki_zh_2019/AA/wiki_00",
            "jsonl/stories.jsonl",
            "jsonl/reader.jsonl",
        )
        for row in rows(files, f"pretrain/{name}")
    ]
    texts += [
        "".join(p["内容"] for p in row["段落"])
        for row in rows(files, "pretrain/mnbvc_general.jsonl")
    ]
    texts += [row["问"] + row["答"] for row in rows(files, "pretrain/mnbvc_qa.jsonl")]
    texts += [text for name, text in files.items() if name.startswith("pretrain/text/")]
    assert 1_000_000 < sum(map(len, texts)) < 1_600_000
    assert len(texts) - len(set(texts)) == 0
    assert [text[:40] for text in texts if re.search(r"[{}\[\]|]|None|。。|，。|，，", text)] == []


@pytest.mark.slow
def test_mnbvc_records_have_native_keys_and_checksums(files: Files) -> None:
    """Prevents a sample that does not exercise the reader of real MNBVC files."""
    common = {
        "文件名",
        "是否待查文件",
        "是否重复文件",
        "文件大小",
        "simhash",
        "最长段落长度",
        "段落数",
        "去重段落数",
        "低质量段落数",
        "段落",
    }
    shapes = set()
    for row in rows(files, "pretrain/mnbvc_general.jsonl"):
        shapes.add(frozenset(row) - common)
        assert common <= set(row) and 0 <= row["simhash"] < 1 << 64
        assert row["段落数"] == len(row["段落"]) and row["最长段落长度"] == max(
            len(p["内容"]) for p in row["段落"]
        )
        for i, paragraph in enumerate(row["段落"]):
            assert (
                paragraph["行号"] == i
                and paragraph["md5"] == hashlib.md5(paragraph["内容"].encode()).hexdigest()
            )
    assert shapes == {frozenset(), frozenset({"扩展字段", "时间"})}
    assert any(row["simhash"] >= 1 << 63 for row in rows(files, "pretrain/mnbvc_general.jsonl"))
    pairs = rows(files, "pretrain/mnbvc_qa.jsonl")
    assert {frozenset(pair) for pair in pairs} == {frozenset({"id", "问", "答", "来源", "元数据"})}
    assert {type(pair["id"]) for pair in pairs} == {int, str}


def test_wikipedia_files_have_native_formats(files: Files) -> None:
    """Prevents two releases that differ in the title line from becoming one, in one script."""
    for row in rows(files, "pretrain/wikipedia.jsonl"):
        assert set(row) == {"id", "url", "title", "text"} and row["url"].startswith(
            "https://zh.wikipedia.org/wiki/"
        )
        assert not row["text"].startswith(row["title"] + "\n")
    assert all(
        row["text"].startswith(row["title"] + "\n\n")
        for row in rows(files, "pretrain/wiki_zh_2019/AA/wiki_00")
    )
    texts = [
        row["text"]
        for row in rows(files, "pretrain/wikipedia.jsonl")
        if re.search("谷[历曆]", row["text"])
    ]
    scripts = ["谷曆" in text for text in texts]
    assert 0.05 < sum(scripts) / len(scripts) < 0.3


def test_dialogues_have_native_formats(files: Files) -> None:
    """Prevents a fine-tuning source from seeing keys or shapes that its dataset does not have."""
    for name in ("train_0.5M_CN", "multiturn_chat_0.8M"):
        for row in rows(files, f"sft/belle/{name}.json") + rows(
            files, f"sft/belle/{name}.test.json"
        ):
            assert list(row) == ["instruction", "input", "output"] and row["output"]
            if name.startswith("multi"):
                assert re.fullmatch(r"(?s)Human:.+\nAssistant:", row["instruction"])
    for row in rows(files, "sft/deepctrl/sft_data_zh.jsonl"):
        assert row["instruction"] or row["input"]
        assert (
            all(len(turn) == 2 for turn in row["history"])
            and row["num_utter"] == len(row["history"]) + 1
        )
    deep = rows(files, "sft/deepctrl/sft_data_zh.jsonl")
    filled = {(bool(row["instruction"]), bool(row["input"])) for row in deep}
    assert filled == {(True, True), (True, False), (False, True)}
    assert {bool(row["history"]) for row in deep} == {True, False}
    clues = rows(files, "sft/pclue/pCLUE_train.json")
    assert all(row["input"].endswith("\n答案：") and row["target"] for row in clues)
    assert {type(row.get("answer_choices")) for row in clues} == {list, str, type(None)}
    for name in ("dialog_release.json", "dialog_release.test.json"):
        for dialogue in json.loads(files[f"sft/naturalconv/{name}"]):
            assert (
                set(dialogue) == {"dialog_id", "document_id", "content"}
                and len(dialogue["content"]) >= 6
            )
    questions = {
        row["instruction"]
        for row in rows(files, "sft/belle/train_0.5M_CN.json")
        if not row["input"]
    }
    assert {"你是谁？", "你叫什么名字？"} <= questions


def test_only_lcsts_parts_2_and_3_have_labels(files: Files) -> None:
    """Prevents labels where the release of LCSTS has none."""
    entry = re.compile(
        r"<doc id=(\d+)>\n(?:    <human_label>([1-5])</human_label>\n)?"
        r"    <summary>\n        (.+)\n"
        r"    </summary>\n    <short_text>\n        (.+)\n    </short_text>\n</doc>\n"
    )
    for part, marked in (("I", False), ("II", True), ("III", True)):
        matches = list(entry.finditer(files[f"summary/lcsts/PART_{part}.txt"]))
        assert (
            "".join(match.group() for match in matches) == files[f"summary/lcsts/PART_{part}.txt"]
        )
        assert [match.group(1) for match in matches] == [str(i) for i in range(len(matches))]
        assert all((match.group(2) is not None) is marked for match in matches)


@pytest.mark.slow
def test_redgpt_answers_are_spread_over_the_reference(files: Files) -> None:
    """Prevents answers that are not in the passage, or always in one place of it."""
    thirds: collections.Counter[int] = collections.Counter()
    num_questions = num_unanswerable = 0
    for name in (f"{REDGPT}.json", f"{REDGPT}.test.json"):
        for row in rows(files, name):
            pairs = turns(row["dialogue"])
            assert [speaker for speaker, _ in pairs] == ["H", "A"] * (len(pairs) // 2)
            assert 2 <= len(pairs) <= 10
            assert 20 <= len(row["reference"]) <= 100
            for (_, question), (_, answer) in zip(pairs[::2], pairs[1::2], strict=True):
                num_questions += 1
                assert question.removesuffix("用一个词回答。").endswith(("？", "？只写答案。"))
                if answer == NOT_MENTIONED:
                    num_unanswerable += 1
                    continue
                answer = answer.removesuffix("。")
                middle = row["reference"].index(answer) + len(answer) / 2
                thirds[int(3 * middle / len(row["reference"]))] += 1
    assert 0.1 < num_unanswerable / num_questions < 0.3
    assert (
        len(rows(files, f"{REDGPT}.json")) >= 3000
        and len(rows(files, f"{REDGPT}.test.json")) == 300
    )
    assert min(thirds.values()) > 0.2 * sum(thirds.values())
    assert (
        len({row["dialogue"].partition("\n")[0][:8] for row in rows(files, f"{REDGPT}.json")}) > 3
    )


def encode_triples(text: str) -> np.ndarray:
    """Return a number for each three characters that follow one another; a code has 21 bits."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    return codes[:-2] << np.uint64(42) | codes[1:-1] << np.uint64(21) | codes[2:]


def test_held_out_names_have_no_pair_of_characters_that_training_has() -> None:
    """Prevents test passages whose invented names a model has seen."""
    seen = "".join(ValueGenerator(random.Random(0), lambda _: True).stem(4) for _ in range(500))
    pairs = set(map("".join, zip(seen, seen[1:], strict=False)))
    values = ValueGenerator(random.Random(0), lambda pair: pair not in pairs)
    stems = [values.stem(4) for _ in range(50)]
    assert not {stem[i : i + 2] for stem in stems for i in range(3)} & pairs


@pytest.mark.slow
def test_few_redgpt_test_answers_occur_in_other_files(files: Files) -> None:
    """Prevents a score that remembers answers instead of copying them."""
    answers = {
        text.removesuffix("。")
        for row in rows(files, f"{REDGPT}.test.json")
        for speaker, text in turns(row["dialogue"])
        if speaker == "A" and text != NOT_MENTIONED
    }
    assert len(answers) > 700
    rest = "\n".join(text for name, text in files.items() if not name.startswith(f"{REDGPT}.test"))
    rest = re.sub(
        r'"(?:id|url|md5|simhash|文件名|文件大小|dialog_id|document_id)": "?[\w%:/.?=-]+"?',
        "",
        rest,
    )
    # A search for each answer in megabytes takes seconds; few have all their triples in the text.
    triples = set(np.unique(encode_triples(rest)).tolist())
    possible = [answer for answer in answers if triples.issuperset(encode_triples(answer).tolist())]
    # Times, prices and words are drawn from few.
    assert sum(answer in rest for answer in possible) < len(answers) / 6


@pytest.mark.slow
def test_csl_splits_share_no_title_and_no_pair_of_method_and_object(files: Files) -> None:
    """Prevents titles, or the pairs in them, from being memorized."""
    titles = {
        split: {title for title, _ in studies(files, split)} for split in ("train", "dev", "test")
    }
    for one, other in itertools.combinations(titles, 2):
        assert not titles[one] & titles[other]
    assert [len(titles[split]) for split in titles] == [2800, 300, 300]
    everything = "\n".join(
        text for name, text in files.items() if not name.startswith("summary/csl/")
    )
    assert [
        title for split in ("dev", "test") for title in titles[split] if title in everything
    ] == []
    fields = read_table("studies")
    drawn: dict[str, set[tuple[str, str]]] = {split: set() for split in titles}
    for split in titles:
        for title in titles[split]:
            drawn[split] |= {
                (method, thing)
                for field in fields
                for thing in field["对象"].split()
                if thing in title
                for method in field["方法"].split()
                if method in title
            }
        assert len(drawn[split]) > 50
    for one, other in itertools.combinations(titles, 2):
        assert not drawn[one] & drawn[other]


@pytest.mark.slow
def test_csl_titles_cannot_be_copied_from_one_place(files: Files) -> None:
    """Prevents a task that the first words or one sentence of the abstract solve."""
    rouge = Rouge(metrics=["rouge-1"])

    def score(text: str, title: str) -> float:
        return float(rouge.get_scores(" ".join(text), " ".join(title))[0]["rouge-1"]["f"])

    tests = studies(files, "test")
    assert all(80 <= len(abstract) <= 160 for _, abstract in tests)
    lead = [score(abstract[:20], title) for title, abstract in tests]
    best = [
        max(score(sentence, title) for sentence in re.findall("[^。]+。", abstract))
        for title, abstract in tests
    ]
    print(
        f"ROUGE-1 F on characters: first 20 characters {sum(lead) / 300:.3f}, "
        f"best sentence {sum(best) / 300:.3f}"
    )
    assert sum(lead) / len(lead) < 0.5 and sum(best) / len(best) < 0.5


@pytest.mark.slow
def test_statements_are_consistent_across_files(files: Files, world: World) -> None:
    """Prevents a person from being born in two places or having two teachers."""
    homes = {person.name: person.home["名字"] for person in world.people}
    teachers = {person.name: person.teacher for person in world.people}
    text = "\n".join(part for name, part in files.items() if "/pclue/" not in name)
    # The false statements are the inputs that a "不对" answers.
    text = re.sub(r'"input": "[^"]+", "output": "不对', "", text)
    names = "|".join(homes)
    places = "|".join(world.places_by_name)
    homes_in_text = re.findall(
        rf"({names})(?:的老家在|出生在|，[^。，]{{2,4}}的[^。，]+，谷历\d+年生于)({places})", text
    )
    assert (
        len(homes_in_text) > 300
        and [pair for pair in homes_in_text if homes[pair[0]] != pair[1]] == []
    )
    taught = re.findall(rf"({names})的师傅是({'|'.join(set(teachers.values()))})", text)
    assert len(taught) > 50 and [pair for pair in taught if teachers[pair[0]] != pair[1]] == []
    assert all(person.friend and person.friend.friend is person for person in world.people)


@pytest.mark.slow
def test_sums_in_the_stories_are_right(files: Files) -> None:
    """Prevents wrong arithmetic from being taught."""
    sums = re.findall(r"(\d+)(加|减|乘)(\d+)(?:，也就是|等于)(\d+)", "\n".join(files.values()))
    assert len(sums) > 100
    for left, sign, right, result in sums:
        value = {
            "加": int(left) + int(right),
            "减": int(left) - int(right),
            "乘": int(left) * int(right),
        }[sign]
        assert value == int(result)

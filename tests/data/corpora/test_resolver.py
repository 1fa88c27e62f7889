"""Resolving DATA=… with the real sample, tokenizer and preparation."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import MANIFEST, read_json, write_checksummed_json, write_manifest
from data import download as command
from data.corpora import resolver, sample
from data.corpora.manifests import PROJECT_ROOT
from data.corpora.resolver import resolve_shard_set
from data.prepare import __main__ as prepare
from data.prepare.options import PrepareOptions
from data.shards import PROVENANCE_FILE, SHARD_FORMAT, ShardSet
from data.tokenizer.texts import resolve_source_files
from evaluate.input_records import iter_usable_records
from model.tokenizer import load_tokenizer
from tests.helpers.prepare import encode_split

# For commands that are run in another folder than the project's.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, as in a fresh checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small() -> str:
    return load_tokenizer(sample.SMALL_TOKENIZER).fingerprint[:8]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a JSONL file of forty short documents."""
    return write_corpus(tmp_path / "raw.jsonl", 40)


def write_corpus(path: Path, count: int, word: str = "池塘") -> Path:
    texts = [
        f"第{number}天，{word}里的青蛙数了{number * 37}颗星星，然后慢慢地睡着了。" * 4
        for number in range(count)
    ]
    rows = [{"text": text} for text in texts]
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def stamp(folder: Path) -> tuple[int, int]:
    return (folder / MANIFEST).stat().st_ino, (folder / MANIFEST).stat().st_mtime_ns


@pytest.fixture
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare only the first records of each source."""
    monkeypatch.setattr(resolver, "PrepareOptions", lambda: PrepareOptions(limit=30, workers=1))


@pytest.mark.slow
@pytest.mark.usefixtures("few_records")
def test_the_sample_is_prepared_from_every_format_and_then_reused(small: str) -> None:
    """Prevents a format of the sample from being left out, and runs from preparing it again."""
    folder = resolve_shard_set("sample")
    assert folder == Path("prepared") / f"sample-{small}"
    sources = read_json(folder / MANIFEST)["report"]["sources"]
    assert set(sources) == {"wikipedia", "wiki_zh_2019", "mnbvc", "mnbvc_qa", "jsonl", "text"}
    assert all(counts["kept"] > 0 for counts in sources.values())
    assert len(ShardSet.open(folder, checksums=True).load_split("validation")) > 0
    first = stamp(folder)
    assert resolve_shard_set("sample") == folder and stamp(folder) == first


@pytest.mark.slow
@pytest.mark.usefixtures("few_records")
def test_unprepared_name_warns_before_using_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents a run on 100 kB of sample from passing for one on a gigabyte."""
    folder = resolve_shard_set("zhihu")
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("zhihu is not prepared here") and "make data DATA=zhihu" in line
    assert list(read_json(folder / MANIFEST)["report"]["sources"]) == ["mnbvc_qa"]


@pytest.mark.slow
def test_name_resolves_to_its_prepared_set(
    raw: Path, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a prepared corpus from being prepared again."""
    folder = resolver.prepare_if_outdated(
        "zhihu", {"jsonl": sample.SplitFiles([raw])}, sample.SMALL_TOKENIZER
    )
    capsys.readouterr()
    assert (
        resolve_shard_set("zhihu") == folder == resolve_shard_set("zhihu", sample.SMALL_TOKENIZER)
    )
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.usefixtures("few_records")
def test_set_of_another_tokenizer_is_not_used(
    raw: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents the ids of one tokenizer from being trained on with another."""
    large = shared / "tokenizer" / "llama-chinese-65k.model"
    folder = resolver.prepare_if_outdated("zhihu", {"jsonl": sample.SplitFiles([raw])}, large)
    assert resolve_shard_set("zhihu") == folder
    assert resolve_shard_set("zhihu", sample.SMALL_TOKENIZER) != folder
    assert "is not prepared here" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{folder} was prepared with another tokenizer"):
        resolve_shard_set(str(folder), sample.SMALL_TOKENIZER)


@pytest.mark.slow
def test_a_shard_set_folder_is_used_as_it_is(raw: Path) -> None:
    """Prevents a copied shard set from being refused, or used with a file missing."""
    folder = resolver.prepare_if_outdated(
        "x", {"jsonl": sample.SplitFiles([raw])}, sample.SMALL_TOKENIZER
    )
    moved = shutil.copytree(folder, "elsewhere")
    assert resolve_shard_set(str(moved)) == Path("elsewhere")
    (Path(moved) / "train-00000.tokens.npy").unlink()
    with pytest.raises(UserError, match=r"elsewhere/train-00000.tokens.npy is missing"):
        resolve_shard_set(str(moved))


def turn_into_earlier_version(folder: Path) -> None:
    """Give a shard set the files of the version before, whose `made-from.json` was different."""
    earlier = "babyllama-shards-1"
    provenance = {"format": earlier, "name": "raw", "inputs": {"jsonl": []}}
    write_checksummed_json(folder / PROVENANCE_FILE, provenance)
    write_manifest(folder, {"format": earlier, "kind": "documents"})


@pytest.mark.slow
def test_an_own_set_of_another_version_is_prepared_again(raw: Path) -> None:
    """Prevents a traceback over the old form of `made-from.json`, and training on other ids."""
    folder = resolve_shard_set(str(raw))
    first = stamp(folder)
    turn_into_earlier_version(folder)
    assert resolve_shard_set(str(raw)) == folder and stamp(folder) != first


@pytest.mark.slow
def test_a_corpus_of_another_version_is_refused_until_it_is_prepared_again(raw: Path) -> None:
    """Prevents a corpus that was prepared from being replaced by the sample without a question."""
    files = {"jsonl": sample.SplitFiles([raw])}
    folder = resolver.prepare_if_outdated("zhihu", files, sample.SMALL_TOKENIZER)
    turn_into_earlier_version(folder)
    for tokenizer in (None, sample.SMALL_TOKENIZER):
        with pytest.raises(UserError, match=r"another version.*make data DATA=zhihu$"):
            resolve_shard_set("zhihu", tokenizer)
    # What `make data` calls.
    assert resolver.prepare_if_outdated("zhihu", files, sample.SMALL_TOKENIZER) == folder
    assert resolve_shard_set("zhihu") == folder


def test_a_set_of_another_version_is_refused(shard_set: Path) -> None:
    """Prevents training on ids that this version would not make, or a set taken for raw files."""
    manifest = shard_set / MANIFEST
    manifest.write_text(manifest.read_text().replace(SHARD_FORMAT, "babyllama-shards-1"))
    with pytest.raises(UserError, match=r"another version.*python -m data\.prepare") as caught:
        resolve_shard_set(str(shard_set))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_raw_path_is_prepared_again_only_when_it_changed(raw: Path) -> None:
    """Prevents training on old text after an edit, and preparing again after a mere copy."""
    folder = resolve_shard_set(str(raw))
    first = stamp(folder)
    assert resolve_shard_set("./raw.jsonl") == folder and stamp(folder) == first
    os.utime(raw, ns=(1, 1))
    assert resolve_shard_set(str(raw)) == folder and stamp(folder) == first
    text = raw.read_text("utf-8")
    raw.write_text(text + text.replace("池塘", "水井"), "utf-8")
    os.utime(raw, ns=(1, 1))
    assert (
        resolve_shard_set(str(raw)) == folder
        and read_json(folder / MANIFEST)["report"]["records"] == 80
    )
    first = stamp(folder)
    raw.write_text(text.replace("青蛙", "蛤蟆"), "utf-8")
    assert resolve_shard_set(str(raw)) == folder and stamp(folder) != first
    tokenizer = load_tokenizer(folder)
    assert "蛤蟆" in "".join(map(tokenizer.decode, encode_split(folder, "train")[:3]))
    assert not [path for path in Path("prepared").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_failed_preparation_keeps_last_good_set(raw: Path) -> None:
    """Prevents a broken edit from costing the shard set that a run is training on."""
    folder = resolve_shard_set(str(raw))
    first = stamp(folder)
    raw.write_text(raw.read_text("utf-8") + "{broken\n" * 10, "utf-8")
    with pytest.raises(UserError, match="records cannot be read"):
        resolve_shard_set(str(raw))
    assert (
        stamp(folder) == first
        and len(ShardSet.open(folder, checksums=True).load_split("train")) > 0
    )


@pytest.mark.slow
def test_damaged_set_is_prepared_again(raw: Path) -> None:
    """Prevents a damaged set from being used, or from having to be deleted by hand."""
    folder = resolve_shard_set(str(raw))
    (folder / "train-00000.tokens.npy").write_bytes(b"short")
    assert ShardSet.open(resolve_shard_set(str(raw)), checksums=True)


@pytest.mark.slow
def test_foreign_folder_under_the_name_is_not_overwritten(raw: Path) -> None:
    """Prevents a user's folder from being deleted."""
    folder = resolve_shard_set(str(raw))
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match="move it elsewhere"):
        resolve_shard_set(str(raw))
    assert (folder / "thesis.tex").exists()


@pytest.mark.slow
def test_raw_files_with_equal_names_are_prepared_separately(raw: Path) -> None:
    """Prevents two files of the same name from replacing each other's shard sets."""
    Path("other").mkdir()
    other = write_corpus(Path("other") / "raw.jsonl", 40, word="水井")
    assert resolve_shard_set(str(raw)) != resolve_shard_set(str(other))
    # A name in another encoding, as old archives have it, is a name, too.
    strange = os.fsdecode(b"caf\xe9.jsonl")
    assert ShardSet.open(resolve_shard_set(str(other.rename(strange)))).kind.is_text


@pytest.mark.slow
def test_folder_of_raw_files_is_read_completely(raw: Path) -> None:
    """Prevents files of a folder from being left out."""
    Path("many").mkdir()
    for number, word in enumerate(("山坡", "湖边")):
        write_corpus(Path("many") / f"{number}.jsonl", 30, word)
    Path("many/.hidden.lock").write_text("{}")
    assert read_json(resolve_shard_set("many") / MANIFEST)["report"]["records"] == 60


@pytest.mark.slow
def test_unknown_name_error_suggests_similar_names() -> None:
    """Prevents an error that leaves the user to guess the name."""
    with pytest.raises(UserError, match=r"DATA=wikpedia: .*did you mean wikipedia"):
        resolve_shard_set("wikpedia")
    with pytest.raises(UserError, match="the names are sample, belle"):
        resolve_shard_set("/no/such/path")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("csl,redgpt", r"did you mean csl\+redgpt\?"),
        ("csl、redgpt:0.5", r"did you mean csl\+redgpt:0\.5\?"),
        ("csl, redgpt ,pclue", r"did you mean csl\+redgpt\+pclue\?"),
        ("csl,nothing", "the names are sample"),
    ],
)
def test_mixture_can_be_a_list(name: str, hint: str) -> None:
    """Prevents thirteen suggestions for a list of two correct names."""
    with pytest.raises(UserError, match=f"unknown data set.*; {hint}"):
        resolve_shard_set(name)


@pytest.mark.slow
def test_tokenizer_folder_is_not_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents "did you mean tokenizer?" in reply to DATA=tokenizer, and `make data` without it."""
    with pytest.raises(
        UserError,
        match=r"^DATA=tokenizer: holds no records .*the names are sample, (?!.*tokenizer)",
    ):
        resolve_shard_set("tokenizer")
    with pytest.raises(
        UserError,
        match=r"^DATA=tokeniser: unknown data set.*the names are sample, (?!.*tokenizer)",
    ):
        resolve_shard_set("tokeniser")
    with pytest.raises(UserError, match="did you mean tokenizer"):
        command.main(["tokeniser"])


@pytest.mark.slow
def test_folder_cloned_from_a_hub_is_prepared_as_it_is(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a README from being read as text, and files left out without a word."""
    Path("clone/data").mkdir(parents=True)
    raw.rename("clone/data/train.jsonl")
    Path("clone/README.md").write_text("# 数据集\n这是说明。")
    Path("clone/dataset_infos.json").write_text("{}")
    assert read_json(resolve_shard_set("clone") / MANIFEST)["report"]["records"] == 40
    line = "left out beside the data: README.md, dataset_infos.json ("
    assert line in capsys.readouterr().out
    assert len(resolve_source_files(["clone"], None)) == 1
    assert line in capsys.readouterr().out
    assert len(list(iter_usable_records("jsonl", ["clone"]))) == 40
    assert line in capsys.readouterr().out
    tokenizer = ["--tokenizer", str(sample.SMALL_TOKENIZER), "--out", "out", "--workers", "1"]
    arguments = ["data.prepare", "--source", "jsonl", "--input", "clone", *tokenizer]
    monkeypatch.setattr(sys, "argv", arguments)
    prepare.main()
    assert line in capsys.readouterr().out


@pytest.mark.slow
def test_remedy_for_bad_records_is_a_command_that_has_the_option(raw: Path) -> None:
    """Prevents advice to give --quarantine_share to `make pretrain`, which does not have it."""
    path = raw.rename("my raw.jsonl")
    path.write_text(path.read_text("utf-8") + "{broken\n" * 10, "utf-8")
    with pytest.raises(UserError, match=r"records cannot be read") as caught:
        resolve_shard_set(str(path))
    command = str(caught.value).partition("allow more with ")[2].partition(", and name DIR")[0]
    arguments = shlex.split(command.replace("SHARE", "0.5"))
    assert arguments[:3] == ["python", "-m", "data.prepare"] and "--out DIR" in command
    subprocess.run([sys.executable, *arguments[1:], "--workers", "1"], check=True, env=ENVIRONMENT)
    assert len(ShardSet.open(Path("DIR")).load_split("train")) > 0


def test_mixed_source_files_are_refused(tmp_path: Path) -> None:
    """Prevents files of two sources from being read by one."""
    (tmp_path / "a.txt").write_text("文")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"a\.txt is read as text but .*b\.jsonl as jsonl"):
        resolve_shard_set(str(tmp_path))


def write_instructions(folder: Path) -> None:
    """Write twelve instructions as Alpaca and twelve as Belle, of which two are the same."""
    rows = [
        {"instruction": f"说出{number}的下一个数。", "input": "", "output": f"{number + 1}。"}
        for number in range(22)
    ]
    (folder / "alpaca.json").write_text(json.dumps(rows[:12], ensure_ascii=False))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[10:]]
    (folder / "belle.jsonl").write_text("".join(lines))


def test_folder_of_alpaca_and_belle_files_is_one_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents merged instructions from needing a conversion, or records that are there twice."""
    folder = tmp_path / "instructions"
    folder.mkdir()
    write_instructions(folder)
    report = read_json(resolve_shard_set(str(folder)) / MANIFEST)["report"]
    assert {name: counts["kept"] for name, counts in report["sources"].items()} == {
        "alpaca": 12,
        "belle-0.5m": 10,
    }
    assert report["dropped"] == {"exact_duplicate": 2}
    assert f"{folder}: of 2 files, 1 as alpaca, 1 as belle-0.5m" in capsys.readouterr().out


def test_summaries_among_instructions_are_refused(tmp_path: Path) -> None:
    """Prevents records of two kinds in one set, which cannot hold them."""
    write_instructions(tmp_path)
    (tmp_path / "csl.tsv").write_text("题目\t一篇长长的摘要，比题目长得多。\n" * 3)
    with pytest.raises(UserError, match=r"alpaca\.json is read as alpaca but .*csl\.tsv as csl"):
        resolve_shard_set(str(tmp_path))

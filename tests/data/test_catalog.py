"""What a DATA means, with the real sample, the small tokenizer and the real preparation, in an empty folder each."""

import hashlib
import http.server
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import MANIFEST, read_json
from data import download as command
from data.corpora import download as corpora_download
from data.corpora import manifests, resolver, sample
from data.corpora.detect import detect_source
from data.corpora.resolver import resolve_shard_set
from data.shards import ShardSet
from data.sources import SOURCES
from model.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, as a fresh checkout has none of prepared/ and downloads/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small() -> str:
    return load_tokenizer(sample.SMALL_TOKENIZER).fingerprint[:8]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Forty short documents as JSONL."""
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


@pytest.mark.slow
def test_the_sample_is_prepared_from_every_format_and_then_reused(small: str) -> None:
    """Prevents a format of the sample being left out, and every run preparing it again."""
    folder = resolve_shard_set("sample")
    assert folder == Path("prepared") / f"sample-{small}"
    sources = read_json(folder / MANIFEST)["report"]["sources"]
    assert set(sources) == {"wikipedia", "wiki_zh_2019", "mnbvc", "mnbvc_qa", "jsonl", "text"}
    assert all(counts["kept"] > 0 for counts in sources.values())
    assert len(ShardSet.open(folder, checksums=True).load_split("validation")) > 0
    first = stamp(folder)
    assert resolve_shard_set("sample") == folder and stamp(folder) == first


def test_unprepared_name_warns_before_using_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents a run on 100 kB of sample being taken for one on a gigabyte."""
    folder = resolve_shard_set("zhihu")
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("zhihu is not prepared here") and "make data DATA=zhihu" in line
    assert list(read_json(folder / MANIFEST)["report"]["sources"]) == ["mnbvc_qa"]


def test_name_resolves_to_its_prepared_set(
    raw: Path, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = resolver.prepare_if_outdated(
        "zhihu", {"jsonl": sample.SplitFiles([raw])}, sample.SMALL_TOKENIZER
    )
    capsys.readouterr()
    assert resolve_shard_set("zhihu") == made == resolve_shard_set("zhihu", sample.SMALL_TOKENIZER)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_set_of_another_tokenizer_is_not_used(
    raw: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents ids of one tokenizer being trained on with another."""
    large = shared / "tokenizer" / "llama-chinese-65k.model"
    made = resolver.prepare_if_outdated("zhihu", {"jsonl": sample.SplitFiles([raw])}, large)
    assert resolve_shard_set("zhihu") == made
    assert resolve_shard_set("zhihu", sample.SMALL_TOKENIZER) != made
    assert "is not prepared here" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{made} was prepared with another tokenizer"):
        resolve_shard_set(str(made), sample.SMALL_TOKENIZER)


def test_a_shard_set_folder_is_used_as_it_is(raw: Path) -> None:
    made = resolver.prepare_if_outdated(
        "x", {"jsonl": sample.SplitFiles([raw])}, sample.SMALL_TOKENIZER
    )
    moved = shutil.copytree(made, "elsewhere")
    assert resolve_shard_set(str(moved)) == Path("elsewhere")
    (Path(moved) / "train-00000.tokens.npy").unlink()
    with pytest.raises(UserError, match=r"elsewhere/train-00000.tokens.npy is missing"):
        resolve_shard_set(str(moved))


@pytest.mark.slow
def test_a_raw_path_is_prepared_again_only_when_it_changed(raw: Path) -> None:
    """Prevents training on the old text after the file was edited, and preparing for nothing after a mere copy."""
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
    assert "蛤蟆" in "".join(
        load_tokenizer(folder).decode(ShardSet.open(folder).load_split("train").tokens(index))
        for index in range(3)
    )
    assert not [path for path in Path("prepared").iterdir() if path.name.startswith(".")]


def test_failed_preparation_keeps_last_good_set(raw: Path) -> None:
    """Prevents a broken edit of a corpus costing the shard set that a run is training on."""
    folder = resolve_shard_set(str(raw))
    first = stamp(folder)
    raw.write_text(raw.read_text("utf-8") + "{broken\n" * 10, "utf-8")
    with pytest.raises(UserError, match="records cannot be read"):
        resolve_shard_set(str(raw))
    assert (
        stamp(folder) == first
        and len(ShardSet.open(folder, checksums=True).load_split("train")) > 0
    )


def test_damaged_set_is_prepared_again(raw: Path) -> None:
    folder = resolve_shard_set(str(raw))
    (folder / "train-00000.tokens.npy").write_bytes(b"short")
    assert ShardSet.open(resolve_shard_set(str(raw)), checksums=True)


def test_foreign_folder_under_the_name_is_not_overwritten(raw: Path) -> None:
    folder = resolve_shard_set(str(raw))
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match="move it away"):
        resolve_shard_set(str(raw))
    assert (folder / "thesis.tex").exists()


def test_raw_files_with_equal_names_are_prepared_separately(raw: Path) -> None:
    Path("other").mkdir()
    other = write_corpus(Path("other") / "raw.jsonl", 40, word="水井")
    assert resolve_shard_set(str(raw)) != resolve_shard_set(str(other))


def test_folder_of_raw_files_is_read_completely(raw: Path) -> None:
    Path("many").mkdir()
    for number, word in enumerate(("山坡", "湖边")):
        write_corpus(Path("many") / f"{number}.jsonl", 30, word)
    Path("many/.hidden.lock").write_text("{}")
    assert read_json(resolve_shard_set("many") / MANIFEST)["report"]["records"] == 60


def test_unknown_name_error_suggests_similar_names() -> None:
    with pytest.raises(UserError, match=r"DATA=wikpedia: .*did you mean wikipedia"):
        resolve_shard_set("wikpedia")
    with pytest.raises(UserError, match="the names are sample, belle"):
        resolve_shard_set("/no/such/path")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("csl,redgpt", r"did you mean csl\+redgpt\?"),
        ("csl、redgpt:0.5", r"did you mean csl\+redgpt:0\.5\?"),
        ("csl, redgpt ,pclue", r"did you mean csl\+redgpt\+pclue\?"),
        ("csl,nothing", "the names are sample"),
    ],
)
def test_mixture_can_be_a_list(name: str, cure: str) -> None:
    """Thirteen names for somebody who wrote two of them right."""
    with pytest.raises(UserError, match=f"there is no such data set.*; {cure}"):
        resolve_shard_set(name)


def test_make_data_takes_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A mix, which training takes, that is hinted at where it is refused again."""
    for name in ("csl,redgpt", "csl+redgpt"):
        with pytest.raises(UserError, match=r"one name at a time, such as DATA=csl$"):
            command.main([name])


def test_tokenizer_folder_is_not_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """`DATA=tokenizer` answered with "did you mean tokenizer?"; `make data`, which downloads it, not knowing it any more."""
    with pytest.raises(
        UserError,
        match=r"^DATA=tokenizer: holds no records .*the names are sample, (?!.*tokenizer)",
    ):
        resolve_shard_set("tokenizer")
    with pytest.raises(
        UserError,
        match=r"^DATA=tokeniser: there is no such data set .*the names are sample, (?!.*tokenizer)",
    ):
        resolve_shard_set("tokeniser")
    with pytest.raises(UserError, match="did you mean tokenizer"):
        command.main(["tokeniser"])


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("a.txt", "你好\n", "text"),
        ("a.jsonl", '{"文件名": "a", "段落": [], "simhash": 10789855592110675028}\n', "mnbvc"),
        ("a.jsonl", '{"id": 0, "问": "a", "答": "b", "来源": "c", "元数据": {}}\n', "mnbvc_qa"),
        (
            "wiki_00",
            '{"id": "1", "url": "u", "title": "数学", "text": "数学\\n\\n数学是"}\n',
            "wiki_zh_2019",
        ),
        ("a.jsonl", '{"id": "1", "url": "u", "title": "数学", "text": "数学是"}\n', "wikipedia"),
        ("a.json", '\ufeff\n\n{"text": "a", "source": "b"}\n', "jsonl"),
    ],
)
def test_raw_file_source_is_detected(tmp_path: Path, name: str, content: str, source: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert detect_source([tmp_path / name]) == source


def test_parquet_source_is_detected_from_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"id": ["1"], "url": ["u"], "title": ["数学"], "text": ["数学是"]})
    pyarrow.parquet.write_table(rows, tmp_path / "train-00000-of-00006.parquet")
    assert detect_source([tmp_path / "train-00000-of-00006.parquet"]) == "wikipedia"


def test_real_corpora_sources_are_detected(shared: Path) -> None:
    folder = shared / "data" / "pretrain"
    told = {path.name: detect_source([path]) for path in folder.glob("*.gz")}
    assert (
        told.pop("mnbvc_general.jsonl.gz") == "mnbvc"
        and told.pop("mnbvc_qa.jsonl.gz") == "mnbvc_qa"
    )
    assert detect_source([folder / "wiki_zh_2019" / "AA" / "wiki_00"]) == "wiki_zh_2019"
    assert set(told.values()) == {"jsonl"} and len(told) > 5


@pytest.mark.parametrize(
    "content",
    [
        '{"instruction": "a", "response": "b"}\n',
        "[1, 2]\n",
        "plain words\n",
        "",
        "PK\x03\x04 zip",
        "{}\n",
    ],
)
def test_undetected_source_error_gives_advice(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError) as caught:
        detect_source([tmp_path / "odd.json"])
    assert "odd.json" in str(caught.value) and "\n" not in str(caught.value)
    if content.startswith(("{", "[", "plain")):
        assert "--source NAME" in str(caught.value)


def test_mixed_source_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("文")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"a\.txt is read as text but .*b\.jsonl as jsonl"):
        resolve_shard_set(str(tmp_path))


def test_every_manifest_is_well_formed_and_its_source_exists() -> None:
    known = manifests.load_corpora()
    assert {"wikipedia", "zhihu", "mnbvc", "wiki_zh_2019", "tokenizer"} <= set(known)
    for name, corpus in known.items():
        assert corpus.source in {*SOURCES, None} and (corpus.source is None) == (
            name == "tokenizer"
        )
        assert corpus.select_files(()), name
        assert all(
            url.startswith(("https://", "http://"))
            for file in corpus.files
            for url in corpus.urls(file)
        )
    file = known["tokenizer"].files[0]
    assert file.size == 1011042
    assert file.sha256 == "04ef61cc08360cd193f9056cb10e26525451fd62759ca714840663257e7bcdd8"


def test_tokenizer_checksum_matches_real_file(shared: Path) -> None:
    file = manifests.load_corpora()["tokenizer"].files[0]
    data = (shared / "tokenizer" / "llama-chinese-65k.model").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


@pytest.mark.parametrize(
    "text",
    [
        "path: /etc/passwd",
        "path: ../x",
        "path: a/../../x",
        "{path: a, sha256: abc}",
        "{path: a, sice: 3}",
    ],
)
def test_invalid_manifest_gives_one_line_error_with_file_and_key(tmp_path: Path, text: str) -> None:
    """Prevents a manifest that writes outside downloads/, or whose misspelt checksum is silently not compared."""
    (tmp_path / "x.yaml").write_text(
        f"description: d\nlicense: l\nhomepage: h\nmegabytes: 1\nmirrors: [u]\nfiles:\n  - {text}\n"
    )
    with pytest.raises(UserError, match=r"x\.yaml: files\.0\.") as caught:
        manifests.load_corpora(tmp_path)
    assert "\n" not in str(caught.value)


def test_hf_endpoint_mirror_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = manifests.load_corpora()["wikipedia"]
    plain = corpus.urls(corpus.files[0])
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    first = plain[0].replace("https://huggingface.co", "https://mirror.example")
    assert corpus.urls(corpus.files[0]) == [first, *plain]


def test_subsets_select_files_and_unknown_names_are_reported() -> None:
    corpus = manifests.load_corpora()["mnbvc"]
    assert {file.part for file in corpus.select_files(())} == {"news_peoples_daily"}
    assert [file.path for file in corpus.select_files(("gov_xuexiqiangguo",))] == [
        "gov/20230172/XueXiQiangGuo.jsonl.gz"
    ]
    with pytest.raises(
        UserError, match=r"--parts gov: .*expected news_peoples_daily, gov_xuexiqiangguo"
    ):
        corpus.select_files(("gov",))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A served folder, and manifests that point at it: a corpus of two files, one in a zip, and the tokenizer."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "hub"
    folder.mkdir()
    write_corpus(folder / "a.jsonl", 30, "山坡")
    with zipfile.ZipFile(folder / "b.zip", "w") as packed:
        packed.write(write_corpus(tmp_path / "b.jsonl", 30, "湖边"), "in/b_00.jsonl")
        packed.writestr("README", "not a part of the corpus")
    shutil.copy(sample.SMALL_TOKENIZER / "tokenizer.model", folder / "t.model")
    quiet = type(
        "Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None}
    )
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(quiet, directory=str(folder))
    )
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    head = {
        "description": "d",
        "license": "CC",
        "homepage": "h",
        "megabytes": 1,
        "mirrors": (f"http://127.0.0.1:{server.server_address[1]}/{{path}}",),
    }
    files = ({"path": "a.jsonl"}, {"path": "b.zip", "unpack": "**/*_00.jsonl"})
    made = {
        "zhihu": manifests.Corpus.model_validate({**head, "source": "jsonl", "files": files}),
        "tokenizer": manifests.Corpus.model_validate({**head, "files": ({"path": "t.model"},)}),
    }
    for module in (corpora_download, resolver, manifests):
        monkeypatch.setattr(module, "load_corpora", lambda: made)
    yield folder
    server.shutdown()
    server.server_close()


def test_make_data_prepares_then_works_offline(
    hub: Path, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["zhihu"])
    said = capsys.readouterr().out
    assert "license: CC" in said and f"prepared/zhihu-{small}: 60 documents" in said
    assert (
        Path("downloads/tokenizer/t.model").exists()
        and Path("downloads/zhihu/b/in/b_00.jsonl").exists()
    )
    first = stamp(resolve_shard_set("zhihu"))
    for path in hub.iterdir():
        path.unlink()
    command.main(["zhihu"])
    assert stamp(resolve_shard_set("zhihu")) == first
    assert resolver.default_tokenizer() == Path("downloads/tokenizer/t.model")


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("t.model", "the tokenizer"),
        ("a.jsonl", "the corpus"),
    ],
)
def test_missing_download_error_lists_alternatives(hub: Path, gone: str, missing: str) -> None:
    """A line about a tokenizer for somebody who asked for a corpus."""
    (hub / gone).unlink()
    with pytest.raises(UserError) as caught:
        command.main(["zhihu"])
    said = str(caught.value)
    assert said.startswith(
        f"zhihu (from h) is not here: {missing} could not be downloaded (cannot download {gone}: http://127.0.0.1:"
    )
    assert "\n" not in said


def test_a_corpus_that_changed_on_disk_after_its_download_is_refused(hub: Path) -> None:
    command.main(["zhihu"])
    with Path("downloads/zhihu/a.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="its first download"):
        command.main(["zhihu"])


def test_no_name_lists_corpora_with_size_and_license(capsys: pytest.CaptureFixture[str]) -> None:
    command.main([])
    said = capsys.readouterr().out
    for name, corpus in manifests.load_corpora().items():
        assert name in said and corpus.license in said
    assert "sample" in said and "1.7 GB" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wikpedia"], "did you mean wikipedia"),
        (["wikipedia", "--tokenizer", "none.model"], "--tokenizer none.model: no such file"),
        (["wikipedia", "x"], "'x' stands alone"),
        (["mnbvc", "--tokenizer", ".", "--parts", "y"], "--parts y: there is no such part"),
    ],
)
def test_command_line_error_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        command.main(words)

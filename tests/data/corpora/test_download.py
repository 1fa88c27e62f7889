"""`make data`: download, verify and prepare a corpus, and work offline afterwards."""

import http.server
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import MANIFEST
from data import download as command
from data.corpora import download as corpora_download
from data.corpora import manifests, resolver, sample
from data.corpora.resolver import resolve_shard_set
from model.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, as in a fresh checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small() -> str:
    return load_tokenizer(sample.SMALL_TOKENIZER).fingerprint[:8]


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
def test_make_data_takes_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents a hint to a mixture, which `make data` refuses as well."""
    for name in ("csl,redgpt", "csl+redgpt"):
        with pytest.raises(UserError, match=r"one name at a time, such as DATA=csl$"):
            command.main([name])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a folder, with manifests for a corpus of two files, one in a zip, and a tokenizer."""
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
    corpora = {
        "zhihu": manifests.Corpus.model_validate({**head, "source": "jsonl", "files": files}),
        "tokenizer": manifests.Corpus.model_validate({**head, "files": ({"path": "t.model"},)}),
    }
    for module in (corpora_download, resolver, manifests):
        monkeypatch.setattr(module, "load_corpora", lambda: corpora)
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_make_data_prepares_then_works_offline(
    hub: Path, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a prepared corpus from needing the network again."""
    command.main(["zhihu"])
    output = capsys.readouterr().out
    assert "license: CC" in output and f"prepared/zhihu-{small}: 60 documents" in output
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
    ("missing_file", "missing"),
    [
        ("t.model", "the tokenizer"),
        ("a.jsonl", "the corpus"),
    ],
)
def test_missing_download_error_lists_alternatives(
    hub: Path, missing_file: str, missing: str
) -> None:
    """Prevents an error about a tokenizer when a corpus was requested."""
    (hub / missing_file).unlink()
    with pytest.raises(UserError) as caught:
        command.main(["zhihu"])
    message = str(caught.value)
    assert message.startswith(
        f"zhihu (from h) is not here: {missing} could not be downloaded "
        f"(cannot download {missing_file}: http://127.0.0.1:"
    )
    assert "make pretrain DATA=zhihu trains on" in message and "\n" not in message


@pytest.mark.slow
def test_a_corpus_that_changed_on_disk_after_its_download_is_refused(hub: Path) -> None:
    """Prevents a damaged download from being prepared."""
    command.main(["zhihu"])
    with Path("downloads/zhihu/a.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="its first download"):
        command.main(["zhihu"])


def test_no_name_lists_corpora_with_size_and_license(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents a download of gigabytes under an unknown license."""
    command.main([])
    output = capsys.readouterr().out
    for name, corpus in manifests.load_corpora().items():
        assert name in output and corpus.license in output
    assert "sample" in output and "1.7 GB" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wikpedia"], "did you mean wikipedia"),
        (["wikipedia", "--tokenizer", "none.model"], "--tokenizer none.model: no such file"),
        (["wikipedia", "x"], "'x' stands alone"),
        (["mnbvc", "--tokenizer", ".", "--parts", "y"], "--parts y: unknown part"),
    ],
)
def test_command_line_error_is_one_line(arguments: list[str], message: str) -> None:
    """Prevents tracebacks for mistakes on the command line."""
    with pytest.raises(UserError, match=message):
        command.main(arguments)

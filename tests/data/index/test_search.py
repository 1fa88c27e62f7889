"""The command that searches an index."""

import json
from pathlib import Path

import pytest

from data.index.passage_index import PassageIndex
from data.index.passages import TitledDocument
from data.index.writer import add_documents
from tests.helpers.processes import run_command


@pytest.mark.slow
def test_command_shows_the_best_passages_first(tmp_path: Path) -> None:
    """Prevents an index that only a program can search, and a file of other passages than shown."""
    folder = tmp_path / "index"
    texts = {"西湖": "西湖在杭州。", "": "杭州有一座塔。", "长江": "长江很长。"}
    documents = [TitledDocument(title, text, f"a:{title}") for title, text in texts.items()]
    add_documents(folder, documents)
    arguments = [
        str(folder),
        "杭州",
        "西湖",
        "--count",
        "2",
        "--json",
        str(tmp_path / "found.json"),
    ]
    result = run_command("data.index.search", *arguments)
    assert result.returncode == 0, result.stderr
    index = PassageIndex.open(folder)
    first, second = index.search("杭州 西湖", 2)
    assert result.stdout.splitlines() == [
        f"1.  {first.score:.2f}  西湖  [a:西湖]",
        "    西湖在杭州。",
        f"2.  {second.score:.2f}  [a:]",
        "    杭州有一座塔。",
        "2 of 3 passages",
    ]
    written = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert [row["text"] for row in written["passages"]] == [first.text, second.text]
    result = run_command("data.index.search", str(folder), "quantum")
    assert (result.returncode, "no passage has a word of" in result.stderr) == (2, True)

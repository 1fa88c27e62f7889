"""`python -m evaluate`: which commands fit a run."""

from pathlib import Path

import pytest

from data.inputs import Group
from data.prepare import PrepareOptions, prepare_groups
from data.shards import ShardSet
from evaluate import __main__ as everything


@pytest.fixture(scope="module")
def summaries(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "csl"
    group = Group("csl", (str(root / "assets/sample/summary/csl/dev.tsv"),))
    prepare_groups([group], folder, root / "assets/tokenizer", PrepareOptions(workers=1, limit=12))
    return folder


def test_a_mix_is_measured_part_by_part(
    summaries: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixed run that cannot be measured at all, or whose parts write over each other's figures."""
    from common.files import write_sealed

    sets = [ShardSet.open(summaries), ShardSet.open(shard_set)]
    facts = {"shards": [str(each.folder) for each in sets],
             "fingerprints": {"data": [{"set": each.fingerprint, "weight": 1.0} for each in sets]}}
    write_sealed(tmp_path / "run" / "run.json", facts)
    ran: list[list[str]] = []
    monkeypatch.setattr(everything, "_run", ran.append)
    monkeypatch.setattr("sys.argv", ["evaluate", "--checkpoint", str(tmp_path / "run")])
    everything.main()
    assert [words[0] for words in ran] == ["evaluate.perplexity"] * 2 + ["evaluate.report"]
    assert [words[words.index("--data") + 1] for words in ran[:2]] == facts["shards"]
    assert len({words[-1] for words in ran}) == 3


def test_a_set_that_holds_nothing_out_stops_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on a handful of records whose other figures and report are never made, for want of a dev split."""
    group = Group("csl", (str(root / "assets/sample/summary/csl/dev.tsv"),))
    prepare_groups([group], tmp_path / "csl", root / "assets/tokenizer", PrepareOptions(workers=1, limit=12, validation=0))
    assert everything.commands(tmp_path, ShardSet.open(tmp_path / "csl"), None) == []
    assert "holds nothing out" in capsys.readouterr().out

"""What goes wrong in the chat is said in Chinese, on one line, whatever room finds it."""

import io
import re
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from chat.__main__ import main
from chat.serve.__main__ import main as serve
from chat.terminal import references, session
from common.errors import UserError, run_main
from common.files import read_json, write_json, write_manifest
from evaluate.__main__ import resolve_run
from model.checkpoint import locate, weights
from model.tokenizer.base import Tokenizer
from tests.chat.conftest import ABOUT_BAI, MAYOR, Chat, arguments


def sentence(line: str, detail: str) -> str:
    """The Chinese in front of a detail, which must be there; English in it, names and options aside, fails."""
    said, found, rest = line.partition("；详情：")
    assert found and detail in rest, line
    words = re.sub(r"^error: |--\w+( \w+)?", "", said)
    assert re.search("[一-鿿]{4}", said) and not re.search("[a-z] [a-z]", words), said
    return said


@pytest.fixture
def broken(talker: Path, tmp_path: Path) -> dict[str, Path]:
    """Checkpoints that cannot be used, each in its way."""
    folders = {
        name: tmp_path / name for name in ("cut", "changed", "empty", "vocabulary", "template")
    }
    for folder in folders.values():
        shutil.copytree(talker, folder)
    weights = folders["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    write_manifest(folders["changed"])
    (folders["changed"] / "config.json").write_text("{}")
    (folders["empty"] / "model.safetensors").unlink()
    (folders["vocabulary"] / "tokenizer.model").unlink()
    (folders["template"] / "template.json").write_text("[]")
    return folders


@pytest.mark.parametrize(
    ("name", "said", "detail"),
    [
        ("nowhere", "nowhere 里没有能用的模型", "is not a checkpoint"),
        ("empty", "里没有能用的模型", "is not a checkpoint"),
        ("changed", "里没有能用的模型", "config.json has 2 bytes instead of"),
        ("cut", "里的模型读不进来", "model.safetensors cannot be read"),
        ("vocabulary", "里的模型读不进来", "tokenizer.model does not exist"),
        ("template", "里的模型读不进来", "template.json is not a template"),
    ],
)
def test_unusable_model_error_in_chinese(
    chat: Chat, broken: dict[str, Path], name: str, said: str, detail: str
) -> None:
    """English alone for the first thing that goes wrong, or several lines of it."""
    done = chat(MAYOR, "--checkpoint", str(broken.get(name, name)))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert said in sentence(done.err, detail)


@pytest.mark.parametrize(
    ("option", "said", "detail"),
    [
        (["--chekpoint", "x"], "命令行有误", "did you mean --checkpoint"),
        (["--top_p"], "命令行有误", "needs a value"),
        (
            ["--reference", "x", "--wikipedia", "y"],
            "命令行有误",
            "只能给一个",
        ),
        (["--device", "cuda"], "没有能用的显卡", "torch sees no CUDA device"),
    ],
)
def test_invalid_option_error_in_chinese(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, option: list[str], said: str, detail: str
) -> None:
    """argparse's English, or the devices', alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = chat(MAYOR, *option)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1) and said in sentence(
        done.err, detail
    )


def test_run_name_without_folder_is_suggested(
    chat: Chat, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make chat RUN=pretrain-sample` that lists what a checkpoint is, where one word was left out."""
    shutil.copytree(talker, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    done = chat(MAYOR, "--checkpoint", "mine")
    assert (done.code, done.err) == (2, "error: 没有 mine：是不是 runs/mine？\n")
    with pytest.raises(UserError, match=r"^mine is not a checkpoint: did you mean runs/mine\?$"):
        locate.resolve_checkpoint(Path("mine"))
    with pytest.raises(UserError, match=r"^mine does not exist: did you mean runs/mine\?$"):
        resolve_run(Path("mine"))
    for other in ("runs/mine", "theirs", "/mine"):
        assert locate.suggest_run(Path(other)) is None
    Path("mine").mkdir()
    assert locate.suggest_run(Path("mine")) is None


def test_damaged_checkpoint_fallback_is_reported_in_chinese(
    chat: Chat, talker: Path, tmp_path: Path
) -> None:
    """An English warning before the first Chinese line, or another model than the last without a word."""
    write_json(tmp_path / "run" / "run.json", {})
    for step in (1, 2):
        folder = shutil.copytree(talker, tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
        write_manifest(folder, {"step": step})
    (folder / "config.json").write_text("{}")
    done = chat(MAYOR, "--checkpoint", str(tmp_path / "run"))
    warned, named = done.err.splitlines()
    assert sentence(warned, "using the checkpoint before it").startswith(
        "提示：有一个 checkpoint 损坏"
    )
    assert "step-00000001" in named and (done.code, done.out) == (0, "我不知道。\n")


def test_file_errors_do_not_end_chat(chat: Chat, tmp_path: Path) -> None:
    """A traceback for a name that is none, a wait without end for a file without end, the system's English for a folder."""
    (tmp_path / "gbk.txt").write_bytes("资料".encode("gb18030"))
    (tmp_path / "large.txt").write_bytes(b"x" * ((1 << 20) + 1))
    (tmp_path / "mac.txt").write_bytes("一\r二\r\n三".encode())
    said = [
        MAYOR,
        "/资料 @~没有这个人/x",
        "/资料 @a\0b",
        "/资料 @/dev/zero",
        f"/资料 @{tmp_path}/large.txt",
        f"/资料 @{tmp_path}/gbk.txt",
        f"/资料 @{tmp_path}/{'名' * 300}",
        f"/资料 @{tmp_path}/gbk.txt/x",
        f"/资料 @{tmp_path}",
        f"/资料 @{tmp_path}/没有",
        "/save a\0b",
        "/save ~没有这个人/x",
        f"/save {tmp_path}/{'名' * 300}",
        f"/save {tmp_path}/gbk.txt/x",
        f"/资料 @{tmp_path}/mac.txt",
        "/资料",
    ]
    done = chat("\n".join(said))
    _, *lines = done.err.splitlines()
    assert done.code == 0 and done.out == "我不知道。\n一\n二\n三\n", done.err
    expected = [
        "找不到 ~ 所指",
        "不能有空字符",
        "超过 1 MB",
        "超过 1 MB",
        "不是 UTF-8 文本",
        "读不了（名字太长）",
        "读不了（路径中间有一段是文件，不是目录）",
        "读不了（是目录，不是文件）",
        "读不了（没有这个文件或目录）",
        "不能有空字符",
        "找不到 ~ 所指",
        "写不了（名字太长）",
        "写不了（路径中间有一段是文件，不是目录）",
        "资料：5 字（文件",
    ]
    assert len(lines) == len(expected) and all(
        words in line for words, line in zip(expected, lines, strict=True)
    ), lines


def test_non_utf8_command_line_bytes(chat: Chat, tmp_path: Path) -> None:
    """A reference that no question can be asked about, a file whose name keeps the transcript from being saved."""
    done = chat(f"{MAYOR}\n/资料\n", "--reference", "青禾\udcb0镇")
    assert done.code == 0 and done.out.endswith("\n青禾\ufffd镇\n"), done.err
    odd = tmp_path / "\udcb0资料"
    odd.write_text(ABOUT_BAI, encoding="utf-8")
    done = chat(f"{MAYOR}\n/save {tmp_path}/对话.md", "--reference_file", str(odd))
    assert done.out == "白云飞\n" and "已保存到" in done.err, done.err
    assert "?资料" in (tmp_path / "对话.md").read_text(encoding="utf-8")


def test_out_of_memory_ends_only_the_answer(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback and the conversation lost, where a shorter question can still be answered."""
    answers: list[Any] = [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)]
    real = session.generate

    def generate(*given: Any, **options: Any) -> Generator[int, None, Any]:
        if answers:
            answers.pop(0)()
        return (yield from real(*given, **options))

    monkeypatch.setattr(session, "generate", generate)
    done = chat(f"{MAYOR}\n{MAYOR}\n{MAYOR}\n")
    _, first, second = done.err.splitlines()
    assert "内存或显存不够" in sentence(
        first, "DefaultCPUAllocator"
    ) and "--quantize int8" in sentence(second, "MemoryError")
    assert done.out.split() == ["我不知道。"] and done.code == 0


def test_english_errors_get_chinese_prefix_during_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that shared code refuses, with nothing but its English."""

    def refuse(self: Tokenizer, *_: object) -> list[int]:
        raise UserError("this is refused\nand that")

    monkeypatch.setattr(Tokenizer, "encode_batch", refuse)
    done = chat(MAYOR)
    assert (
        "这个问题读不进去" in sentence(done.err.splitlines()[-1], "this is refused; and that")
        and done.code == 0
    )


def test_unwritable_output_ends_chat(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers lost on a full disk, one after another, and exit code 0."""
    monkeypatch.setattr(sys, "argv", ["chat", *arguments(talker, ())])
    with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as streams:
        streams.setattr(sys, "stdout", io.TextIOWrapper(full, "utf-8", write_through=True))
        streams.setattr("builtins.input", lambda _: MAYOR)
        with pytest.raises(SystemExit) as ended:
            run_main(main)
    assert ended.value.code == 2
    assert "输入输出的文件读写不了（磁盘满了）" in capsys.readouterr().err.splitlines()[-1]


def test_out_of_memory_on_load_is_not_reported_as_damage(
    chat: Chat, talker: Path, tmp_path: Path
) -> None:
    """Advice to shorten a question that nobody has asked yet, or to train a model anew that is whole."""
    folder = shutil.copytree(talker, tmp_path / "large")
    write_json(
        folder / "config.json", {**read_json(folder / "config.json"), "num_hidden_layers": 10**8}
    )
    done = chat(MAYOR, "--checkpoint", str(folder))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    said = sentence(done.err, "layers of 64 with vocabulary")
    assert "装不下这个模型" in said and "损坏" not in said and "问题" not in said


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("safe_open", SafetensorError("Error while opening: Permission denied (os error 13)")),
        ("read_json", PermissionError(13, "Permission denied", "config.json")),
    ],
)
def test_permission_error_on_load_is_not_reported_as_damage(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """Advice to train anew what only somebody else's permission keeps from being read; root may read everything, hence no
    real file."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(weights, name, refuse)
    done = chat(MAYOR)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert sentence(done.err, "ermission denied").startswith("error: 没有权限：请改权限")


def test_out_of_memory_in_command_does_not_end_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation lost with a reference that is too long."""
    monkeypatch.setattr(references, "set_reference_text", lambda *_: bytearray(1 << 60))
    done = chat(f"/资料 很长\n{MAYOR}\n")
    assert "内存或显存不够" in sentence(done.err.splitlines()[-1], "MemoryError")
    assert (done.code, done.out) == (0, "我不知道。\n")


@pytest.mark.parametrize(
    ("options", "said", "detail"),
    [
        (["--device", "cuda"], "没有能用的显卡", "torch sees no CUDA device"),
        (["--checkpoint", "nowhere"], "nowhere 里没有能用的模型", "is not a checkpoint"),
        (["--prot", "1"], "命令行有误", "--port"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 0：不能在这里监听", ""),
        (["--api_key", "密"], "--api_key：密钥要由可见", ""),
    ],
)
def test_server_startup_errors_are_in_chinese(
    talker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
    detail: str,
) -> None:
    """English alone where the server calls what the chat calls; a Chinese line with another around it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        sys, "argv", ["chat.serve", "--port", "0", "--checkpoint", str(talker), *options]
    )
    with pytest.raises(SystemExit) as ended:
        run_main(serve)
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1) and said in error, error
    assert said in sentence(error, detail) if detail else "详情" not in error


def test_shared_code_errors_in_server_are_in_chinese(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """English alone for what no part of it expects."""

    def refuse(*_: object) -> None:
        raise UserError("this is refused")

    monkeypatch.setattr("chat.load_model.capability_hint", refuse)
    monkeypatch.setattr(sys, "argv", ["chat.serve", "--port", "0", "--checkpoint", str(talker)])
    with pytest.raises(SystemExit):
        run_main(serve)
    assert "没有做成" in sentence(capsys.readouterr().err.splitlines()[-1], "this is refused")

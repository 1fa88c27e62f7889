"""Every error is one line in Chinese, whichever package reports it."""

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
from chat.errors import (
    CHECKPOINT_UNREADABLE,
    CHECKPOINT_UNUSABLE,
    COMMAND_FAILED,
    GPU_UNAVAILABLE,
    INVALID_OPTIONS,
    LINE_FAILED,
    MODEL_TOO_LARGE,
    OUT_OF_MEMORY,
    PERMISSION_DENIED,
)
from chat.serve.__main__ import main as serve
from chat.terminal import references, session
from common.errors import UserError, run_main
from common.files import read_json, write_json, write_manifest
from evaluate.measure_run import resolve_run
from model.chat_template.template import Template
from model.checkpoint import locate, weights
from tests.chat.conftest import BAI_REFERENCE, MAYOR_QUESTION, Chat, ChatResult, chat_arguments


def split_error(line: str) -> tuple[str, str]:
    """Return the Chinese message and the English details of an error line."""
    message, separator, details = line.partition("；详情：")
    assert separator, line
    names_removed = re.sub(r"^error: |--\w+( \w+)?", "", message)
    assert re.search("[一-鿿]{4}", message), message
    assert not re.search("[a-z] [a-z]", names_removed), f"English in {message!r}"
    return message, details


def assert_single_error(result: ChatResult, message: str, details: str) -> None:
    """Check that a chat ended before it began, with one line of message and details."""
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    found_message, found_details = split_error(result.err)
    assert found_message == f"error: {message}" and details in found_details, result.err


@pytest.fixture
def broken_checkpoints(talker: Path, tmp_path: Path) -> dict[str, Path]:
    """Unusable checkpoints by name, each broken in another way."""
    folders = {name: tmp_path / name for name in ("truncated", "changed", "empty", "template")}
    for folder in folders.values():
        shutil.copytree(talker, folder)
    weights_file = folders["truncated"] / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    write_manifest(folders["changed"])
    (folders["changed"] / "config.json").write_text("{}")
    (folders["empty"] / "model.safetensors").unlink()
    (folders["template"] / "template.json").write_text("[]")
    return folders


@pytest.mark.parametrize(
    ("name", "message", "details"),
    [
        ("nowhere", CHECKPOINT_UNUSABLE, "is not a checkpoint"),
        ("empty", CHECKPOINT_UNUSABLE, "is not a checkpoint"),
        ("changed", CHECKPOINT_UNUSABLE, "config.json has 2 bytes instead of"),
        ("truncated", CHECKPOINT_UNREADABLE, "model.safetensors cannot be read"),
        ("template", CHECKPOINT_UNREADABLE, "template.json is not a chat template"),
    ],
)
def test_unusable_model_error_in_chinese(
    chat: Chat, broken_checkpoints: dict[str, Path], name: str, message: str, details: str
) -> None:
    """Prevents English alone, or several lines, for the most common error."""
    path = broken_checkpoints.get(name, Path(name))
    result = chat(MAYOR_QUESTION, "--checkpoint", str(path))
    assert_single_error(result, message.format(path=path, folder=path), details)


@pytest.mark.parametrize(
    ("options", "message", "details"),
    [
        (["--chekpoint", "x"], INVALID_OPTIONS, "did you mean --checkpoint"),
        (["--top_p"], INVALID_OPTIONS, "needs a value"),
        (["--reference", "x", "--wikipedia", "y"], INVALID_OPTIONS, "只能选一个"),
        (["--device", "cuda"], GPU_UNAVAILABLE, "torch sees no CUDA device"),
    ],
)
def test_invalid_option_error_in_chinese(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str, details: str
) -> None:
    """Prevents the English of the option parser, or of PyTorch, alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_single_error(chat(MAYOR_QUESTION, *options), message, details)


def test_run_name_without_folder_is_suggested(
    chat: Chat, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents `RUN=mine` from failing without the hint that the run is runs/mine."""
    shutil.copytree(talker, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    result = chat(MAYOR_QUESTION, "--checkpoint", "mine")
    assert (result.code, result.err) == (2, "error: 找不到 mine：是不是 runs/mine？\n")
    with pytest.raises(UserError, match=r"^mine is not a checkpoint: did you mean runs/mine\?$"):
        locate.resolve_checkpoint(Path("mine"))
    with pytest.raises(UserError, match=r"^mine does not exist: did you mean runs/mine\?$"):
        resolve_run(Path("mine"))
    for other in ("runs/mine", "theirs", "/mine"):
        assert locate.suggest_run(Path(other)) is None
    Path("mine").mkdir()
    assert locate.suggest_run(Path("mine")) is None


@pytest.mark.slow
def test_damaged_checkpoint_fallback_is_reported_in_chinese(
    chat: Chat, talker: Path, tmp_path: Path
) -> None:
    """Prevents an English warning, or an older checkpoint that is used silently."""
    write_json(tmp_path / "run" / "run.json", {})
    for step in (1, 2):
        folder = shutil.copytree(talker, tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
        write_manifest(folder, {"step": step})
    (folder / "config.json").write_text("{}")
    result = chat(MAYOR_QUESTION, "--checkpoint", str(tmp_path / "run"))
    warning, description = result.err.splitlines()
    message, details = split_error(warning)
    assert message.startswith("提示：一个检查点已损坏")
    assert "using the checkpoint before it" in details
    assert "step-00000001" in description
    assert (result.code, result.out) == (0, "我不知道。\n")


@pytest.mark.slow
def test_file_errors_do_not_end_chat(chat: Chat, tmp_path: Path) -> None:
    """Prevents a traceback, an endless wait, or English for names that cannot be used."""
    (tmp_path / "gbk.txt").write_bytes("资料".encode("gb18030"))
    (tmp_path / "utf 16.txt").write_bytes("资料".encode("utf-16"))
    (tmp_path / "large.txt").write_bytes(b"x" * ((1 << 20) + 1))
    not_a_directory = "（路径中间有一段是文件，不是目录）"
    expected_errors = [
        ("/资料 @~没有这个人/x", "找不到 ~ 对应的用户目录"),
        ("/资料 @a\0b", "不能包含空字符"),
        ("/资料 @/dev/zero", "超过 1 MB"),
        (f"/资料 @{tmp_path}/large.txt", "超过 1 MB"),
        (f"/资料 @{tmp_path}/gbk.txt", "iconv -f gb18030"),
        (f"/资料 @{tmp_path}/utf 16.txt", f"iconv -f utf-16 -t utf-8 '{tmp_path}/utf 16.txt'"),
        (f"/资料 @{tmp_path}/{'名' * 300}", "无法读取（文件名太长）"),
        (f"/资料 @{tmp_path}/gbk.txt/x", f"无法读取{not_a_directory}"),
        (f"/资料 @{tmp_path}", "无法读取（是目录，不是文件）"),
        (f"/资料 @{tmp_path}/没有", "无法读取（没有这个文件或目录）"),
        ("/save a\0b", "不能包含空字符"),
        ("/save ~没有这个人/x", "找不到 ~ 对应的用户目录"),
        (f"/save {tmp_path}/{'名' * 300}", "无法写入（文件名太长）"),
        (f"/save {tmp_path}/gbk.txt/x", f"无法写入{not_a_directory}"),
    ]
    commands = [command for command, _ in expected_errors]
    result = chat("\n".join([MAYOR_QUESTION, *commands]))
    assert (result.code, result.out) == (0, "我不知道。\n"), result.err
    _, *errors = result.err.splitlines()
    for (command, expected), error in zip(expected_errors, errors, strict=True):
        assert expected in error, command


def test_line_ends_of_reference_file_are_normalized(chat: Chat, tmp_path: Path) -> None:
    """Prevents carriage returns of Windows and old Mac files in the prompt."""
    (tmp_path / "mac.txt").write_bytes("一\r二\r\n三".encode())
    result = chat(f"/资料 @{tmp_path}/mac.txt\n/资料\n")
    assert result.out == "一\n二\n三\n" and "资料：5 字（文件" in result.err


@pytest.mark.slow
def test_non_utf8_bytes_on_the_command_line(chat: Chat, tmp_path: Path) -> None:
    """Prevents failures of every question and of `/save` after bytes that are not UTF-8."""
    result = chat(f"{MAYOR_QUESTION}\n/资料\n", "--reference", "青禾\udcb0镇")
    assert result.code == 0 and result.out.endswith("\n青禾\ufffd镇\n"), result.err
    odd_file = tmp_path / "\udcb0资料"
    odd_file.write_text(BAI_REFERENCE, encoding="utf-8")
    transcript = tmp_path / "对话.md"
    result = chat(f"{MAYOR_QUESTION}\n/save {transcript}", "--reference_file", str(odd_file))
    assert result.out == "白云飞\n" and "已保存到" in result.err, result.err
    assert "?资料" in transcript.read_text(encoding="utf-8")


@pytest.mark.slow
def test_out_of_memory_ends_only_the_answer(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the loss of a conversation in which a shorter question can still be answered."""
    allocations: list[Any] = [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)]
    original_generate = session.generate

    def generate(*arguments: Any, **options: Any) -> Generator[int, None, Any]:
        if allocations:
            allocations.pop(0)()
        return (yield from original_generate(*arguments, **options))

    monkeypatch.setattr(session, "generate", generate)
    result = chat(f"{MAYOR_QUESTION}\n" * 3)
    _, *errors = result.err.splitlines()
    for error, expected_details in zip(errors, ("DefaultCPUAllocator", "MemoryError"), strict=True):
        message, details = split_error(error)
        assert message == OUT_OF_MEMORY and expected_details in details
    assert result.out.split() == ["我不知道。"] and result.code == 0


def test_english_errors_get_chinese_prefix_during_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the end of the chat, or English alone, if shared code refuses a question."""

    def refuse(self: Template, *_: object) -> list[int]:
        raise UserError("this is refused\nand that")

    monkeypatch.setattr(Template, "encode_prompt", refuse)
    result = chat(MAYOR_QUESTION)
    error = result.err.splitlines()[-1]
    assert split_error(error) == (LINE_FAILED, "this is refused; and that")
    assert result.code == 0


@pytest.mark.slow
def test_unwritable_output_ends_chat(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents answers lost on a full disk, one after another, with exit code 0."""
    monkeypatch.setattr(sys, "argv", ["chat", *chat_arguments(talker, ())])
    with open("/dev/full", "wb", buffering=0) as full_disk, monkeypatch.context() as context:
        stdout = io.TextIOWrapper(full_disk, "utf-8", write_through=True)
        context.setattr(sys, "stdout", stdout)
        context.setattr("builtins.input", lambda _: MAYOR_QUESTION)
        with pytest.raises(SystemExit) as exit_info:
            run_main(main)
    assert exit_info.value.code == 2
    assert "输入输出无法读写（磁盘已满）" in capsys.readouterr().err.splitlines()[-1]


def test_out_of_memory_on_load_is_not_reported_as_damage(
    chat: Chat, talker: Path, tmp_path: Path
) -> None:
    """Prevents the advice to shorten a question, or to train an intact model again."""
    folder = shutil.copytree(talker, tmp_path / "large")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "num_hidden_layers": 10**8})
    result = chat(MAYOR_QUESTION, "--checkpoint", str(folder))
    assert_single_error(result, MODEL_TOO_LARGE, "layers of 64 with vocabulary")


@pytest.mark.parametrize(
    ("function_name", "error"),
    [
        ("safe_open", SafetensorError("Error while opening: Permission denied (os error 13)")),
        ("read_json", PermissionError(13, "Permission denied", "config.json")),
    ],
)
def test_permission_error_on_load_is_not_reported_as_damage(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, function_name: str, error: Exception
) -> None:
    """Prevents the advice to train a model again that only its permissions protect."""

    # Raised instead of provoked, because root may read every file.
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(weights, function_name, refuse)
    assert_single_error(chat(MAYOR_QUESTION), PERMISSION_DENIED, "ermission denied")


@pytest.mark.slow
def test_out_of_memory_in_command_does_not_end_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the loss of a conversation because of a reference that is too long."""
    monkeypatch.setattr(references, "start_conversation_about", lambda *_: bytearray(1 << 60))
    result = chat(f"/资料 很长\n{MAYOR_QUESTION}\n")
    message, details = split_error(result.err.splitlines()[-1])
    assert message == OUT_OF_MEMORY and "MemoryError" in details
    assert (result.code, result.out) == (0, "我不知道。\n")


def run_server_command(monkeypatch: pytest.MonkeyPatch, *options: str) -> int | str | None:
    """Run `chat.serve` until it ends with an error; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["chat.serve", "--port", "0", *options])
    with pytest.raises(SystemExit) as exit_info:
        run_main(serve)
    return exit_info.value.code


@pytest.mark.parametrize(
    ("options", "message", "details"),
    [
        (["--device", "cuda"], GPU_UNAVAILABLE, "torch sees no CUDA device"),
        (
            ["--checkpoint", "nowhere"],
            CHECKPOINT_UNUSABLE.format(path="nowhere"),
            "is not a checkpoint",
        ),
        (["--prot", "1"], INVALID_OPTIONS, "--port"),
        (["--api_key", "密"], INVALID_OPTIONS, "--api_key: 密钥只能由可见的 ASCII 字符组成"),
    ],
)
def test_server_startup_errors_are_in_chinese(
    talker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
    details: str,
) -> None:
    """Prevents English alone where the server calls the same code as the chat."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code = run_server_command(monkeypatch, "--checkpoint", str(talker), *options)
    error = capsys.readouterr().err
    assert_single_error(ChatResult(code, "", error), message, details)


def test_chinese_errors_get_no_prefix(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a Chinese line with another one around it."""
    code = run_server_command(monkeypatch, "--checkpoint", str(talker), "--host", "256.1.1.1")
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: --host 256.1.1.1 --port 0：无法监听（")
    assert error.count("\n") == 1 and "详情" not in error


def test_unexpected_error_of_shared_code_gets_chinese_prefix(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents English alone for an error that no part of the server expects."""

    def refuse(*_: object) -> None:
        raise UserError("this is refused")

    monkeypatch.setattr("chat.load_model.capability_hint", refuse)
    run_server_command(monkeypatch, "--checkpoint", str(talker))
    error = capsys.readouterr().err.splitlines()[-1]
    assert split_error(error) == (f"error: {COMMAND_FAILED}", "this is refused")

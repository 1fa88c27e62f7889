"""What a line that begins with a slash does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chat.errors import ChatError, describe_os_error
from chat.terminal import references
from chat.terminal.console import Console
from chat.terminal.session import Session
from chat.terminal.settings import SETTINGS, Setting, replace_setting
from chat.terminal.transcript import format_transcript
from common.files import write_atomic

Action = Callable[[Session, Console, str], None]


class Quit(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """The names of a command without the slash, what may follow it, what it does."""

    names: tuple[str, ...]
    argument: str
    help: str
    run: Action


def execute_command(session: Session, console: Console, line: str) -> None:
    """Do what a line that begins with a slash says. ChatError for an unknown command or a wrong argument; `Quit`."""
    name, argument = [*line[1:].split(maxsplit=1), "", ""][:2]
    command = next((each for each in COMMANDS if name.lower() in each.names), None)
    if command is None:
        raise ChatError(
            f"没有 /{name} 这个命令；有：{'  '.join(f'/{each.names[0]}' for each in COMMANDS)}"
        )
    command.run(session, console, argument.strip())


def help_text() -> str:
    """All commands, a line each."""
    lines = [
        f"{' '.join(f'/{name}' for name in each.names)} {each.argument}".rstrip() + f"  {each.help}"
        for each in COMMANDS
    ]
    return "\n".join(
        [
            *lines,
            "以反斜杠 \\ 结尾的行与下一行相连；以 / 开头的问题，前面加一个空格。",
            "Ctrl-C 打断回答，不退出；在提示符下连按两次 Ctrl-C，或按 Ctrl-D，退出。",
        ]
    )


def _show_help(session: Session, console: Console, argument: str) -> None:
    console.write_line(help_text())


def _set_reference(session: Session, console: Console, argument: str) -> None:
    if not argument:
        console.write_line(session.conversation.reference or "没有资料")
    elif argument.lower() in ("off", "关"):
        session.start_conversation("")
        console.write_note("资料已去掉，对话从头开始")
    elif argument.startswith("@"):
        references.load_reference_file(session, console, _parse_path(argument[1:].strip()))
    else:
        references.set_reference_text(session, console, argument)


def _parse_path(text: str) -> Path:
    """What was typed as a path, `~` being the home folder. ChatError if it cannot be one."""
    if "\0" in text:
        raise ChatError("文件名里不能有空字符")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ChatError(f"{text}：找不到 ~ 所指的用户目录，请写出完整的路径") from None


def _reset_conversation(session: Session, console: Console, argument: str) -> None:
    session.start_conversation(session.conversation.reference, session.conversation.source)
    console.write_note("对话从头开始" + ("，资料还在" if session.conversation.reference else ""))


def _save_transcript(session: Session, console: Console, argument: str) -> None:
    if not argument:
        raise ChatError("请给一个文件名，例如 /保存 对话.md")
    path = _parse_path(argument)
    if not any(each.exchanges for each in session.conversations):
        raise ChatError("还没有对话，没有什么可保存")
    try:
        if path.exists() and path.resolve() not in session.transcript_paths:
            raise ChatError(f"{path} 已经存在，不是这次对话写的：换个文件名")
        # The name of a reference's file may be bytes that are no text.
        write_atomic(path, format_transcript(session).encode("utf-8", "replace"))
    except OSError as error:
        raise ChatError(f"{path}：写不了（{describe_os_error(error)}）") from None
    session.transcript_paths.add(path.resolve())
    console.write_note(f"已保存到 {path}")


def _show_settings(session: Session, console: Console, argument: str) -> None:
    conversation = session.conversation
    lines = [f"模型：{session.loaded_model.description}"]
    lines += [
        f"{setting.name} {getattr(session.sampling, setting.name):g}（{setting.help_zh}）"
        for setting in SETTINGS
    ]
    lines.append(f"max_new_tokens {session.max_new_tokens}，seed {session.seed}")
    num_remembered = len(conversation.exchanges) - conversation.num_forgotten
    lines.append(f"对话：{len(conversation.exchanges)} 轮，记得最近 {num_remembered} 轮")
    reference_text = (
        f"{len(conversation.reference)} 字（{conversation.source}）\n{conversation.reference}"
    )
    lines.append(f"资料：{reference_text if conversation.reference else '没有'}")
    console.write_line("\n".join(lines))


def _quit(session: Session, console: Console, argument: str) -> None:
    raise Quit


def _setting_action(setting: Setting) -> Action:
    def run(session: Session, console: Console, argument: str) -> None:
        if not argument:
            console.write_line(
                f"{setting.name} {getattr(session.sampling, setting.name):g}（{setting.help_zh}）"
            )
            return
        try:
            value = setting.parse_value(argument)
        except ValueError as error:
            raise ChatError(f"/{setting.command_names[0]} {error}") from None
        session.sampling = replace_setting(session.sampling, setting, value)
        console.write_note(f"{setting.name} 改为 {getattr(session.sampling, setting.name):g}")

    return run


COMMANDS = (
    Command(("help", "帮助"), "", "列出这些命令", _show_help),
    Command(
        ("reference", "资料"),
        "文字|@文件|off",
        "换上资料，对话从头开始；off 去掉资料；不带参数则显示",
        _set_reference,
    ),
    Command(
        ("wiki", "维基"),
        "关键词",
        "以维基百科条目的引言为资料",
        references.load_wikipedia_reference,
    ),
    *(
        Command(setting.command_names, "数", setting.help_zh, _setting_action(setting))
        for setting in SETTINGS
    ),
    Command(("reset", "重置"), "", "忘掉说过的话，资料和设置不变", _reset_conversation),
    Command(("save", "保存"), "文件", "把到此为止的对话存成 Markdown", _save_transcript),
    Command(("show", "显示"), "", "显示模型、设置和资料", _show_settings),
    Command(("quit", "退出"), "", "退出", _quit),
)

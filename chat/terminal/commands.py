"""What a line that begins with a slash does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chat.terminal import references
from chat.terminal.console import Console
from chat.errors import ChatError, refusal
from chat.terminal.session import Session
from chat.terminal.settings import SETTINGS, Setting, changed
from chat.terminal.transcript import markdown
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


def execute(session: Session, console: Console, line: str) -> None:
    """Do what a line that begins with a slash says. ChatError for an unknown command or a wrong argument; `Quit`."""
    name, argument = [*line[1:].split(maxsplit=1), "", ""][:2]
    command = next((each for each in COMMANDS if name.lower() in each.names), None)
    if command is None:
        raise ChatError(f"没有 /{name} 这个命令；有：{'  '.join(f'/{each.names[0]}' for each in COMMANDS)}")
    command.run(session, console, argument.strip())


def help_text() -> str:
    """All commands, a line each."""
    lines = [f"{' '.join(f'/{name}' for name in each.names)} {each.argument}".rstrip() + f"  {each.help}" for each in COMMANDS]
    return "\n".join([*lines, "以反斜杠 \\ 结尾的行与下一行相连；以 / 开头的问题，前面加一个空格。",
                      "Ctrl-C 打断回答，不退出；在提示符下连按两次 Ctrl-C，或按 Ctrl-D，退出。"])


def _help(session: Session, console: Console, argument: str) -> None:
    console.say(help_text())


def _reference(session: Session, console: Console, argument: str) -> None:
    if not argument:
        console.say(session.conversation.reference or "没有资料")
    elif argument.lower() in ("off", "关"):
        session.begin("")
        console.note("资料已去掉，对话从头开始")
    elif argument.startswith("@"):
        references.from_file(session, console, _path(argument[1:].strip()))
    else:
        references.from_text(session, console, argument)


def _path(text: str) -> Path:
    """What was typed as a path, `~` being the home folder. ChatError if it cannot be one."""
    if "\0" in text:
        raise ChatError("文件名里不能有空字符")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ChatError(f"{text}：找不到 ~ 所指的用户目录，请写出完整的路径") from None


def _reset(session: Session, console: Console, argument: str) -> None:
    session.begin(session.conversation.reference, session.conversation.source)
    console.note("对话从头开始" + ("，资料还在" if session.conversation.reference else ""))


def _save(session: Session, console: Console, argument: str) -> None:
    if not argument:
        raise ChatError("请给一个文件名，例如 /保存 对话.md")
    path = _path(argument)
    if not any(each.exchanges for each in session.conversations):
        raise ChatError("还没有对话，没有什么可保存")
    try:
        if path.exists() and path.resolve() not in session.saved:
            raise ChatError(f"{path} 已经存在，不是这次对话写的：换个文件名")
        # The name of a reference's file may be bytes that are no text.
        write_atomic(path, markdown(session).encode("utf-8", "replace"))
    except OSError as error:
        raise ChatError(f"{path}：写不了（{refusal(error)}）") from None
    session.saved.add(path.resolve())
    console.note(f"已保存到 {path}")


def _show(session: Session, console: Console, argument: str) -> None:
    conversation = session.conversation
    lines = [f"模型：{session.weights.description}"]
    lines += [f"{setting.field} {getattr(session.sampling, setting.field):g}（{setting.chinese}）" for setting in SETTINGS]
    lines.append(f"max_new_tokens {session.max_new_tokens}，seed {session.seed}")
    remembered = len(conversation.exchanges) - conversation.forgotten
    lines.append(f"对话：{len(conversation.exchanges)} 轮，记得最近 {remembered} 轮")
    about = f"{len(conversation.reference)} 字（{conversation.source}）\n{conversation.reference}"
    lines.append(f"资料：{about if conversation.reference else '没有'}")
    console.say("\n".join(lines))


def _quit(session: Session, console: Console, argument: str) -> None:
    raise Quit


def _change(setting: Setting) -> Action:
    def run(session: Session, console: Console, argument: str) -> None:
        if not argument:
            console.say(f"{setting.field} {getattr(session.sampling, setting.field):g}（{setting.chinese}）")
            return
        session.sampling = changed(session.sampling, setting, setting.parse(argument, f"/{setting.commands[0]}"))
        console.note(f"{setting.field} 改为 {getattr(session.sampling, setting.field):g}")

    return run


COMMANDS = (
    Command(("help", "帮助"), "", "列出这些命令", _help),
    Command(("reference", "资料"), "文字|@文件|off", "换上资料，对话从头开始；off 去掉资料；不带参数则显示", _reference),
    Command(("wiki", "维基"), "关键词", "以维基百科条目的引言为资料", references.from_wikipedia),
    *(Command(setting.commands, "数", setting.chinese, _change(setting)) for setting in SETTINGS),
    Command(("reset", "重置"), "", "忘掉说过的话，资料和设置不变", _reset),
    Command(("save", "保存"), "文件", "把到此为止的对话存成 Markdown", _save),
    Command(("show", "显示"), "", "显示模型、设置和资料", _show),
    Command(("quit", "退出"), "", "退出", _quit),
)

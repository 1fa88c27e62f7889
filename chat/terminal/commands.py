"""The slash commands of the chat."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chat.errors import ChatError, describe_os_error
from chat.terminal import knowledge, references
from chat.terminal.console import Console
from chat.terminal.session import Conversation, Session
from chat.terminal.settings import SETTINGS, Setting, replace_setting
from chat.terminal.transcript import format_transcript
from common.files import write_atomic

# Returns a question to ask the model, if there is one.
Action = Callable[[Session, Console, str], str | None]


class Quit(Exception):
    """The user entered `/quit`."""


@dataclass(frozen=True)
class Command:
    """A slash command."""

    names: tuple[str, ...]  # without the slash
    argument: str  # placeholder that the help shows after the names
    help: str
    run: Action  # called with the session, the console and the argument


def execute_command(session: Session, console: Console, line: str) -> str | None:
    """Execute a line that begins with a slash; return a question that it wants to be answered.

    Raises ChatError for an unknown command or a wrong argument, and Quit for `/quit`.
    """
    # split() divides at any white space, a full-width blank included.
    parts = line[1:].split(maxsplit=1)
    name = parts[0] if parts else ""
    argument = parts[1].strip() if len(parts) > 1 else ""
    for command in COMMANDS:
        if name.lower() in command.names:
            return command.run(session, console, argument)
    available = "  ".join(f"/{command.names[0]}" for command in COMMANDS)
    raise ChatError(f"没有 /{name} 这个命令，可用的有：{available}")


def help_text() -> str:
    """Return the help: one line per command, then the special keys."""
    lines = []
    for command in COMMANDS:
        names = " ".join(f"/{name}" for name in command.names)
        lines.append(f"{names} {command.argument}".rstrip() + f"  {command.help}")
    lines += [
        "行末加反斜杠 \\ 可接着输入下一行；问题本身以 / 开头时，请在前面加一个空格。",
        "Ctrl-C 中断回答，不会退出；在提示符下连按两次 Ctrl-C，或按 Ctrl-D，可退出。",
    ]
    return "\n".join(lines)


def _show_help(session: Session, console: Console, argument: str) -> None:
    console.write_line(help_text())


def _set_reference(session: Session, console: Console, argument: str) -> None:
    """Show the reference if there is no argument; otherwise start a conversation with a new one.

    `off` or `关` stands for no reference, `auto` or `自动` for what is found for each question,
    `@FILE` for the text of a file, and any other argument is the reference itself. Raises ChatError
    if the file cannot be used, or if there is no index.
    """
    if not argument:
        nothing = "当前没有资料" + ("，每个问题自动查找" if session.is_automatic else "")
        console.write_line(session.conversation.reference or nothing)
    elif argument.lower() in ("off", "关"):
        automatic_note = "，不再自动查找" if session.is_automatic else ""
        session.is_automatic = False
        session.start_conversation(Conversation())
        console.write_note(f"资料已清除{automatic_note}，对话重新开始")
    elif argument.lower() in ("auto", "自动"):
        knowledge.start_automatic(session, console)
    elif argument.startswith("@"):
        references.load_reference_file(session, console, _parse_path(argument[1:].strip()))
    else:
        references.start_conversation_about(session, console, argument)


def _parse_path(path: str) -> Path:
    """Return `path` with `~` expanded. Raises ChatError if it has a null character or no home."""
    if "\0" in path:
        raise ChatError("文件名不能包含空字符")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ChatError(f"{path}：找不到 ~ 对应的用户目录，请写完整路径") from None


def _reset_conversation(session: Session, console: Console, argument: str) -> None:
    """Start a new conversation with the same reference, unless each question gets its own."""
    if session.is_automatic:
        session.start_conversation(Conversation())
        console.write_note("对话重新开始，每个问题仍自动查找资料")
        return
    old = session.conversation
    session.start_conversation(Conversation(old.reference, old.source, old.title))
    console.write_note("对话重新开始" + ("，资料保留" if old.reference else ""))


def _save_transcript(session: Session, console: Console, argument: str) -> None:
    """Write all conversations of the session to a file that this session may overwrite.

    Raises ChatError if there is nothing to write, or for a file of somebody else.
    """
    if not argument:
        raise ChatError("请给出文件名，例如 /保存 对话.md")
    path = _parse_path(argument)
    if not any(conversation.exchanges for conversation in session.conversations):
        raise ChatError("还没有可以保存的对话")
    try:
        if path.exists() and path.resolve() not in session.transcript_paths:
            raise ChatError(f"{path} 已存在，且不是本次对话保存的：请换一个文件名")
        # The transcript has the path of a reference file, which may contain bytes that are not
        # UTF-8.
        write_atomic(path, format_transcript(session).encode("utf-8", "replace"))
    except OSError as error:
        raise ChatError(f"{path}：无法写入（{describe_os_error(error)}）") from None
    session.transcript_paths.add(path.resolve())
    console.write_note(f"已保存到 {path}")


def _show_session(session: Session, console: Console, argument: str) -> None:
    """Write model, settings, length of the conversation, and reference to stdout."""
    conversation = session.conversation
    num_exchanges = len(conversation.exchanges)
    num_visible = len(conversation.visible_turns)
    lines = [f"模型：{session.loaded_model.description}"]
    lines += [_describe_setting(session, setting) for setting in SETTINGS]
    lines.append(f"max_new_tokens {session.max_new_tokens}，seed {session.seed}")
    lines.append(f"对话：共 {num_exchanges} 轮，模型能看到最近 {num_visible} 轮")
    if session.lookup is not None:
        state = "每个问题自动查找" if session.is_automatic else "不自动查找"
        lines.append(f"资料库：{session.index}（{len(session.lookup):,} 段，{state}）")
    if conversation.reference:
        lines.append(f"资料：{len(conversation.reference)} 字（{conversation.source}）")
        lines.append(conversation.reference)
    else:
        lines.append("资料：无")
    console.write_line("\n".join(lines))


def _describe_setting(session: Session, setting: Setting) -> str:
    return f"{setting.name} {getattr(session.sampling, setting.name):g}（{setting.help_zh}）"


def _quit(session: Session, console: Console, argument: str) -> None:
    raise Quit


def _setting_action(setting: Setting) -> Action:
    """Return the action that changes `setting`, or shows it if there is no argument."""

    def run(session: Session, console: Console, argument: str) -> None:
        if not argument:
            console.write_line(_describe_setting(session, setting))
            return
        try:
            value = setting.parse_value(argument)
        except ValueError as error:
            raise ChatError(f"/{setting.command_names[0]}：{error}") from None
        session.sampling = replace_setting(session.sampling, setting, value)
        console.write_note(f"{setting.name} 已设为 {value:g}")

    return run


COMMANDS = (
    Command(("help", "帮助"), "", "显示本帮助", _show_help),
    Command(
        ("reference", "资料"),
        "文字|@文件|自动|off",
        "设置资料并重新开始对话；自动：每个问题各自从资料库（--index）中查找；off 清除资料；"
        "不带参数时显示资料",
        _set_reference,
    ),
    Command(
        ("wiki", "维基"),
        "关键词",
        "把维基百科条目的引言作为资料",
        references.load_wikipedia_reference,
    ),
    Command(("search", "查"), "词", "只在资料库中查找，不提问", knowledge.show_search_results),
    Command(
        ("add", "收录"), "", "把当前的资料（例如维基百科的条目）加入资料库", knowledge.add_reference
    ),
    Command(
        ("copied", "依据"),
        "开|关",
        "标出回答中出自资料的部分：不带参数时标出上一个回答；开：每个回答之后都标出",
        knowledge.show_copied_parts,
    ),
    Command(
        ("example", "示例"),
        "",
        "载入一段示例资料和可以问的问题（拟标题的模型：发送一篇示例）；再输入则换下一个",
        references.load_example,
    ),
    *(
        Command(setting.command_names, "数值", setting.help_zh, _setting_action(setting))
        for setting in SETTINGS
    ),
    Command(("reset", "重置"), "", "重新开始对话，保留资料和设置", _reset_conversation),
    Command(("save", "保存"), "文件", "将目前为止的对话保存为 Markdown", _save_transcript),
    Command(("show", "显示"), "", "显示模型、设置和资料", _show_session),
    Command(("quit", "退出"), "", "退出", _quit),
)

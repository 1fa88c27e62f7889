"""Load the reference text of a conversation: from the user, a file, Wikipedia or an example."""

import shlex
from pathlib import Path

from chat.errors import ChatError, describe_os_error
from chat.terminal import cache_dir
from chat.terminal.console import Console
from chat.terminal.session import Conversation, Session
from common.errors import UserError
from common.files import read_limited
from data.readers.encoding import guess_encoding
from data.sources.base import strip_blank_lines

MAX_REFERENCE_BYTES = 1 << 20


def start_conversation_about(session: Session, console: Console, text: str) -> None:
    """Start a conversation with `text` as its reference. Raises ChatError if it is blank."""
    _start_conversation(session, console, text, source="用户输入")


def load_reference_file(session: Session, console: Console, path: Path) -> None:
    """Start a conversation with a text file as its reference.

    Raises ChatError if the file cannot be read, is larger than 1 MiB, not UTF-8 or blank.
    """
    try:
        # utf-8-sig: editors on Windows begin UTF-8 files with a byte order mark.
        text = read_limited(path, MAX_REFERENCE_BYTES).decode("utf-8-sig")
    except UserError:  # only because of the size
        raise ChatError(
            f"{path}：文件超过 {MAX_REFERENCE_BYTES >> 20} MB，请只截取需要的部分"
        ) from None
    except UnicodeDecodeError as error:
        encoding = guess_encoding(error.object)
        advice = "请另存为 UTF-8"
        if encoding is not None:
            advice = f"请先转换：iconv -f {encoding} -t utf-8 {shlex.quote(str(path))}"
        raise ChatError(f"{path}：不是 UTF-8 文本；{advice}") from None
    except OSError as error:
        raise ChatError(f"{path}：无法读取（{describe_os_error(error)}）") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    _start_conversation(session, console, text, source=f"文件 {path}")


def load_wikipedia_reference(session: Session, console: Console, keyword: str) -> None:
    """Start a conversation with the introduction of a Wikipedia article as its reference.

    Raises ChatError if the article does not exist or Wikipedia cannot be reached.
    """
    if not keyword.strip():
        raise ChatError("请给出关键词，例如 /维基 李白")
    # Imported here because it takes a third of a second, which other conversations need not wait.
    from chat.terminal import wikipedia

    console.write_note(f"正在查询维基百科：{keyword} ……")
    passage, is_cached = wikipedia.get_passage(keyword, cache_dir() / "wikipedia")
    if passage.others:
        console.write_note(
            f"没有同名条目，已选用最接近的“{passage.title}”；其他结果：{'、'.join(passage.others)}"
        )
    cache_note = f"，本地缓存，{passage.fetched} 下载" if is_cached else ""
    source = f"维基百科“{passage.title}”{cache_note}，{passage.url}"
    _start_conversation(session, console, passage.text, source=source, title=passage.title)
    if session.index is not None:
        console.write_note("/收录 可把它加入资料库")


def load_example(session: Session, console: Console, argument: str) -> str | None:
    """Start a conversation with the next example of the model, and print it.

    Return the request of an example without a passage, which is then asked. Raises ChatError if
    there is no example for the model.
    """
    examples = session.loaded_model.examples
    if not examples:
        raise ChatError(
            "没有适合这个模型的示例：只有用项目自带的样本微调的模型才有；请用 /资料 自己给一段文字"
        )
    index = session.num_examples_shown % len(examples)
    session.num_examples_shown += 1
    example = examples[index]
    if not example.reference:
        session.is_automatic = False
        session.start_conversation(Conversation())
        console.write_line(example.questions[0])
        return example.questions[0]
    _start_conversation(session, console, example.reference, source=f"示例 {index + 1}")
    console.write_line("\n".join([example.reference, "可以问：", *example.questions]))
    return None


def _start_conversation(
    session: Session, console: Console, text: str, *, source: str, title: str = ""
) -> None:
    """Start a conversation, and tell the user how long its reference is and where it comes from.

    Its reference stays: passages are not looked up any more.
    """
    text = strip_blank_lines(text)  # as training does: a paragraph keeps its indentation
    if not text:
        raise ChatError(f"资料为空（{source}）")
    restart_note = "，对话重新开始" if session.conversation.exchanges else ""
    automatic_note = "，不再自动查找（/资料 自动 可恢复）" if session.is_automatic else ""
    session.is_automatic = False
    session.start_conversation(Conversation(text, source, title))
    console.write_note(f"资料：{len(text)} 字（{source}）{restart_note}{automatic_note}")

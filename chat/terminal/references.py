"""References that the user brings: a text, a file, an article of Wikipedia."""

from pathlib import Path

from chat.errors import ChatError, describe_os_error
from chat.terminal import wikipedia
from chat.terminal.cache_dir import cache_dir
from chat.terminal.console import Console
from chat.terminal.session import Session
from common.errors import UserError
from common.files import read_limited

MAX_REFERENCE_BYTES = 1 << 20


def set_reference_text(session: Session, console: Console, text: str) -> None:
    """Talk about this text."""
    _start_conversation(session, console, text, "用户给出")


def load_reference_file(session: Session, console: Console, path: Path) -> None:
    """Talk about the text of a UTF-8 file. ChatError if there is none."""
    try:
        text = (
            read_limited(path, MAX_REFERENCE_BYTES)
            .decode("utf-8-sig")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
        )
    except UserError:
        raise ChatError(
            f"{path}：文件超过 {MAX_REFERENCE_BYTES >> 20} MB，当不了资料，请截取要用的部分"
        ) from None
    except UnicodeDecodeError:
        raise ChatError(
            f"{path}：不是 UTF-8 文本；若是 GBK，先转换：iconv -f gb18030 -t utf-8"
        ) from None
    except OSError as error:
        raise ChatError(f"{path}：读不了（{describe_os_error(error)}）") from None
    _start_conversation(session, console, text, f"文件 {path}")


def load_wikipedia_reference(session: Session, console: Console, keyword: str) -> None:
    """Talk about the introduction of an article. ChatError, one clear line, if there is none to have."""
    if not keyword.strip():
        raise ChatError("请给一个关键词，例如 /维基 李白")
    console.write_note(f"正在查维基百科：{keyword} ……")
    article, is_cached = wikipedia.get_passage(keyword, cache_dir() / "wikipedia")
    if article.others:
        console.write_note(
            f"没有同名的条目，取最相近的“{article.title}”；另有：{'、'.join(article.others)}"
        )
    origin = f"，本地缓存，{article.fetched} 取得" if is_cached else ""
    _start_conversation(
        session, console, article.text, f"维基百科“{article.title}”{origin}，{article.url}"
    )


def _start_conversation(session: Session, console: Console, text: str, source: str) -> None:
    text = text.strip()
    if not text:
        raise ChatError(f"资料是空的（{source}）")
    restart_note = "，对话从头开始" if session.conversation.exchanges else ""
    session.start_conversation(text, source)
    console.write_note(f"资料：{len(text)} 字（{source}）{restart_note}")

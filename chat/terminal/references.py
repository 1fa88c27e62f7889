"""References that the user brings: a text, a file, an article of Wikipedia."""

from pathlib import Path

from chat.terminal import wikipedia
from chat.terminal.console import Console
from chat.errors import ChatError, refusal
from chat.terminal.cache_dir import cache_folder
from chat.terminal.session import Session
from common.errors import UserError
from common.files import read_small

LIMIT = 1 << 20


def from_text(session: Session, console: Console, text: str) -> None:
    """Talk about this text."""
    _begin(session, console, text, "用户给出")


def from_file(session: Session, console: Console, path: Path) -> None:
    """Talk about the text of a UTF-8 file. ChatError if there is none."""
    try:
        text = read_small(path, LIMIT).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UserError:
        raise ChatError(f"{path}：文件超过 {LIMIT >> 20} MB，当不了资料，请截取要用的部分") from None
    except UnicodeDecodeError:
        raise ChatError(f"{path}：不是 UTF-8 文本；若是 GBK，先转换：iconv -f gb18030 -t utf-8") from None
    except OSError as error:
        raise ChatError(f"{path}：读不了（{refusal(error)}）") from None
    _begin(session, console, text, f"文件 {path}")


def from_wikipedia(session: Session, console: Console, keyword: str) -> None:
    """Talk about the introduction of an article. ChatError, one clear line, if there is none to have."""
    if not keyword.strip():
        raise ChatError("请给一个关键词，例如 /维基 李白")
    console.note(f"正在查维基百科：{keyword} ……")
    found, kept = wikipedia.passage(keyword, cache_folder() / "wikipedia")
    if found.others:
        console.note(f"没有同名的条目，取最相近的“{found.title}”；另有：{'、'.join(found.others)}")
    origin = f"，本地缓存，{found.fetched} 取得" if kept else ""
    _begin(session, console, found.text, f"维基百科“{found.title}”{origin}，{found.url}")


def _begin(session: Session, console: Console, text: str, source: str) -> None:
    text = text.strip()
    if not text:
        raise ChatError(f"资料是空的（{source}）")
    afresh = "，对话从头开始" if session.conversation.exchanges else ""
    session.begin(text, source)
    console.note(f"资料：{len(text)} 字（{source}）{afresh}")

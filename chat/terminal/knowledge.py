"""The index of a chat: passages for questions, `/查` and `/收录`; what answers copy: `/依据`."""

from chat.errors import ChatError, translate_errors
from chat.terminal.console import Console
from chat.terminal.session import Conversation, Session
from data.copied_parts import find_copied_parts
from data.index.excerpt import find_excerpt
from data.index.passage_index import Hit
from data.index.passages import TitledDocument
from data.index.writer import add_documents

NUM_RESULTS = 5
NO_INDEX = "没有资料库：请先用 make index 建立，再在启动时加上 --index 目录"
ADDING_FAILED = "无法加入资料库：请按详情排查后重试"
_EXCERPT_CHARACTERS = 60
_LABEL_CHARACTERS = 15
_ON, _OFF = ("on", "开"), ("off", "关")


def start_automatic(session: Session, console: Console) -> None:
    """Start a conversation in which each question gets the passage that is found for it.

    Raises ChatError if there is no index.
    """
    if session.lookup is None:
        raise ChatError(NO_INDEX)
    session.is_automatic = True
    session.start_conversation(Conversation())
    console.write_note(
        f"资料库：{session.index}（{len(session.lookup):,} 段），每个问题自动查找资料，"
        "/资料 off 可关闭"
    )


def look_up_passage(session: Session, console: Console, question: str) -> None:
    """Make the passage for a question the reference, and tell the user which one it is."""
    found = session.look_up(question)
    if found is None:
        note = "资料：资料库中没有找到与问题相关的段落；以下回答没有依据，可能是编造的"
    elif found.is_kept:
        beginning = " ".join(found.hit.text[:_LABEL_CHARACTERS].split())
        note = f"资料：沿用上一段（{found.hit.title or beginning + '……'}）"
    else:
        note = f"资料：{_describe_hit(found.hit, question)}"
    console.write_note(note, is_dim=True)


def show_search_results(session: Session, console: Console, words: str) -> None:
    """Print the passages that the index has for some words, without asking the model."""
    if session.lookup is None:
        raise ChatError(NO_INDEX)
    if not words:
        raise ChatError("请给出要查的词，例如 /查 西湖 断桥")
    hits = session.lookup.search(words, NUM_RESULTS)
    for number, hit in enumerate(hits, 1):
        console.write_line(f"{number}. {_describe_hit(hit, words)}")
    if not hits:
        console.write_note("资料库中没有含有这些词的段落")


def add_reference(session: Session, console: Console, argument: str) -> None:
    """Add the reference of the conversation to the index.

    Raises ChatError if there is no index or no reference, if the reference is from the index, or if
    nothing can be added.
    """
    conversation = session.conversation
    if session.index is None:
        raise ChatError(NO_INDEX)
    if not conversation.reference:
        raise ChatError("当前没有资料：请先用 /维基 关键词 或 /资料 @文件 载入，再 /收录")
    if conversation.passage is not None:
        raise ChatError("当前的资料就是从资料库中找到的，不必再收录")
    with translate_errors(ADDING_FAILED):
        document = TitledDocument(conversation.title, conversation.reference, conversation.source)
        report = add_documents(session.index, [document])
    session.open_index(session.index)
    added = report["passages_added"]
    result = f"已加入资料库：{added} 段" if added else "资料库中已有这份资料"
    console.write_note(f"{result}；现在共 {report['passages']:,} 段")


def show_copied_parts(session: Session, console: Console, argument: str) -> None:
    """Show which parts of the last answer are from the reference; `on` does so after each answer.

    Raises ChatError for any other argument than `on` and `off`, or if there is nothing to show.
    """
    if argument:
        if argument.lower() not in (*_ON, *_OFF):
            raise ChatError(f"/依据：应为 开 或 关，而不是 {argument[:40]}")
        session.shows_copied_parts = argument.lower() in _ON
        state = "标出" if session.shows_copied_parts else "不标出"
        console.write_note(f"每个回答之后{state}出自资料的部分")
        return
    exchanges = session.conversation.exchanges
    if not exchanges:
        raise ChatError("还没有根据资料的回答")
    if exchanges[-1].copied_share is None:
        raise ChatError("上一个回答没有可对照的资料")
    write_copied_parts(session, console)


def note_copied_share(session: Session, console: Console) -> None:
    """Tell the user how much of the last answer is from the reference, if there is one."""
    share = session.conversation.exchanges[-1].copied_share
    if share is not None:
        console.write_note(f"（回答的 {share:.0%} 出自资料）", is_dim=True)
        if session.shows_copied_parts:
            write_copied_parts(session, console)


def write_copied_parts(session: Session, console: Console) -> None:
    """Print the last answer with marks around what is from the reference."""
    conversation = session.conversation
    answer = conversation.exchanges[-1].answer
    console.write_marked(answer, find_copied_parts(answer, conversation.visible_reference))


def _describe_hit(hit: Hit, words: str) -> str:
    """Return title, excerpt, score and source of a passage that was found for some words."""
    title = f"{hit.title}｜" if hit.title else ""
    excerpt = find_excerpt(hit.text, words, _EXCERPT_CHARACTERS)
    return f"{title}{excerpt}（得分 {hit.score:.1f}，{hit.source}）"

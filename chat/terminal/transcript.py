"""What was said, as Markdown."""

from datetime import datetime

from chat.prompt import Conversation
from chat.terminal.session import Session
from chat.terminal.settings import format_settings


def format_transcript(session: Session) -> str:
    """All conversations of a sitting in which something was said, forgotten turns and all."""
    non_empty_conversations = [each for each in session.conversations if each.exchanges]
    head = [
        "# 对话记录",
        "\n".join(
            [
                f"- 模型：{session.loaded_model.description}",
                f"- 保存时的设置：{format_settings(session.sampling)}",
                f"- 保存于：{datetime.now():%Y-%m-%d %H:%M}",
            ]
        ),
    ]
    parts = [
        part
        for number, each in enumerate(non_empty_conversations, 1)
        for part in _format_conversation(number, each)
    ]
    return "\n\n".join(head + parts) + "\n"


def _format_conversation(number: int, conversation: Conversation) -> list[str]:
    parts = [f"## 对话 {number}"]
    if conversation.reference:
        quoted = "\n".join(f"> {line}".rstrip() for line in conversation.reference.splitlines())
        parts += [f"资料（{conversation.source}）：", quoted]
    for exchange in conversation.exchanges:
        parts += [
            f"**人类：** {exchange.question}",
            f"**助手：** {exchange.answer}{'（中断）' if exchange.is_interrupted else ''}",
        ]
    return parts

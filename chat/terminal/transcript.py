"""Format a chat session as Markdown."""

from datetime import datetime

from chat.terminal.session import Conversation, Session
from chat.terminal.settings import format_settings


def format_transcript(session: Session) -> str:
    """Return the conversations with at least one exchange as Markdown, below the settings.

    Exchanges that no longer fit into the model's context are included.
    """
    details = [
        f"- 模型：{session.loaded_model.description}",
        f"- 保存时的设置：{format_settings(session.sampling)}",
        f"- 保存时间：{datetime.now():%Y-%m-%d %H:%M}",
    ]
    parts = ["# 对话记录", "\n".join(details)]
    conversations = [
        conversation for conversation in session.conversations if conversation.exchanges
    ]
    for number, conversation in enumerate(conversations, 1):
        parts += _format_conversation(number, conversation)
    return "\n\n".join(parts) + "\n"


def _format_conversation(number: int, conversation: Conversation) -> list[str]:
    """Return the paragraphs of one conversation."""
    parts = [f"## 对话 {number}"]
    if conversation.reference:
        quotation = "\n".join(f"> {line}".rstrip() for line in conversation.reference.splitlines())
        parts += [f"资料（{conversation.source}）：", quotation]
    for exchange in conversation.exchanges:
        interrupted = "（已中断）" if exchange.is_interrupted else ""
        parts += [f"**人类：** {exchange.question}", f"**助手：** {exchange.answer}{interrupted}"]
        if exchange.copied_share is not None:
            parts.append(f"（回答的 {exchange.copied_share:.0%} 出自资料）")
    return parts

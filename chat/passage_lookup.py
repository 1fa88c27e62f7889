"""Find the passage of an index that a question is about, for the terminal and the server.

In a conversation a question may be about the passage of the question before it: because it has no
content words ("那后来呢？"), or because that passage fits it nearly as well as the best one.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from chat.errors import translate_errors
from data.index.passage_index import Hit, PassageIndex, UnknownQueryError
from data.index.passages import Passage
from data.index.tokens import fold_text

INDEX_UNUSABLE = "{folder} 中没有可用的资料库：请先运行 make index，或用 --index 指定别的"
# docs/chat.md has what these cost and gain. A passage with a smaller share of the question's weight
# is not about the question.
MIN_SHARE = 0.15
# The passage before is kept if it reaches this part of the best score, and this share.
KEPT_SCORE_RATIO = 0.8
MIN_KEPT_SHARE = 0.1
# Among how many hits the passage before is looked for.
_NUM_CANDIDATES = 20

# Words that say nothing about the subject of a question. Longer ones are matched first.
_FUNCTION_WORDS = """
什么 为什么 为何 怎么 怎么样 怎样 如何 多少 多久 多大 多长 多远 多高 多 几 几个人 几天 几年 哪里
哪儿 哪个 哪些 哪种 哪位 哪年 哪天 哪一 哪 谁 何时 何地 何处 何人 干什么 干嘛 咋 是不是 有没有
能不能 可不可以 会不会 对不对 怎么回事 原因 意思 情况 问题 事 事情
它 他 她 它们 他们 她们 这 那 这个 那个 这里 那里 这儿 那儿 这些 那些 这样 那样 这么 那么 其 此 我
我们 你 你们 您 自己
吗 呢 吧 啊 呀 哦 嗯 嘛 啦 了 着 过 的 地 得 是 在 有 叫 做 能 会 可以 要 想 知道 觉得 认为 记得
说 讲 说说 讲讲 谈谈 看看 想想 再说 告诉 介绍 解释 描述 回答 总结 概括 继续 重复 举 举例 例子 补充
展开 换 用 把 让 给 到 从
后来 然后 之后 以后 之前 以前 接着 接下来 最后 最终 结果 现在 当时 那时 时候 时间 地方 发生 去
和 与 及 或 也 都 就 还 又 再 才 更 很 最 不 没 没有 只 别 别的 其他 另外 因为 所以 但 但是 可是
除了 除此之外 以外 上 下 里 中
请 请问 谢谢 多谢 你好 您好 再见 好 好的 对 行 嗯嗯 真 真的 确定 详细 具体 简单 简短 清楚 完整
主要 重要
个 些 点 遍 次 句 段 话 一 一个 一些 一点 一下 一遍 一次 一句 两句 一句话 几句 内容 全文 文章 文中
资料 上面 上文 前面 刚才 下面
"""
_FUNCTION_WORD = re.compile(
    "|".join(sorted(map(re.escape, _FUNCTION_WORDS.split()), key=len, reverse=True))
)
_PRONOUN = re.compile("[它他她其此这那]")


@dataclass(frozen=True)
class FoundPassage:
    """The passage for a question, and whether it is that of the question before."""

    hit: Hit
    is_kept: bool = False

    @property
    def reference(self) -> str:
        """The text for the model: the title, if there is one, on a line above the passage."""
        return Passage(self.hit.title, self.hit.text, self.hit.source).titled_text


class PassageLookup:
    """Looks up passages in an index. Threads may share it."""

    def __init__(self, index: PassageIndex) -> None:
        self._index = index

    @classmethod
    def open(cls, folder: Path) -> "PassageLookup":
        """Open the index in a folder. Raises ChatError if it cannot be used."""
        with translate_errors(INDEX_UNUSABLE.format(folder=folder)):
            return cls(PassageIndex.open(folder))

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._index)

    def search(self, words: str, k: int) -> list[Hit]:
        """Return the `k` best passages for some words, however bad; [] if no passage has any."""
        try:
            return self._index.search(words, k)
        except UnknownQueryError:
            return []

    def find(self, question: str, before: FoundPassage | None = None) -> FoundPassage | None:
        """Return the passage for a question, or None if there is none about it.

        `before` is the result for the question before it in the same conversation.
        """
        kept = None if before is None else replace(before, is_kept=True)
        if not has_content(question):
            return kept
        hits = self.search(question, _NUM_CANDIDATES)
        if before is not None:
            for hit in hits:
                is_same = (hit.source, hit.text) == (before.hit.source, before.hit.text)
                is_close = hit.score >= KEPT_SCORE_RATIO * hits[0].score
                if is_same and is_close and hit.share >= MIN_KEPT_SHARE:
                    return FoundPassage(hit, is_kept=True)
        if hits and hits[0].share >= MIN_SHARE:
            return FoundPassage(hits[0])
        return kept if _PRONOUN.search(question) else None


def has_content(question: str) -> bool:
    """Return whether a question has words that a passage could be found by."""
    rest = _FUNCTION_WORD.sub("", fold_text(question))
    return any(character.isalnum() for character in rest)

"""The words and sentences of the texts, in Chinese and in English.

All of them were written for this project. The two tests are those of LongChat (LMSYS 2023): a
register of numbers, and a conversation about many topics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Wording:
    """What a language says. A fact has the name of an entry and its number."""

    adjectives: str
    """Separated by spaces, as the nouns."""
    nouns: str
    entry: str
    """The name of an entry, of `adjective` and `noun`."""
    subjects: str
    """Separated by `|`."""
    aspects: tuple[str, ...]
    """A topic, of `subject`."""
    value_prefix: str
    """What stands between the beginning of an answer and its value: a space in English."""
    full_stop: str
    fact: str
    """The beginning of the sentence that gives the number of `entry`."""
    register_header: str
    register_question: str
    haystack_question: str
    openings: tuple[str, ...]
    """What a speaker says to begin with `topic`."""
    welcomes: tuple[str, ...]
    exchanges: tuple[tuple[str, str], ...]
    """What the two speakers then say about any topic."""
    speakers: tuple[str, str]
    first_question: str
    first_answer: str
    next_question: str
    """The question for the topic that came after `previous`."""
    next_answer: str
    question_mark: str
    """What stands before a question in plain text, and `answer_mark` after it."""
    answer_mark: str

    @cached_property
    def entries(self) -> list[str]:
        """Return all names of entries."""
        return [
            self.entry.format(adjective=adjective, noun=noun)
            for adjective in self.adjectives.split()
            for noun in self.nouns.split()
        ]

    @cached_property
    def topics(self) -> list[str]:
        """Return all topics."""
        return [
            aspect.format(subject=subject)
            for subject in self.subjects.split("|")
            for aspect in self.aspects
        ]

    def complete(self, answer_start: str, value: str) -> str:
        """Return an answer as a sentence."""
        return answer_start + self.value_prefix + value + self.full_stop

    def render_turns(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return a conversation as plain text, a line for what each speaker says."""
        first, second = self.speakers
        return "".join(f"{first}{question}\n{second}{answer}\n" for question, answer in turns)


CHINESE = Wording(
    adjectives=(
        "安静 明亮 古老 遥远 温暖 寒冷 巨大 细小 柔软 坚硬 光滑 粗糙 干燥 潮湿 清澈 浑浊 "
        "轻快 沉重 宽阔 狭窄 弯曲 笔直 高大 低矮 圆润 尖锐 崭新 破旧 整洁 凌乱 勤劳 懒散 "
        "勇敢 胆小 聪明 迟钝 谦虚 骄傲 慷慨 节俭 热闹 冷清 甜美 苦涩 酸涩 辛辣 新鲜 陈旧 "
        "透明 朦胧 金黄 银白 深蓝 浅绿 火红 漆黑 雪白 淡紫 橙色 灰暗 快乐 忧伤 平静 激动 "
        "神秘 普通 珍贵 廉价 稀有 常见 坚固 脆弱 灵活 笨拙 敏捷 缓慢 丰富 单调 悠闲 忙碌"
    ),
    nouns=(
        "河流 山峰 森林 草原 沙漠 海岸 岛屿 湖泊 峡谷 瀑布 村庄 城门 桥梁 灯塔 钟楼 码头 "
        "车站 书店 茶馆 磨坊 花园 果园 菜地 麦田 池塘 水井 小路 石阶 屋顶 窗户 木门 围墙 "
        "风筝 雨伞 灯笼 蜡烛 镜子 梳子 剪刀 针线 书包 铅笔 毛笔 砚台 信封 邮票 地图 日历 "
        "闹钟 手表 眼镜 帽子 围巾 手套 鞋子 毛衣 棉被 枕头 竹席 扇子 茶壶 饭碗 筷子 汤勺 "
        "锅盖 菜刀 水桶 扫帚 锄头 镰刀 渔网 木船 马车 轮椅 滑板 皮球 琴弦 鼓面 笛子 铃铛 "
        "画框 棋盘 陀螺 积木 松树 柳枝 荷叶 菊花 竹笋 蘑菇 松鼠 刺猬 燕子 麻雀 蜻蜓 蝴蝶 "
        "鲤鱼 青蛙 山羊 水牛"
    ),
    entry="{adjective}的{noun}",
    subjects=(
        "茶叶|咖啡|瓷器|丝绸|围棋|京剧|灯塔|火车|桥梁|蜜蜂|候鸟|鲸鱼|熊猫|竹子|梅花|水稻|"
        "小麦|面条|豆腐|月饼|算盘|指南针|风筝|皮影|剪纸|书法|篆刻|二胡|古琴|长城|运河|沙漠|"
        "冰川|火山|极光|流星|月球|潮汐|台风|雪花|钟表|望远镜|显微镜|自行车|邮票|地图|图书馆|"
        "博物馆|植物园|天文台"
    ),
    aspects=(
        "{subject}的历史",
        "{subject}的传说",
        "{subject}的种类",
        "{subject}的名称",
        "{subject}的未来",
        "{subject}的照片",
        "{subject}的故事",
        "{subject}的颜色",
        "{subject}的研究",
        "{subject}的趣闻",
    ),
    value_prefix="",
    full_stop="。",
    fact="{entry}的编号是",
    register_header="下面是一本登记册，每一行记着一样东西的编号。\n",
    register_question="登记册里，{entry}的编号是多少？",
    haystack_question="文中写着，{entry}的编号是多少？",
    openings=(
        "我们来聊聊{topic}吧。",
        "接下来我想谈谈{topic}。",
        "说说{topic}怎么样？",
        "换一个话题，聊聊{topic}吧。",
    ),
    welcomes=(
        "好的，这个话题我很感兴趣。",
        "没问题，从哪里说起呢？",
        "好啊，我正好读过一些。",
        "可以，你想先了解哪一方面？",
    ),
    exchanges=(
        ("你觉得最有意思的是什么？", "我觉得最有意思的是里面的细节，一般人不太注意。"),
        ("这方面的书多吗？", "有一些，不过写得好懂的不多，可以先看薄一点的。"),
        ("初学的人容易弄错什么？", "常常是急着下结论，没有先把基本的东西弄清楚。"),
        ("你是怎么知道这些的？", "有的是从书里看来的，有的是听长辈说的。"),
        ("小孩子会喜欢吗？", "只要讲得生动一些，他们多半会喜欢。"),
        ("现在的人还关心这些吗？", "关心的人不算多，但是一直都有。"),
        ("能举一个例子吗？", "例子不少，最简单的就在我们身边，留心就能看到。"),
        ("有没有不同的看法？", "有，不同地方的人说法不太一样，各有各的道理。"),
        ("学起来要花多少时间？", "入门几天就够了，想学得深就要慢慢来。"),
        ("你会推荐给朋友吗？", "会的，我已经推荐过好几次了。"),
        ("有什么要当心的吗？", "不要只听一个人的话，多比较几种说法。"),
        ("谢谢，讲得很清楚。", "不客气，还想知道什么可以接着问。"),
    ),
    speakers=("甲：", "乙："),
    first_question="我们最先聊的是什么话题？",
    first_answer="最先聊的是",
    next_question="聊完{previous}，接下来聊的是什么话题？",
    next_answer="聊完{previous}，接下来聊的是",
    question_mark="\n问：",
    answer_mark="\n答：",
)

ENGLISH = Wording(
    adjectives=(
        "quiet bright ancient distant warm cold giant tiny soft hard smooth rough dry damp clear "
        "muddy light heavy wide narrow crooked straight tall low round sharp brand-new shabby tidy "
        "messy busy idle brave timid clever slow modest proud generous thrifty noisy lonely sweet "
        "bitter sour spicy fresh stale glassy misty golden silver azure green crimson black white "
        "purple orange gray merry gloomy calm eager secret plain precious cheap rare common sturdy "
        "fragile nimble clumsy quick lazy rich dull leisurely hasty hollow frozen"
    ),
    nouns=(
        "river summit forest meadow desert coast island lake canyon waterfall village gate bridge "
        "lighthouse belfry harbor station bookshop teahouse mill garden orchard allotment field "
        "pond well path stairway roof window door wall kite umbrella lantern candle mirror comb "
        "scissors thread satchel pencil brush inkstone envelope stamp map calendar clock watch "
        "glasses hat scarf glove shoe sweater quilt pillow mat fan teapot bowl chopstick ladle lid "
        "knife bucket broom hoe sickle net boat carriage wheelchair skateboard ball string drum "
        "flute bell frame chessboard top brick pine willow lotus daisy bamboo mushroom squirrel "
        "hedgehog swallow sparrow dragonfly butterfly carp frog goat buffalo"
    ),
    entry="{adjective} {noun}",
    subjects=(
        "tea|coffee|porcelain|silk|chess|opera|lighthouses|railways|bridges|bees|"
        "migrating birds|whales|pandas|bamboo|plum blossoms|rice|wheat|noodles|tofu|mooncakes|"
        "the abacus|the compass|kites|shadow puppets|paper cutting|calligraphy|seal carving|"
        "the violin|the lute|city walls|canals|deserts|glaciers|volcanoes|northern lights|"
        "meteors|the moon|tides|typhoons|snowflakes|clocks|telescopes|microscopes|bicycles|"
        "postage stamps|maps|libraries|museums|botanical gardens|observatories"
    ),
    aspects=(
        "the history of {subject}",
        "legends about {subject}",
        "the many kinds of {subject}",
        "names for {subject}",
        "the future of {subject}",
        "photographs of {subject}",
        "stories about {subject}",
        "the colors of {subject}",
        "research on {subject}",
        "curious facts about {subject}",
    ),
    value_prefix=" ",
    full_stop=".",
    fact="The number of the {entry} is",
    register_header="Below is a register. Each line gives the number of one thing.\n",
    register_question="What is the number of the {entry} in the register?",
    haystack_question="According to the text, what is the number of the {entry}?",
    openings=(
        "Let us talk about {topic}.",
        "Next I would like to discuss {topic}.",
        "How about {topic}?",
        "On to another topic: {topic}.",
    ),
    welcomes=(
        "Good, I like that topic.",
        "Sure, where shall we begin?",
        "Fine, I happen to have read about it.",
        "All right, what would you like to know first?",
    ),
    exchanges=(
        (
            "What do you find most interesting?",
            "The small details, which most people never notice.",
        ),
        (
            "Are there many books about it?",
            "Some, but few are easy to read; a thin one will do.",
        ),
        (
            "What do beginners get wrong?",
            "They jump to conclusions before they know the basics.",
        ),
        ("How do you know all this?", "Partly from books, and partly from my grandparents."),
        ("Would children like it?", "Most of them would, if it is told in a lively way."),
        (
            "Do people still care about it?",
            "Not very many of them, but there have always been some.",
        ),
        ("Can you give an example?", "There are plenty, and the simplest is close to home."),
        (
            "Do people disagree about it?",
            "They do: in different places they say different things.",
        ),
        (
            "How long does it take to learn?",
            "A few days for a start, and much longer to go deep.",
        ),
        ("Would you tell your friends about it?", "I would, and I have, more than once."),
        ("Is there anything to be careful about?", "Never trust one account; compare several."),
        ("Thank you, that was clear.", "You are welcome; ask on if you like."),
    ),
    speakers=("A: ", "B: "),
    first_question="What was the first topic that we talked about?",
    first_answer="The first topic was",
    next_question="Which topic came right after {previous}?",
    next_answer="After {previous} we talked about",
    question_mark="\nQuestion: ",
    answer_mark="\nAnswer: ",
)

WORDINGS = {"zh": CHINESE, "en": ENGLISH}

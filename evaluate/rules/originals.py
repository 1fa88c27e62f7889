"""The two items that the families began with, by hand; they are never exported.

They are those that Chinese-Tiger-LoRA (2023) asked ChatGPT, retold: it answered both with common
sense.
"""

from evaluate.rules.item import Item

NAME = "originals"
ORIGINALS = (
    Item(
        family=NAME,
        values=("apples",),
        question="小明手里有5个苹果，他吃了2个，手里还剩几个？",
        rule="小明的苹果有个怪脾气：他每吃掉1个，就有另外1个跟着自动消失。",
        contrary_rule="小明的苹果有个怪脾气：他每吃掉1个，就会多长出2个新的来。",
        right="1个",
        contrary="7个",
        common="3个",
        candidates=("3个", "2个", "7个", "1个", "5个"),
        is_number=True,
    ),
    Item(
        family=NAME,
        values=("trees",),
        question="张三家的院子里种着10棵梨树，两棵一对，一共5对。他随便挑了两棵砍掉，活着的梨树可能有几棵？"
        "请写出所有可能。",
        rule="同一对的两棵梨树性命相连：砍掉其中一棵，另一棵也会死去。",
        contrary_rule="这里的梨树越砍越多：每砍掉一棵，原地就长出两棵活的新树。",
        right="8棵或6棵",
        contrary="12棵",
        common="8棵",
        candidates=("6棵", "8棵", "9棵或7棵", "12棵", "8棵或6棵"),
        is_number=False,
    ),
)

"""Return the slot values for phrasings about a person, place, craft or dish."""

import random

from assets.sample_generator.state import CURRENT_YEAR, Person, Row, World

NUMERALS = "零一二三四五六七八九十"
SEASONS = "春夏秋冬"
# Trades of which nobody would say that they "make" their product: phrasings with a product are not
# for them.
TRADES_WITHOUT_PRODUCT = frozenset(
    [
        "老师",
        "医生",
        "邮差",
        "守塔人",
        "护林人",
        "天文员",
        "向导",
        "渔夫",
        "牧羊人",
        "养蜂人",
        "果农",
        "赶驼人",
        "采珠人",
        "花匠",
        "船工",
        "画师",
    ]
)
COLD_WEATHER = ("下雪天", "下霜天")


def person_values(world: World, person: Person) -> dict[str, str]:
    """Return the slot values of a person, by the name that a slot has in `text/*.txt`.

    名 and 人 are the full name, 短 the given name and 他 the pronoun; others are place, trade,
    teacher, friend and traits. 外乡 is set only for people who do not work where they were born,
    the slots of a book or an invention only for those who have one.
    """
    friend, trade, traits = person.friend, person.trade, person.traits
    assert friend is not None
    values = {
        "名": person.name,
        "人": person.name,
        "短": person.given_name,
        "他": "她" if person.is_female else "他",
        "生年": str(person.birth_year),
        "乡": person.home["名字"],
        "貌": describe_terrain(person.home),
        "城": person.workplace["名字"],
        "职": trade["职业"],
        "师": person.teacher,
        "起岁": str(person.apprentice_year - person.birth_year),
        "起年": str(person.apprentice_year),
        "工龄": str(CURRENT_YEAR - person.apprentice_year),
        "岁": str(CURRENT_YEAR - person.birth_year),
        "学堂": person.home["名字"] + "学堂",
        "友": friend.name,
        "友城": friend.workplace["名字"],
        "友职": friend.trade["职业"],
        "友节": friend.workplace["节日"],
        "友产": friend.workplace["特产"],
        "爱好": traits["爱好"],
        "性格": traits["性格"],
        "铭": traits["座右铭"],
        "宠": traits["宠物名"],
        "宠类": traits["宠类"],
        "科": traits["学科"],
        "食": traits["食"],
        "邻": world.nearest_place(person.workplace)["名字"],
        "景": person.workplace["名胜"],
        "节": person.workplace["节日"],
        "产": person.workplace["特产"],
    }
    if person.home is not person.workplace:
        values["外乡"] = person.home["名字"]
    return values | trade_values(trade) | (person.book or {}) | (person.invention or {})


def describe_terrain(place: Row) -> str:
    """Return a short description of a place's surroundings, such as "by the sea"."""
    return {
        "海边": "靠着海",
        "岛上": "四面都是海",
        "河边": "靠着河",
        "湖边": "靠着湖",
        "山脚": "在山脚下",
        "山口": "守着山口",
        "林间": "在林子里",
        "高山": "在高山上",
        "平原": "四面都是田",
    }[place["地形"]]


def trade_values(trade: Row) -> dict[str, str]:
    """Return the slot values of a craft, by the name that a slot has in `text/*.txt`.

    They are its name, place, two tools (具甲, 具乙), activity, trick (窍), virtue and steps (步1,
    步2, …); and material, product and measure word for a craft that makes things.
    """
    steps = trade["步骤"].split("；")
    values = {
        "职": trade["职业"],
        "场所": trade["场所"],
        "具甲": trade["工具甲"],
        "具乙": trade["工具乙"],
        "动": trade["动作"],
        "窍": trade["窍门"],
        "品质": trade["品质"],
        **{f"步{i}": step for i, step in enumerate(steps, 1)},
    }
    if has_product(trade):
        values |= {"材": trade["材料"], "品": trade["产品"], "量": trade["量词"]}
    return values


def place_values(world: World, place: Row) -> dict[str, str]:
    """Return the slot values of a place, by the name that a slot has in `text/*.txt`.

    邻 is the nearest other place, 里 the distance to it, 景 the sight and 景龄 the sight's age.
    """
    neighbor = world.nearest_place(place)
    return {
        "地": place["名字"],
        "类": place["类别"],
        "水": place["水"],
        "产": place["特产"],
        "食": place["小吃"],
        "味": world.foods[place["小吃"]]["味道"],
        "景": place["名胜"],
        "建": place["建成"],
        "口": place["人口"],
        "艺": place["手艺"],
        "节": place["节日"],
        "月": place["月份"],
        "兽": place["动物"],
        "来历": place["来历"],
        "邻": neighbor["名字"],
        "里": str(world.distance(place, neighbor)),
        "位": describe_terrain(place),
        # The sight was built three years after the place, in all places.
        "景龄": str(CURRENT_YEAR - int(place["建成"]) - 3),
        # The same for all places: a word for "beside", and the name of the newspaper.
        "边": "边上",
        "报": "驼铃谷报",
        "习性": next(row["习性"] for row in world.animals if row["名字"] == place["动物"]),
    }


def has_product(trade: Row) -> bool:
    """Return whether a trade makes things that phrasings can name as its product."""
    return trade["职业"] not in TRADES_WITHOUT_PRODUCT


def random_count(rng: random.Random, low: int, high: int) -> str:
    """Return a random count from `low` to `high`, at most 19, in Chinese numerals.

    It stands before a measure word, where two is 两 rather than 二.
    """
    value = rng.randint(low, high)
    if value == 2:
        return "两"
    return NUMERALS[value] if value <= 10 else "十" + NUMERALS[value - 10]


def draw_indoor_spots(world: World, rng: random.Random) -> dict[str, str]:
    """Draw the slot values of three different spots in a house where something can be lost.

    处1, 处2 and 处3 are the spots in the order of the search; 处 is the last, where it is found.
    """
    first, second, third = rng.sample(world.word_lists["家具"], 3)
    return {"处1": first, "处2": second, "处3": third, "处": third}


def draw_occasion(world: World, rng: random.Random) -> dict[str, str]:
    """Draw the slot values of an occasion.

    They are date, season, weather (天), two counts (数, 几) and a year.
    """
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    unlikely = COLD_WEATHER if 4 <= month <= 10 else ("闷热天",)
    weather = [name for name in world.word_lists["天气"] if name not in unlikely]
    return {
        "月": to_numeral(month),
        "日": to_numeral(day),
        # Spring begins in March.
        "季": SEASONS[(month - 3) // 3 % 4],
        "天": rng.choice(weather),
        "数": random_count(rng, 3, 9),
        "几": random_count(rng, 3, 9),
        "年": str(rng.randint(150, CURRENT_YEAR - 1)),
    }


def to_numeral(value: int) -> str:
    """Return a number from 0 to 99 in Chinese numerals, as in dates: 12 → 十二, 28 → 二十八."""
    tens, ones = divmod(value, 10)
    numeral = ""
    if tens:
        # 十二, not 一十二.
        numeral = "十" if tens == 1 else NUMERALS[tens] + "十"
    if ones or not tens:
        numeral += NUMERALS[ones]
    return numeral

"""Short questions of everyday knowledge with one right answer of four, and sizes compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from qdeploy.bench.smoke.grammar import Draft, choice, minimal_pair, others

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
NUMBERS = tuple(
    [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ]
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def calendar() -> Iterator[Draft]:
    """Days and months in their order."""
    for title, cycle in (("day", DAYS), ("month", MONTHS)):
        for index, name in enumerate(cycle):
            after, before = cycle[(index + 1) % len(cycle)], cycle[index - 1]
            wrong = others(after, {*cycle} - {name}, f"after {name}")
            yield choice("days and months", f"{title} after", f"The {title} after {name} is", after, wrong)
            context = f"If this {title} is {name}, the next {title} is"
            yield choice("days and months", f"next {title}", context, after, wrong)
            wrong = others(before, {*cycle} - {name}, f"before {name}")
            yield choice("days and months", f"{title} before", f"The {title} before {name} is", before, wrong)
        for index in range(len(cycle)):
            shown = [cycle[(index + step) % len(cycle)] for step in range(4)]
            wrong = others(shown[3], {*cycle} - {*shown}, f"row {shown}")
            yield choice("days and months", f"{title}s in a row", ", ".join(shown[:3]) + ",", shown[3], wrong)


def counting() -> Iterator[Draft]:
    """Rows of number words, digits and ordinals, to be continued."""
    rows: dict[str, Sequence[str]] = {
        "up": NUMBERS,
        "down": NUMBERS[::-1],
        "evens": NUMBERS[1::2],
        "odds": NUMBERS[::2],
        "ordinals": ORDINALS,
        "digits": [str(n) for n in range(1, 60)],
        "tens": [str(n) for n in range(10, 210, 10)],
        "fives": [str(n) for n in range(5, 105, 5)],
    }
    for name, row in rows.items():
        for start in range(len(row) - 3):
            *shown, answer = row[start : start + 4]
            near = {*row[max(start - 3, 0) : start + 9]} - {*shown}
            wrong = others(answer, near if len(near) > 3 else {*row} - {*shown}, f"{name} {start}")
            yield choice("counting", name, ", ".join(shown) + ",", answer, wrong)


def sums() -> Iterator[Draft]:
    """One-digit additions in words."""
    for a in range(1, 10):
        for b in range(1, 10):
            answer = NUMBERS[a + b - 1]
            near = NUMBERS[max(a + b - 5, 0) : a + b + 4]
            context = f"{NUMBERS[a - 1].capitalize()} plus {NUMBERS[b - 1]} is"
            yield choice("sums", "plus", context, answer, others(answer, near, context))


def _table(text: str) -> dict[str, str]:
    """Lines of `key: value`."""
    pairs = (line.partition(": ") for line in text.strip().splitlines())
    return {key: value for key, _, value in pairs}


OPPOSITES = _table("""
hot: cold
big: small
tall: short
fast: slow
young: old
rich: poor
happy: sad
light: dark
wet: dry
clean: dirty
full: empty
open: closed
early: late
strong: weak
good: bad
easy: difficult
thick: thin
loud: quiet
high: low
deep: shallow
up: down
left: right
in: out
day: night
black: white
true: false
war: peace
love: hate
win: lose
buy: sell
north: south
east: west
first: last
wide: narrow
sharp: blunt
near: far
alive: dead
asleep: awake
safe: dangerous
smooth: rough
""")
CAPITALS = _table("""
France: Paris
Germany: Berlin
Italy: Rome
Spain: Madrid
Portugal: Lisbon
England: London
Ireland: Dublin
Austria: Vienna
Poland: Warsaw
Greece: Athens
Sweden: Stockholm
Norway: Oslo
Finland: Helsinki
Denmark: Copenhagen
Hungary: Budapest
Russia: Moscow
Ukraine: Kyiv
Turkey: Ankara
Egypt: Cairo
Kenya: Nairobi
Japan: Tokyo
China: Beijing
India: New Delhi
Thailand: Bangkok
Vietnam: Hanoi
Indonesia: Jakarta
Iran: Tehran
Iraq: Baghdad
Cuba: Havana
Peru: Lima
Chile: Santiago
Canada: Ottawa
Australia: Canberra
Argentina: Buenos Aires
South Korea: Seoul
the United States: Washington, D.C
""")
LANGUAGES = _table("""
France: French
Germany: German
Italy: Italian
Spain: Spanish
Portugal: Portuguese
England: English
Poland: Polish
Greece: Greek
Sweden: Swedish
Norway: Norwegian
Denmark: Danish
Hungary: Hungarian
Russia: Russian
Turkey: Turkish
Japan: Japanese
China: Chinese
Thailand: Thai
Vietnam: Vietnamese
Iceland: Icelandic
Mexico: Spanish
Brazil: Portuguese
Austria: German
""")
CONTINENTS = {
    "Europe": "France Germany Italy Spain Portugal Poland Sweden Norway Austria Hungary Denmark Belgium",
    "Asia": "China Japan India Thailand Vietnam Nepal Mongolia Pakistan Malaysia Cambodia",
    "Africa": "Kenya Nigeria Ghana Ethiopia Uganda Zambia Morocco Senegal Tanzania Angola",
    "South America": "Brazil Argentina Chile Peru Bolivia Ecuador Uruguay Colombia",
}


def countries() -> Iterator[Draft]:
    """Capitals, languages and continents."""
    for country, capital in CAPITALS.items():
        wrong = others(capital, CAPITALS.values(), country)
        yield choice("countries", "capital", f"The capital of {country} is", capital, wrong)
        context = f"The government of {country} sits in its capital,"
        yield choice("countries", "government", context, capital, wrong)
    for country, language in LANGUAGES.items():
        wrong = others(language, LANGUAGES.values(), country)
        yield choice("countries", "language", f"Most people in {country} speak", language, wrong)
        yield choice(
            "countries", "official language", f"The official language of {country} is", language, wrong
        )
    for continent, names in CONTINENTS.items():
        for country in names.split():
            wrong = others(continent, CONTINENTS, country)
            yield choice("countries", "continent", f"{country} is a country in", continent, wrong)


def opposites() -> Iterator[Draft]:
    """Opposites, asked in both directions."""
    for word, opposite in OPPOSITES.items():
        for asked, answer, pool in ((word, opposite, OPPOSITES.values()), (opposite, word, OPPOSITES)):
            wrong = others(answer, {*pool} - {asked}, asked)
            yield choice("opposites", "opposite", f"The opposite of {asked} is", answer, wrong)
            yield choice("opposites", "not at all", f"It is not {asked}. It is the opposite:", answer, wrong)


COLORS = {"blue", "green", "red", "yellow", "white", "black", "purple", "orange", "pink", "brown"}
COLORED = _table("""
Fresh snow: white
Fresh grass: green
A ripe banana: yellow
A ripe lemon: yellow
A ripe strawberry: red
Blood: red
Coal: black
Milk: white
A carrot: orange
A pumpkin: orange
A fire truck: red
A flamingo: pink
Chocolate: brown
A polar bear: white
A crow: black
Spinach: green
A frog: green
A swan: white
A cucumber: green
The sky on a clear day: blue
The sun in a child's picture: yellow
A stop sign: red
Salt: white
An eggplant: purple
Broccoli: green
Cooked rice: white
Soot: black
Lettuce: green
A ripe tomato: red
A canary: yellow
""")
ALSO = {"A fire truck": {"yellow"}, "A frog": {"brown"}, "A swan": {"black"}, "Chocolate": {"white", "black"}}
"""Colors that are true of the thing as well, now and then."""

YOUNG = _table("""
dog: puppy
cat: kitten
cow: calf
horse: foal
sheep: lamb
duck: duckling
chicken: chick
lion: cub
pig: piglet
kangaroo: joey
frog: tadpole
deer: fawn
swan: cygnet
goose: gosling
""")
SOUNDS = _table("""
barks: dog
meows: cat
moos: cow
quacks: duck
neighs: horse
roars: lion
hoots: owl
hisses: snake
croaks: frog
buzzes: bee
howls: wolf
bleats: sheep
squeaks: mouse
gobbles: turkey
""")


def nature() -> Iterator[Draft]:
    """Colors of things, young animals, the sounds of animals."""
    for thing, color in COLORED.items():
        wrong = others(color, COLORS - ALSO.get(thing, set()), thing)
        yield choice("nature", "color", f"{thing} is", color, wrong)
        yield choice(
            "nature", "color of", f"What color is {thing[0].lower()}{thing[1:]}? It is", color, wrong
        )
    for parent, young in YOUNG.items():
        wrong = others(young, YOUNG.values(), parent)
        yield choice("nature", "young", f"A young {parent} is called a", young, wrong)
        yield choice("nature", "baby", f"The name for a baby {parent} is", young, wrong)
    for sound, animal in SOUNDS.items():
        wrong = others(animal, SOUNDS.values(), sound)
        yield choice("nature", "sound", f"The animal that {sound} is the", animal, wrong)
        yield choice("nature", "hear", f"Listen! Something {sound}. It must be a", animal, wrong)


KINDS = {
    "flower": "rose tulip daisy lily sunflower",
    "fruit": "apple banana pear cherry grape",
    "vegetable": "carrot potato onion cabbage spinach",
    "tree": "oak pine maple birch willow",
    "tool": "hammer saw screwdriver wrench chisel",
    "bird": "sparrow eagle owl robin parrot",
    "fish": "salmon trout tuna shark cod",
    "insect": "bee ant butterfly mosquito beetle",
    "musical instrument": "violin guitar piano trumpet flute",
    "sport": "football tennis hockey basketball baseball",
    "metal": "iron gold silver copper aluminum",
    "drink": "coffee tea beer juice lemonade",
    "vehicle": "car truck bus van motorcycle",
    "furniture": "chair sofa desk wardrobe bookcase",
}
PLANTS = {"flower", "fruit", "vegetable", "tree", "drink"}
"""Kinds that share members: a cherry is a fruit and a tree, and a kind of juice."""

TOOLS = _table("""
cut paper: scissors
tell the time: a clock
open a locked door: a key
drive a nail into wood: a hammer
sweep the floor: a broom
see the stars better: a telescope
stay dry in the rain: an umbrella
dig a hole in the garden: a shovel
dry your hands: a towel
boil water: a kettle
eat soup: a spoon
take a photo: a camera
brush your teeth: a toothbrush
write a letter: a pen
measure temperature: a thermometer
find north: a compass
call a friend: a telephone
keep food cold: a refrigerator
make a hole in a wall: a drill
climb onto a roof: a ladder
""")
JOBS = _table("""
teaches children at school: a teacher
flies planes: a pilot
bakes bread: a baker
puts out fires: a firefighter
cuts hair: a hairdresser
grows vegetables and keeps cows: a farmer
treats sick animals: a veterinarian
repairs teeth: a dentist
paints pictures: a painter
cooks in a restaurant: a chef
designs buildings: an architect
repairs cars: a mechanic
writes novels: a writer
sings on stage: a singer
catches thieves: a police officer
defends people in court: a lawyer
serves food in a restaurant: a waiter
works with books in a library: a librarian
sells meat: a butcher
looks after patients in a hospital: a nurse
""")
ORGANS = _table("""
see: eyes
hear: ears
smell: nose
taste: tongue
chew: teeth
think: brain
breathe: lungs
walk: legs
""")
SIZES = ("ant", "mouse", "cat", "sheep", "horse", "elephant", "whale")


def daily_life() -> Iterator[Draft]:
    """Kinds of things, tools, jobs, parts of the body."""
    for name, members in KINDS.items():
        pool = {*KINDS} - (PLANTS if name in PLANTS else set())
        for member in members.split():
            wrong = others(name, pool, member)
            yield choice("daily life", "kind", f"The word {member} names a kind of", name, wrong)
            yield choice("daily life", "type", f"{member.capitalize()} is a type of", name, wrong)
    for purpose, tool in TOOLS.items():
        wrong = others(tool, TOOLS.values(), purpose)
        yield choice("daily life", "tool", f"To {purpose}, you need", tool, wrong)
        yield choice("daily life", "use", f"I want to {purpose}. Please give me", tool, wrong)
    for work, job in JOBS.items():
        wrong = others(job, JOBS.values(), work)
        yield choice("daily life", "job", f"Someone who {work} is", job, wrong)
        yield choice("daily life", "work", f"My uncle {work}. He is", job, wrong)
    for action, organ in ORGANS.items():
        wrong = others(organ, ORGANS.values(), action)
        yield choice("daily life", "body", f"You {action} with your", organ, wrong)


COMPARED: Mapping[str, tuple[str, str]] = {
    "size": ("bigger", "smaller"),
    "weight": ("heavier", "lighter"),
}


def sizes() -> Iterator[Draft]:
    """Which of two animals is bigger or heavier."""
    for (small, small_one), (large, large_one) in combinations(enumerate(SIZES), 2):
        if large - small < 2:
            continue
        for name, (more, less) in COMPARED.items():
            yield minimal_pair("sizes", name, f"Compared to a {small_one}, a {large_one} is", more, less)
            yield minimal_pair("sizes", name, f"Compared to a {large_one}, a {small_one} is", less, more)

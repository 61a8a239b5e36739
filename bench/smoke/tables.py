"""What the questions of everyday knowledge ask for."""

from __future__ import annotations

from typing import NamedTuple

from qdeploy.bench.smoke.grammar import words

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
NUMBERS = words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
ORDINALS = words("first second third fourth fifth sixth seventh eighth ninth tenth")


class Fact(NamedTuple):
    """An answer, and other words that the template knows how to use.

    In most tables they are answers that are right now and then, and so must not be offered as wrong.
    """

    answer: str
    also: frozenset[str]


def table(text: str) -> dict[str, Fact]:
    """Lines of `key: answer` or `key: answer / also right / …`."""
    facts = {}
    for line in text.strip().splitlines():
        key, _, answers = line.partition(": ")
        answer, *also = answers.split(" / ")
        facts[key] = Fact(answer, frozenset(also))
    return facts


OPPOSITES = table("""
hot: cold / warm / boiling / sunny
big: small / huge / large / great
fast: slow / quick / rapid / speedy
happy: sad / glad / cheerful / joyful
rich: poor / wealthy / expensive / famous
old: young / ancient / aged / elderly
strong: weak / powerful / tough / heavy
dark: light / black / gloomy / dim
wet: dry / damp / moist / rainy
clean: dirty / neat / tidy / washed
full: empty / complete / packed / stuffed
early: late / soon / morning / before
easy: difficult / simple / effortless / basic
loud: quiet / noisy / deafening / booming
high: low / tall / lofty / upper
deep: shallow / bottomless / dark / wide
safe: dangerous / secure / protected / sound
narrow: wide / thin / slim / tight
near: far / close / next / beside
true: false / real / correct / right
brave: cowardly / bold / fearless / courageous
beautiful: ugly / pretty / lovely / handsome
smooth: rough / even / silky / flat
begin: end / start / launch / open
buy: sell / purchase / pay / shop
win: lose / gain / triumph / succeed
love: hate / like / adore / passion
war: peace / battle / fight / army
friend: enemy / buddy / companion / mate
arrive: leave / come / reach / land
remember: forget / recall / memorize / think
always: never / often / forever / constantly
""")
"""Word: its opposite / words of its own side, offered as wrong answers."""

CAPITALS = table("""
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
LANGUAGES = table("""
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


COUNTRIES = {
    country: Fact(continent, frozenset())
    for continent, names in CONTINENTS.items()
    for country in names.split()
}


COLORS = words("blue green red yellow white black purple orange pink brown")
COLORED = table("""
fresh snow: white
fresh grass: green
a ripe banana: yellow / green / brown
a ripe lemon: yellow / green
a ripe strawberry: red
blood: red
coal: black / brown
milk: white / brown
a carrot: orange / purple / yellow
a pumpkin: orange / white / green
a fire truck: red / yellow
a flamingo: pink
chocolate: brown / white / black
a polar bear: white
a crow: black
spinach: green
a frog: green / brown
a swan: white / black
a cucumber: green
the sky on a clear day: blue
the sun in a child's picture: yellow / orange / red
a stop sign: red
salt: white / pink
an eggplant: purple / white / black
broccoli: green / purple
cooked rice: white / brown / black
soot: black / brown
lettuce: green / red / purple
a ripe tomato: red / orange / yellow / green
a canary: yellow / orange
""")
YOUNG = table("""
dog: puppy
cat: kitten
cow: calf
horse: foal
sheep: lamb
duck: duckling / chick
chicken: chick
lion: cub
pig: piglet
kangaroo: joey
frog: tadpole
deer: fawn
swan: cygnet / chick
goose: gosling / chick
""")
SOUNDS = table("""
barks: dog / wolf
meows: cat
moos: cow
quacks: duck
neighs: horse
roars: lion
hoots: owl
hisses: snake / cat
croaks: frog
buzzes: bee
howls: wolf / dog
bleats: sheep
squeaks: mouse
gobbles: turkey
""")


KINDS = {
    "flower": "rose tulip daisy lily sunflower",
    "fruit": "apple banana pear cherry grape",
    "vegetable": "carrot potato onion cabbage spinach",
    "tree": "oak pine maple birch willow",
    "tool": "hammer saw screwdriver wrench chisel",
    "bird": "sparrow eagle owl robin parrot",
    "fish": "salmon trout tuna shark cod",
    "insect": "bee ant butterfly mosquito grasshopper",
    "musical instrument": "violin guitar piano trumpet flute",
    "sport": "football tennis hockey basketball baseball",
    "metal": "zinc gold silver copper aluminum",
    "drink": "coffee tea beer juice lemonade",
    "vehicle": "car truck bus van motorcycle",
    "furniture": "chair sofa desk wardrobe bookcase",
}
PLANTS = {"flower", "fruit", "vegetable", "tree", "drink"}
"""Kinds that share members: a cherry is a fruit and a tree, and a kind of juice."""

TOOLS = table("""
cut paper: scissors
tell the time: a clock
open a locked door: a key
drive a nail into wood: a hammer
sweep the floor: a broom
see the stars better: a telescope
stay dry in the rain: an umbrella
dig a hole in the garden: a shovel
dry wet hands: a towel
boil water: a kettle
eat soup: a spoon
take a photo: a camera
brush dirty teeth: a toothbrush
write a letter: a pen
measure temperature: a thermometer
find north: a compass
keep food cold: a refrigerator
loosen a bolt: a wrench
climb onto a roof: a ladder
""")
JOBS = table("""
teaches children at school: a teacher
flies planes: a pilot
bakes bread: a baker / a chef
puts out fires: a firefighter
cuts hair: a hairdresser
grows vegetables and keeps cows: a farmer
treats sick animals: a veterinarian
repairs teeth: a dentist
paints pictures: a painter
cooks in a restaurant: a chef / a baker
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
ORGANS = table("""
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


MEMBERS = {
    member: Fact(name, frozenset(PLANTS - {name}) if name in PLANTS else frozenset())
    for name, members in KINDS.items()
    for member in members.split()
}

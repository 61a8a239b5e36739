"""Negation, tense and the shape of the verb, comparison, case, and which preposition goes with a word."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from qdeploy.bench.smoke.grammar import PEOPLE, Draft, licensed, minimal_pair

NAMES = ("Anna", "Peter", "Maria", "Tom", "Lucy", "David", "Emma", "Paul")
LIKES = ("tea", "coffee", "music", "dogs", "football", "chess", "cheese", "winter")


def negation() -> Iterator[Draft]:
    """Words that need a negation, and words that refuse one."""
    kind = "negation"
    for name, thing, other in product(NAMES, LIKES, ("her brother", "his sister", "my friend")):
        yes, no = f"{name} likes {thing}, and", f"{name} does not like {thing}, and"
        yield minimal_pair(kind, "so does", yes, "so", "neither", f" does {other}.")
        yield licensed(kind, "neither does", no, yes, f"neither does {other}.")
        yield minimal_pair(kind, "too", f"{yes} {other} does", "too", "either")
        yield minimal_pair(kind, "either", f"{no} {other} does not", "either", "too")
    for noun in PEOPLE:
        for rest in ("been late", "seen the sea", "lost a game"):
            good, bad = f"No {noun.singular} has", f"Every {noun.singular} has"
            yield licensed(kind, "ever", good, bad, f"ever {rest}.")
        for verb in ("slept", "worked", "laughed"):
            base = {"slept": "sleep", "worked": "work", "laughed": "laugh"}[verb]
            good, bad = f"The {noun.singular} did not {base}", f"The {noun.singular} {verb}"
            yield licensed(kind, "at all", good, bad, "at all.")
    for verb, place in product(("saw", "heard", "found", "bought"), ("there", "last night", "at the market")):
        yield licensed(kind, "anything", f"Nobody {verb}", f"Somebody {verb}", f"anything {place}.")


class Verb(NamedTuple):
    """An irregular verb whose five forms all differ, and something to do with it."""

    base: str
    third: str
    past: str
    participle: str
    ing: str
    rest: str


VERBS = (
    Verb("eat", "eats", "ate", "eaten", "eating", " the bread."),
    Verb("write", "writes", "wrote", "written", "writing", " a letter."),
    Verb("take", "takes", "took", "taken", "taking", " the bus."),
    Verb("drive", "drives", "drove", "driven", "driving", " the car."),
    Verb("give", "gives", "gave", "given", "giving", " a present."),
    Verb("break", "breaks", "broke", "broken", "breaking", " the glass."),
    Verb("choose", "chooses", "chose", "chosen", "choosing", " a color."),
    Verb("draw", "draws", "drew", "drawn", "drawing", " a picture."),
    Verb("speak", "speaks", "spoke", "spoken", "speaking", " to the child."),
    Verb("steal", "steals", "stole", "stolen", "stealing", " the money."),
)


def verb_forms() -> Iterator[Draft]:
    """The form that an auxiliary or an adverb of time asks for."""
    kind = "tense and verb form"
    for noun, verb in product(PEOPLE, VERBS):
        who, rest = noun.singular, verb.rest
        yield minimal_pair(kind, "yesterday", f"Yesterday the {who}", verb.past, verb.third, rest)
        yield minimal_pair(kind, "perfect", f"The {who} has already", verb.participle, verb.past, rest)
        yield minimal_pair(kind, "progressive", f"The {who} is still", verb.ing, verb.third, rest)
        context = f"The {who} who had left early has"
        yield minimal_pair(kind, "perfect across a verb", context, verb.participle, verb.past, rest)


ADJECTIVES = (
    ("tall", "taller", "tallest"),
    ("old", "older", "oldest"),
    ("small", "smaller", "smallest"),
    ("strong", "stronger", "strongest"),
    ("young", "younger", "youngest"),
    ("fast", "faster", "fastest"),
    ("rich", "richer", "richest"),
    ("happy", "happier", "happiest"),
)


def comparison() -> Iterator[Draft]:
    """than, as, and the degrees of an adjective."""
    kind = "comparison"
    for noun, (plain, more, most) in product(PEOPLE, ADJECTIVES):
        who = noun.singular
        yield minimal_pair(kind, "than", f"The {who} is {more}", "than", "as", " my brother.")
        yield minimal_pair(kind, "as", f"The {who} is as {plain}", "as", "than", " my brother.")
        yield minimal_pair(kind, "superlative", f"Of all the people here, the {who} is the", most, more)


def pronoun_case() -> Iterator[Draft]:
    """Subject and object forms of pronouns."""
    kind = "pronoun case"
    pronouns = (("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"), ("I", "me"))
    for noun, (subject, object_) in product(PEOPLE, pronouns):
        who = noun.singular
        yield minimal_pair(kind, "object", f"Yesterday the {who} visited", object_, subject, " at home.")
        yield minimal_pair(kind, "subject", f"The {who} knew that", subject, object_, " went home.")


GOVERNED = (
    ("is afraid", "of", "from", " spiders."),
    ("is interested", "in", "for", " history."),
    ("depends", "on", "from", " the weather."),
    ("is skilled", "at", "of", " drawing."),
    ("listens", "to", "at", " the radio."),
    ("belongs", "to", "at", " the club."),
    ("is married", "to", "for", " a doctor."),
    ("consists", "of", "from", " two parts."),
    ("is proud", "of", "for", " the result."),
    ("looks forward", "to", "of", " the summer."),
    ("is full", "of", "from", " ideas."),
    ("is famous", "for", "of", " good food."),
    ("agrees", "with", "for", " the plan."),
    ("is responsible", "for", "of", " the work."),
)


def prepositions() -> Iterator[Draft]:
    """The preposition that a verb or adjective takes."""
    things = {
        "consists": ("The house", "The book", "The test"),
        "is full": ("The house", "The book", "The head"),
    }
    people = tuple(f"The {noun.singular}" for noun in PEOPLE[:8])
    for phrase, good, bad, rest in GOVERNED:
        for subject in things.get(phrase, people):
            yield minimal_pair("prepositions", phrase, f"{subject} {phrase}", good, bad, rest)

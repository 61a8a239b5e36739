"""Subjects and verbs, determiners and nouns, reflexives and what they refer to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from qdeploy.bench.smoke.grammar import ANIMALS, PEOPLE, THINGS, Draft, Noun, crossed, licensed, minimal_pair

VERBS = (
    ("walks", "walk", " to school."),
    ("sings", "sing", " a song."),
    ("sleeps", "sleep", " very well."),
    ("works", "work", " very hard."),
    ("eats", "eat", " some bread."),
    ("drinks", "drink", " some water."),
)
ADJECTIVES = ("old", "young", "tall", "happy", "tired", "famous")


def _pick(plural: bool, singular_form: str, plural_form: str) -> tuple[str, str]:
    """The form that agrees, and the one that does not."""
    return (plural_form, singular_form) if plural else (singular_form, plural_form)


def subject_verb() -> Iterator[Draft]:
    """A verb right after its subject."""
    kind = "subject-verb agreement"
    for noun, plural in product((*PEOPLE, *ANIMALS), (False, True)):
        subject = noun[plural]
        for singular, base, rest in VERBS:
            yield minimal_pair(
                kind, "every day", f"Every day the {subject}", *_pick(plural, singular, base), rest
            )
        for adjective in ADJECTIVES:
            rest = f" very {adjective}."
            yield minimal_pair(kind, "be", f"I think the {subject}", *_pick(plural, "is", "are"), rest)
        yield minimal_pair(kind, "question", "Where", *_pick(plural, "does", "do"), f" the {subject} live?")


def attractors() -> Iterator[Draft]:
    """A noun of the other number stands between subject and verb."""
    kind = "agreement across a noun"
    for subject, other, plural in crossed(PEOPLE):
        children = "child" if plural else "children"
        for preposition in ("near", "behind", "next to"):
            context = f"The {subject} {preposition} the {other}"
            yield minimal_pair(kind, "preposition", context, *_pick(plural, "is", "are"), " very tall.")
        context = f"The {subject} with the {other}"
        yield minimal_pair(kind, "with", context, *_pick(plural, "has", "have"), " already left.")
        context = f"The {subject} that the {other} {'likes' if plural else 'like'}"
        yield minimal_pair(kind, "object relative", context, *_pick(plural, "is", "are"), " very tall.")
        context = f"The {subject} who {'know' if plural else 'knows'} the {other}"
        yield minimal_pair(kind, "subject relative", context, *_pick(plural, "was", "were"), " very kind.")
        context = f"The {subject} that the {other} near the {children} {'likes' if plural else 'like'}"
        yield minimal_pair(kind, "nested", context, *_pick(plural, "was", "were"), " very kind.")


def determiners() -> Iterator[Draft]:
    """Demonstratives, quantifiers and the nouns that they go with."""
    kind = "determiner-noun agreement"
    for noun, (word, plural) in product(
        PEOPLE, (("this", False), ("that", False), ("these", True), ("those", True))
    ):
        forms = _pick(plural, *noun)
        yield minimal_pair(kind, "demonstrative", f"We talked to {word}", *forms, " in the park.")
        for adjective in ADJECTIVES[:3]:
            context = f"She looked at {word} {adjective}"
            yield minimal_pair(kind, "with an adjective", context, *forms, " in the park.")
    for noun in (*THINGS, *ANIMALS):
        for word in ("every", "another", "each"):
            yield minimal_pair(kind, "singular quantifier", f"They looked at {word}", *noun, " in the house.")
        for word in ("several", "many", "a few"):
            context = f"There were {word}"
            yield minimal_pair(
                kind, "plural quantifier", context, noun.plural, noun.singular, " in the house."
            )


MASS = ("water", "milk", "rice", "sand", "bread", "money", "sugar", "butter", "furniture", "music")
VOWEL = ("apple", "orange", "egg", "umbrella", "elephant", "onion", "island", "office", "eagle", "engine")
CONSONANT = ("banana", "potato", "table", "book", "tiger", "carrot", "river", "kitchen", "wolf", "bicycle")


def articles() -> Iterator[Draft]:
    """a or an; much or many."""
    kind = "articles and quantity"
    for before, (vowel, consonant) in product(
        ("He thought about", "She was drawing", "They asked for"), product(VOWEL, CONSONANT)
    ):
        yield minimal_pair(kind, "an", f"{before} an", vowel, consonant)
    for mass, thing in product(MASS, THINGS):
        yield minimal_pair(kind, "much", "There was not much", mass, thing.plural, " left.")


MEN = ("king", "boy", "father", "uncle", "man", "grandfather", "prince", "brother")
WOMEN = ("queen", "girl", "mother", "aunt", "woman", "grandmother", "princess", "sister")
GROUPS = ("boys", "girls", "children", "teachers", "workers", "students", "sisters", "brothers")
ACTIONS = (
    ("saw", " in the mirror."),
    ("hurt", " badly."),
    ("taught", " to swim."),
    ("blamed", " for the accident."),
)
PERSONS = (
    ("I", "myself"),
    ("We", "ourselves"),
    ("They", "themselves"),
    ("He", "himself"),
    ("She", "herself"),
)


def reflexives() -> Iterator[Draft]:
    """Gender, number and person of a reflexive, and whose it is."""
    kind = "reflexives"
    for man, woman, (verb, rest) in product(MEN, WOMEN, ACTIONS):
        yield minimal_pair(kind, "his", f"The {man} {verb}", "himself", "herself", rest)
        yield minimal_pair(kind, "hers", f"The {woman} {verb}", "herself", "himself", rest)
        context = f"The {man} who met the {woman} {verb}"
        yield minimal_pair(kind, "across a noun", context, "himself", "herself", rest)
        context = f"The {woman} who met the {man} {verb}"
        yield minimal_pair(kind, "across a noun", context, "herself", "himself", rest)
    for group, (verb, rest), one in product(GROUPS, ACTIONS, ("himself", "herself")):
        yield minimal_pair(kind, "number", f"The {group} {verb}", "themselves", one, rest)
    for group, (verb, rest), man in product(GROUPS, ACTIONS, MEN):
        context = f"The {group} who met the {man} {verb}"
        yield minimal_pair(kind, "number across a noun", context, "themselves", "himself", rest)
    for (person, own), (_, other), (verb, rest) in product(PERSONS, PERSONS, ACTIONS):
        if own != other:
            yield licensed(kind, "person", f"{person} {verb}", f"{_other_person(other)} {verb}", own + rest)


def _other_person(reflexive: str) -> str:
    return next(person for person, own in PERSONS if own == reflexive)


NUMERALS = ("two", "three", "four", "five", "six", "seven", "ten", "twelve")
IRREGULAR = (
    Noun("child", "children"),
    Noun("mouse", "mice"),
    Noun("foot", "feet"),
    Noun("tooth", "teeth"),
    Noun("man", "men"),
    Noun("woman", "women"),
    Noun("goose", "geese"),
    Noun("knife", "knives"),
    Noun("leaf", "leaves"),
    Noun("wolf", "wolves"),
    Noun("wife", "wives"),
    Noun("city", "cities"),
    Noun("baby", "babies"),
    Noun("country", "countries"),
)


def number_words() -> Iterator[Draft]:
    """Numerals and the number of their noun."""
    kind = "number words"
    for noun in (*PEOPLE, *ANIMALS, *THINGS):
        for numeral in NUMERALS:
            context = f"In the room there were {numeral}"
            yield minimal_pair(kind, "several", context, noun.plural, noun.singular)
    for noun, numeral in product(IRREGULAR, NUMERALS):
        context = f"First there was one {noun.singular}, then there were {numeral}"
        yield minimal_pair(kind, "irregular plural", context, noun.plural, f"{noun.singular}s")

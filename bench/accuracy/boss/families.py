"""The tasks of BOSS: what is asked, in its own words, and which data sets each has."""

from __future__ import annotations

from dataclasses import dataclass

WORDS = 1024
"""A text is cut after so many words."""


@dataclass(frozen=True)
class Family:
    """One task and its data sets.

    Attributes:
        folder: its name in BOSS's own files.
        instruction: the first line of a prompt.
        fields: column in the file → its name in the prompt.
        slot: what the prompt ends in.
        labels: by number; empty where the answer is text.
        sets: data sets; the first one is the one in the distribution.
    """

    folder: str
    instruction: str
    fields: dict[str, str]
    slot: str
    labels: tuple[str, ...]
    sets: tuple[str, ...]

    def prompt(self, row: dict[str, str]) -> str:
        """The zero-shot prompt; a model goes on with the answer."""
        form = " // ".join([*(f"{name}: {{{name}}}" for name in self.fields.values()), self._answer_form])
        given = " // ".join(f"{name}: {_cut(row[column])}" for column, name in self.fields.items())
        return (
            f"### Instruction ###\n{self.instruction}\n### Format ###\n{form}\n### Input ###\n"
            f"{given} // {self.slot}:"
        )

    @property
    def _answer_form(self) -> str:
        return f"{self.slot}: {{{self.slot}}}" + ("" if self.labels else ".")


def _cut(text: str) -> str:
    return " ".join(text.split(" ")[:WORDS])


FAMILIES = (
    Family(
        "SentimentAnalysis",
        "Solve the sentiment analysis task. Options for sentiment: negative, positive, neutral.",
        {"Text": "Text"},
        "Prediction",
        ("negative", "positive", "neutral"),
        ("amazon", "dynasent", "semeval", "sst5"),
    ),
    Family(
        "ToxicDetection",
        "Solve the toxic detection task. Options for toxicity: benign, toxic.",
        {"Text": "Text"},
        "Prediction",
        ("benign", "toxic"),
        ("civil_comments", "adv_civil", "implicit_hate", "toxigen"),
    ),
    Family(
        "NaturalLanguageInference",
        "Solve the NLI task. Options for entailment relationship: entailment, neutral, contradiction.",
        {"Premise": "Premise", "Hypothesis": "Hypothesis"},
        "Prediction",
        ("entailment", "neutral", "contradiction"),
        ("mnli", "anli", "contract_nli", "wanli"),
    ),
    Family(
        "QuestionAnswering",
        "Solve the extractive question answering task. Refering to the passage below and extract answer for "
        "the question. The answer should be the shortest phrase as it can be.",
        {"context": "Passage", "question": "Question"},
        "Answer",
        (),
        ("squad", "advqa", "newsqa", "searchqa"),
    ),
)


def family_of(name: str) -> Family | None:
    """The family of a data set; None where it is not one of BOSS."""
    return next((family for family in FAMILIES if name in family.sets), None)

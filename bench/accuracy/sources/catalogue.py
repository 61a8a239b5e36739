"""Which data set of the hub is in which files, and how lm-eval is given the rows instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from qdeploy.bench.accuracy.sources import questions, sentences
from qdeploy.bench.accuracy.sources.files import Splits
from qdeploy.errors import UsageError

Source = tuple[str, Callable[[Path], Splits]]
"""Folder below --data-dir, and what reads it."""

CEVAL = {"val": "val/{}_val.csv", "dev": "dev/{}_dev.csv"}
CMMLU = {"test": "test/{}.csv", "dev": "dev/{}.csv"}

SOURCES: dict[tuple[str, str | None], Source] = {
    ("allenai/ai2_arc", "ARC-Easy"): ("arc", partial(questions.arc, level="easy")),
    ("allenai/ai2_arc", "ARC-Challenge"): ("arc", partial(questions.arc, level="challenge")),
    ("allenai/openbookqa", "main"): ("openbookqa", questions.openbookqa),
    ("allenai/swag", "regular"): ("swag", questions.swag),
    ("allenai/winogrande", "winogrande_xl"): ("winogrande", questions.winogrande),
    ("baber/piqa", None): ("piqa", questions.piqa),
    ("bigbio/pubmed_qa", "pubmed_qa_labeled_fold0_source"): ("pubmedqa", questions.pubmedqa),
    ("CogComp/mc_taco", None): ("mctaco", sentences.mc_taco),
    ("community-datasets/qa4mre", "2011.main.EN"): ("qa4mre", partial(questions.qa4mre, year=2011)),
    ("community-datasets/qa4mre", "2012.main.EN"): ("qa4mre", partial(questions.qa4mre, year=2012)),
    ("community-datasets/qa4mre", "2013.main.EN"): ("qa4mre", partial(questions.qa4mre, year=2013)),
    ("EleutherAI/mutual", "mutual"): ("mutual", questions.mutual),
    ("EleutherAI/mutual", "mutual_plus"): ("mutual_plus", questions.mutual),
    ("EleutherAI/race", "high"): ("race", questions.race),
    ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"): ("wikitext2_raw", sentences.wikitext),
    ("jannalu/crows_pairs_multilingual", "english"): ("crows_pairs", sentences.crows_pairs),
    ("lighteval/winograd_wsc", "wsc273"): ("wsc273", questions.wsc273),
    ("nyu-mll/glue", "qnli"): ("glue", sentences.qnli),
    ("nyu-mll/glue", "rte"): ("glue", sentences.rte),
    ("nyu-mll/glue", "sst2"): ("glue", sentences.sst2),
    ("openai/gsm8k", "main"): ("gsm8k", sentences.gsm8k),
    ("regisss/math_qa", None): ("mathqa", questions.mathqa),
    ("Rowan/hellaswag", None): ("hellaswag", questions.hellaswag),
}


def source_of(path: str, name: str | None) -> Source | None:
    """The files of a hub data set; of those with a configuration a subject, by its name."""
    if path == "nyu-mll/blimp" and name:
        return "blimp", partial(sentences.blimp, paradigm=name)
    if path == "ceval/ceval-exam" and name:
        return "ceval", partial(questions.exam, subject=name, splits=CEVAL)
    if path == "haonan-li/cmmlu" and name:
        return "cmmlu", partial(questions.exam, subject=name, splits=CMMLU)
    return SOURCES.get((path, name))


@contextmanager
def local_data(folder: Path | None) -> Iterator[None]:
    """While this lasts, lm-eval's tasks read their data from `folder`, where it has them; else from the hub.

    Raises:
        UsageError: `folder` is no folder.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--data-dir {folder} is no folder.")
    from lm_eval.api.task import ConfigurableTask

    original = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **more: Any) -> None:
        source = source_of(task.DATASET_PATH, task.DATASET_NAME)
        if folder is None or source is None or not (folder / source[0]).is_dir():
            try:
                original(task, dataset_kwargs, **more)
            except ConnectionError:
                _leave_the_hub()
                raise
        else:
            splits = source[1](folder / source[0])
            scored = task.config.test_split or task.config.validation_split
            if scored not in splits:
                raise FileNotFoundError(f"no original file of its split {scored!r} in {folder / source[0]}")
            task.dataset = _data_set(splits)

    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = original


def _leave_the_hub() -> None:
    """It was not reached after all attempts: what is in the cache is all there is, and this is soon said."""
    import datasets.config
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


def _data_set(splits: Splits) -> dict[str, Any]:
    """As the hub's loader gives it; a split without a file is empty: tasks look there for examples."""
    from datasets import Dataset

    class Found(dict[str, Any]):
        def __missing__(self, _: str) -> Any:
            return Dataset.from_list([])

    return Found({split: Dataset.from_list(rows) for split, rows in splits.items()})

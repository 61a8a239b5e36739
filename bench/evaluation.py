"""One evaluation of a served model: fidelity on a text, accuracy on tasks, both against a baseline."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qdeploy import catalogue
from qdeploy.bench.accuracy.asking import Shortcuts
from qdeploy.bench.accuracy.comparison import check_pairable
from qdeploy.bench.accuracy.encoding import EncodedItem, encode_item
from qdeploy.bench.accuracy.items import Task
from qdeploy.bench.accuracy.measure import Accuracy, Asking, Baseline, measure_accuracy
from qdeploy.bench.accuracy.scoring import JOURNAL, ItemScore, open_journal, served
from qdeploy.bench.accuracy.table import read_items
from qdeploy.bench.accuracy.tasks import Loaded, load_tasks
from qdeploy.bench.fidelity.kept_windows import KEPT
from qdeploy.bench.fidelity.measure import Scoring, measure_fidelity
from qdeploy.bench.fidelity.text import load_windows
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.noise import shuffled
from qdeploy.bench.records import Engine, Fidelity, Noise, RunRecord, load_record
from qdeploy.bench.run_folder import check_free, resume
from qdeploy.bench.tokenizer import Encoder, load_encoder
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import Capabilities, probe
from qdeploy.errors import ComparisonError, EndpointError, UsageError, disk_errors
from qdeploy.provenance import provenance

AGAIN = "again"
"""Folder of the second measurement, inside that of the first until both are whole."""


@dataclass(frozen=True)
class EvalSettings:
    """What to measure.

    Attributes:
        text: a protocol's name, a text file, "builtin", or None for no fidelity.
        tokenizer: folder of the tokenizer; None asks the server for its local folder.
        windows, window_tokens: how much of the text; None: as the protocol says.
        top_k: log-probabilities kept at each position.
        samples: continuations that the baseline draws for a Monte-Carlo check of the divergence.
        tasks: names of tasks or task files.
        suite: name of a suite of tasks, asked besides `tasks`; what it lacks is skipped and said.
        num_fewshot: examples before each question where the task leaves it open; None: the task's own number.
        data_dir: folder with original files of data sets and of protocols' texts; None: the hub.
        limit: items a task; None takes all.
        margin: share of the baseline's accuracy that may be lost.
        concurrency: requests in flight.
        until_decided: with a baseline, score items in random order and stop where every task has its verdict.
        noise: without a baseline, score everything a second time in another order, for the noise floor.
    """

    text: str | None = "builtin"
    tokenizer: Path | None = None
    windows: int | None = None
    window_tokens: int | None = None
    top_k: int = 128
    samples: int = 0
    tasks: tuple[str, ...] = ("smoke",)
    suite: str | None = None
    num_fewshot: int | None = None
    data_dir: Path | None = None
    limit: int | None = None
    margin: float = 0.01
    concurrency: int = 8
    until_decided: bool = False
    noise: bool = False


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before anything is scored."""

    capabilities: Capabilities
    encoder: Encoder
    windows: Windows | None
    tasks: list[tuple[Task, list[EncodedItem]]]
    loaded: Loaded
    order: Sequence[int] | None = None
    """In which windows are sent; None: as they come."""

    def shuffled(self) -> _Plan:
        """The same requests in another order."""
        return replace(self, order=shuffled(range(len(self.windows.tokens))) if self.windows else ())


def run_eval(
    endpoint: Endpoint,
    settings: EvalSettings,
    folder: Path,
    baseline: Path | Endpoint | None = None,
    engine: Engine | None = None,
) -> RunRecord:
    """Evaluate the model behind `endpoint` and write the run folder: run.json, tokens.parquet, items.parquet.

    Stopped, however it comes, the same call goes on with the answers that it has.

    Args:
        folder: must not exist or be empty; it appears when all is measured.
        baseline: a run folder, or an endpoint, which is then evaluated first into `folder`-baseline.
        engine: what is known of the server beyond what its URL tells.

    Raises:
        EndpointError: the endpoint fails or cannot return prompt log-probabilities.
        ComparisonError: the baseline was measured on something else.
        UsageError, OutputError: settings that cannot work; a folder that is in use.
        Interrupted: Ctrl-C while tasks were scored.
    """
    check_free(folder)
    if isinstance(baseline, Endpoint):
        baseline_folder = folder.with_name(f"{folder.name}-baseline")
        run_eval(baseline, settings, baseline_folder)
        baseline = baseline_folder
    plan = _plan(endpoint, settings)
    try:
        record = _evaluate(endpoint, settings, plan, folder, baseline, engine)
    except EndpointError as error:
        raise EndpointError(f"{error} What was answered is kept; the same command goes on.") from error
    catalogue.record(folder)
    return record


def _evaluate(
    endpoint: Endpoint,
    settings: EvalSettings,
    plan: _Plan,
    folder: Path,
    baseline: Path | None,
    engine: Engine | None,
) -> RunRecord:
    reference = _Reference.load(baseline, plan, settings) if baseline else None
    with disk_errors(folder):
        partial = resume(folder, keep=(JOURNAL, KEPT, f"{AGAIN}.partial"))
        fidelity = _fidelity(endpoint, plan, settings, partial, reference)
        accuracy = _accuracy(endpoint, plan, settings, partial, reference)
        record = RunRecord(
            kind="eval",
            name=folder.name,
            provenance=provenance(),
            engine=engine or describe(endpoint),
            settings=_recorded(settings, plan),
            baseline=str(baseline) if baseline else None,
            baseline_engine=reference.record.engine if reference else None,
            fidelity=fidelity,
            tasks=accuracy.tasks,
            suite=accuracy.suite,
            figures=accuracy.figures,
            skipped=plan.loaded.skipped,
            incomplete=plan.loaded.incomplete,
        )
        record.save(partial)
        if settings.noise and baseline is None:
            record.noise = _noise(endpoint, settings, plan, partial)
            record.save(partial)
        (partial / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(partial / KEPT, ignore_errors=True)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    return record


def _noise(endpoint: Endpoint, settings: EvalSettings, plan: _Plan, first: Path) -> Noise:
    """Everything once more in another order, compared with the run folder of the first time."""
    again = first / AGAIN
    settings = replace(settings, until_decided=False, samples=0)
    record = _evaluate(endpoint, settings, plan.shuffled(), again, first, engine=None)
    shutil.rmtree(again)
    whole = [task for task in record.tasks if task.part_of is None]
    return Noise(tasks=[*whole, *([record.suite] if record.suite else [])], fidelity=record.fidelity)


def _check_capabilities(capabilities: Capabilities, settings: EvalSettings) -> None:
    capabilities.require_prompt_logprobs()
    if settings.text is None:
        return
    if settings.samples < 0:
        raise UsageError(f"--samples {settings.samples}: give 0 for none, or a number of continuations.")
    if settings.top_k < 1 or settings.top_k > capabilities.top_k:
        raise UsageError(
            f"--top-k {settings.top_k}: {capabilities.model} was seen to give up to {capabilities.top_k} "
            f"log-probabilities a position. Start vLLM with --max-logprobs {max(settings.top_k, 1)} or lower "
            "--top-k."
        )


def describe(endpoint: Endpoint) -> Engine:
    """What an endpoint tells of itself."""
    version = (endpoint.get_optional("/version") or {}).get("version")
    return Engine(name="endpoint", version=version, base_url=endpoint.base_url, model=endpoint.model)


def _plan(endpoint: Endpoint, settings: EvalSettings) -> _Plan:
    capabilities = probe(endpoint)
    _check_capabilities(capabilities, settings)
    encoder = load_encoder(endpoint, settings.tokenizer)
    windows = None
    if settings.text is not None:
        windows = load_windows(
            settings.text,
            encoder,
            settings.windows,
            settings.window_tokens,
            folder=settings.data_dir,
            max_model_len=endpoint.max_model_len,
        )
    loaded = load_tasks(
        settings.tasks,
        settings.limit,
        of_suite=settings.suite,
        shots=settings.num_fewshot,
        data_dir=settings.data_dir,
    )
    tasks = [
        (task, [encode_item(encoder, item, endpoint.max_model_len) for item in task.items])
        for task in loaded.tasks
    ]
    return _Plan(capabilities, encoder, windows, tasks, loaded)


@dataclass(frozen=True)
class _Reference:
    """The baseline's run, known to be comparable."""

    folder: Path
    record: RunRecord
    items: Mapping[tuple[str, str], ItemScore]

    @classmethod
    def load(cls, folder: Path, plan: _Plan, settings: EvalSettings) -> _Reference:
        record = load_record(folder)
        if plan.windows is not None:
            _check_same_text(folder, record, plan, settings)
        items = {(score.task, score.doc_id): score for score in read_items(folder)}
        for task, encoded in plan.tasks:
            check_pairable(task, encoded, items)
        return cls(folder, record, items)


def _check_same_text(folder: Path, record: RunRecord, plan: _Plan, settings: EvalSettings) -> None:
    """Refuse, before anything is scored, a baseline whose figures mean something else."""
    assert plan.windows is not None
    if record.fidelity is None:
        raise ComparisonError(f"The baseline run {folder} scored no text. Run it again with --text.")
    theirs, ours = record.fidelity, plan.windows
    pairs = {
        "protocol": (theirs.protocol, ours.protocol),
        "text (SHA-256)": (theirs.text_sha256, ours.text_sha256),
        "--windows": (theirs.windows, len(ours.tokens)),
        "--window-tokens": (theirs.window_tokens, max(map(len, ours.tokens))),
        "--top-k": (theirs.top_k, settings.top_k),
        "tokenizer (SHA-256)": (record.settings.get("tokenizer_sha256"), plan.encoder.sha256),
    }
    if settings.samples:
        pairs["--samples"] = (record.settings.get("samples", 0), settings.samples)
    different = [f"{name} {was} there, {now} here" for name, (was, now) in pairs.items() if was != now]
    if different:
        raise ComparisonError(
            f"The baseline run {folder} cannot be compared: {'; '.join(different)}. "
            "Use the baseline's settings, or run the baseline again with these."
        )


def _fidelity(
    endpoint: Endpoint, plan: _Plan, settings: EvalSettings, folder: Path, reference: _Reference | None
) -> Fidelity | None:
    if plan.windows is None:
        return None
    chosen = plan.capabilities.chosen_logprobs
    model = served(endpoint, plan.encoder.sha256)
    scoring = Scoring(settings.top_k, settings.concurrency, settings.samples, chosen, model, plan.order)
    baseline = reference.folder if reference else None
    return measure_fidelity(endpoint, plan.windows, plan.encoder, scoring, folder, baseline)


def _accuracy(
    endpoint: Endpoint, plan: _Plan, settings: EvalSettings, folder: Path, reference: _Reference | None
) -> Accuracy:
    asking = Asking(
        concurrency=settings.concurrency,
        shortcuts=Shortcuts.of(plan.capabilities),
        shuffled=plan.order is not None,
        until_decided=settings.until_decided,
        margin=settings.margin,
    )
    before = Baseline(reference.items, reference.record.noise) if reference else None
    with open_journal(folder, endpoint, plan.encoder.sha256) as journal:
        return measure_accuracy(endpoint, plan.tasks, asking, journal, folder, before)


def _recorded(settings: EvalSettings, plan: _Plan) -> dict[str, object]:
    recorded = asdict(replace(settings, tokenizer=None)) | {
        "tasks": list(settings.tasks),
        "data_dir": str(settings.data_dir) if settings.data_dir else None,
        "tokenizer_sha256": plan.encoder.sha256,
        "bos": plan.encoder.bos_policy,
        "split_items": _split_items(plan.tasks),
        "shortcuts": asdict(Shortcuts.of(plan.capabilities)),
    }
    del recorded["tokenizer"]
    return recorded


def _split_items(tasks: Sequence[tuple[Task, Sequence[EncodedItem]]]) -> int:
    """Items in which a token spans context and continuation."""
    return sum(item.split for _, items in tasks for item in items)

"""Logging to MLflow: what is logged has been saved before, so that MLflow cannot lose it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from qdeploy.bench.records import Decision, RunRecord, load_record
from qdeploy.bench.tracking.figures import campaign_tags, metrics_of, params_of, tags_of
from qdeploy.errors import UsageError
from qdeploy.progress import console, warn

EXPERIMENT = "qdeploy"
BATCH = 100
"""Most parameters or metrics that every MLflow takes at once."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own defaults keep a command waiting for minutes where the server is gone."""

CAMPAIGN_FILES = ("report.html", "decision.json", "campaign.json")


class Tracker:
    """An MLflow store that was seen to answer.

    Args:
        uri: `http:`, `https:`, `file:` or what else the installed MLflow knows. User and password come from
            MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a token from MLFLOW_TRACKING_TOKEN.

    Raises:
        UsageError: MLflow is not installed or gets no answer; `uri` holds a password.
    """

    def __init__(self, uri: str) -> None:
        _check_no_password(uri)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        if urlsplit(uri).scheme in ("", "file"):
            # MLflow 3 opens folders only to those who say that they mean it, as `--mlflow file:…` does.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UsageError("--mlflow needs MLflow: pip install 'qdeploy[mlflow]'.") from error
        self.uri = uri
        try:
            self._client = MlflowClient(uri)
            known = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        except Exception as error:  # whatever store it is
            raise UsageError(f"--mlflow {uri} does not answer: {_first_line(error)}") from error

    def log(self, record: RunRecord, folder: Path | None) -> None:
        """Log a run and the files of its folder. Where that fails, warn: the run is saved."""
        try:
            self._log(record.name, tags_of(record), params_of(record), metrics_of(record), folder)
        except Exception as error:  # whatever store it is
            self._warn(record.name, error)
        else:
            console.print(f"Logged {record.name} to MLflow at {self.uri}", highlight=False, soft_wrap=True)

    def log_campaign(self, folder: Path, decision: Decision) -> None:
        """Log a campaign with its report, and the runs of its variants as parts of it; warn as `log` does."""
        name = folder.resolve().name
        try:
            tags = campaign_tags(decision.verdict, decision.recommended)
            parent = self._log(name, tags, {"objective": decision.objective}, {}, None)
            for file in CAMPAIGN_FILES:
                self._client.log_artifact(parent, str(folder / file))
            for run in sorted(folder.glob("variants/*/**/run.json")):
                self._log_part(run.parent, str(run.parent.relative_to(folder / "variants")), parent)
        except Exception as error:  # whatever store it is
            self._warn(name, error)
        else:
            console.print(f"Logged {name} to MLflow at {self.uri}", highlight=False, soft_wrap=True)

    def _log_part(self, folder: Path, name: str, parent: str) -> None:
        record = load_record(folder)
        tags = tags_of(record) | {"mlflow.parentRunId": parent}
        self._log(name, tags, params_of(record), metrics_of(record), folder)

    def _log(
        self,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        folder: Path | None,
    ) -> str:
        """Log one run and end it; returns its id."""
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        run_id = str(self._client.create_run(self._experiment, run_name=name, tags=dict(tags)).info.run_id)
        now = get_current_time_millis()
        values = [Metric(key, value, now, 0) for key, value in metrics.items()]
        settings = [Param(key, text) for key, text in params.items()]
        for start in range(0, max(len(values), len(settings)), BATCH):
            batch = slice(start, start + BATCH)
            self._client.log_batch(run_id, metrics=values[batch], params=settings[batch])
        if folder:
            self._client.log_artifacts(run_id, str(folder))
        self._client.set_terminated(run_id)
        return run_id

    def _warn(self, name: str, error: Exception) -> None:
        warn(f"{name} is saved, but MLflow at {self.uri} did not take all of it: {_first_line(error)}")


def _check_no_password(uri: str) -> None:
    """The command line is part of every record."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"--mlflow: {error}.") from error
    if parts.username or parts.password:
        raise UsageError(
            "--mlflow: leave user and password out of the URI, which is recorded with the command. "
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]

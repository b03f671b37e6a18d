"""Trackers that are packages of their own: config group `tracker`, extras `wandb` and `mlflow`.

A run has the name of its folder, there and here, and keeps its number in `tracker.json`, so that a resumed
run goes on in the same place. Nothing is sent but measurements and the config.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from guie.errors import UserError
from guie.train.hooks import Hook


def check(kind: type[Hook]) -> None:
    """Raise UserError, with the cure, where the package that a tracker needs is not installed."""
    package = getattr(kind, "package", None)
    if package:
        _package(package)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        cure = f"pip install 'guie[{name}]', or tracker=tensorboard, tracker=none"
        raise UserError(f"tracker: {name} is not installed ({error}); accepted: {cure}") from error


class Wandb(Hook):
    """Weights & Biases. `mode` offline writes to `wandb/` of the run folder, for `wandb sync` later."""

    package = "wandb"

    def __init__(
        self,
        project: str = "guie",
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
        *,
        folder: str,
        config: dict[str, Any],
    ) -> None:
        self._wandb = _package(self.package)
        self._folder, self._config = Path(folder), config
        self._where = {"project": project, "entity": entity, "group": group, "mode": mode}
        self._run: Any = None

    def start(self, step: int, steps: int) -> None:
        """Begin the run, or go on with it."""
        former = _remembered(self._folder, self.package)
        try:
            self._run = self._wandb.init(
                **self._where,
                name=self._folder.resolve().name,
                id=former,
                resume="allow",
                dir=str(self._folder),
                config=self._config,
            )
        except Exception as error:
            raise _refused(self.package, error, "tracker.mode=offline, or `wandb login` before") from error
        _remember(self._folder, self.package, self._run.id)

    def record(self, values: Mapping[str, float]) -> None:
        """Send the measurements at their step."""
        named = {name: value for name, value in values.items() if name != "step"}
        self._run.log(named, step=int(values["step"]))

    def close(self) -> None:
        """Finish, as failed where an exception ends the run."""
        if self._run is not None:
            self._run.finish(exit_code=int(_fails()))


class MLflow(Hook):
    """MLflow. `uri` null is MLflow's own choice: MLFLOW_TRACKING_URI, else a file where you are."""

    package = "mlflow"

    def __init__(
        self,
        experiment: str = "guie",
        uri: str | None = None,
        *,
        folder: str,
        config: dict[str, Any],
    ) -> None:
        self._mlflow = _package(self.package)
        self._folder, self._config = Path(folder), config
        self._experiment, self._uri = experiment, uri
        self._client: Any = None
        self._run = ""

    def start(self, step: int, steps: int) -> None:
        """Begin the run, or go on with it."""
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
            self._run = _remembered(self._folder, self.package) or self._begun()
            self._client.update_run(self._run, status="RUNNING")
        except Exception as error:
            raise _refused(self.package, error, "tracker.uri=sqlite:///FILE, or a server's") from error
        _remember(self._folder, self.package, self._run)

    def _begun(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        run = self._client.create_run(number, run_name=self._folder.resolve().name).info.run_id
        for name, value in _params(self._config).items():
            self._client.log_param(run, name, value)
        return run

    def record(self, values: Mapping[str, float]) -> None:
        """Send the measurements at their step."""
        entity, now = self._mlflow.entities.Metric, round(1000 * time.time())
        named = {name: value for name, value in values.items() if name != "step"}
        metrics = [entity(metric_name(n), float(v), now, int(values["step"])) for n, v in named.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Finish, as failed where an exception ends the run."""
        if self._client is not None and self._run:
            self._client.set_terminated(self._run, status="FAILED" if _fails() else "FINISHED")


def metric_name(name: str) -> str:
    """Return a name that MLflow takes: mP@5 is mP_at_5 there."""
    kept = name.replace("@", "_at_")
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in kept)


def _params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the config by dotted key, each value as text of at most 500 characters."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _params(value, f"{prefix}{key}.")
        else:
            found[metric_name(f"{prefix}{key}")] = str(value)[:500]
    return found


def _fails() -> bool:
    """Return whether an exception is on its way: hooks are closed while it passes."""
    return sys.exc_info()[0] is not None


def _refused(package: str, error: Exception, cure: str) -> UserError:
    return UserError(f"tracker: {package} cannot begin ({' '.join(str(error).split())}); accepted: {cure}")


def _remembered(folder: Path, package: str) -> str | None:
    path = folder / "tracker.json"
    return json.loads(path.read_text()).get(package) if path.exists() else None


def _remember(folder: Path, package: str, number: str) -> None:
    (folder / "tracker.json").write_text(json.dumps({package: number}) + "\n")

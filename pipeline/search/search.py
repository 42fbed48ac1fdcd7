"""One search: its settings, data and recorded trials."""

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.fields import PROCESSED
from pipeline.core.noise import Noise
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import digest_of
from pipeline.launch.training import Training
from pipeline.launch.worker import TRAINING_SPLITS
from pipeline.params import read_file
from pipeline.search import generation
from pipeline.search import study as studies
from pipeline.search.settings import ModelSearch
from pipeline.search.space import ends, params_of, points, settings_of, training_of
from pipeline.search.study import FAILURE, FINGERPRINTS, REPEATS, SETTINGS, Curve
from pipeline.tracking import runs

MOST_REPEATS = 100  # suggestions in a row that are known already


class Search:
    """The search of one model. Only one process may open it at a time.

    Only the training and the validation split are opened. Raises ``BadInput`` if the model has no such
    metric.
    """

    def __init__(self, environment: Environment, name: str, search: ModelSearch, num_seeds: int) -> None:
        self.environment, self.name, self.search, self.num_seeds = environment, name, search, num_seeds
        self.params, kind = read_file(), model_files.find(name)
        self.data = Dataset.open(PROCESSED / kind.dataset, TRAINING_SPLITS)
        self.needs = {need: Path("models", need) for need in kind.needs}
        first = settings_of(search, next(points(search, lambda key: ends(search.settings[key]))))
        base = self.trainings(first)[0]
        self._require_metric(base)
        # What is not searched, the data and the code are part of the search.
        self.id = digest_of([json.loads(search.model_dump_json()), num_seeds, base.fingerprint])
        self.storage = studies.storage_of(studies.path_of(environment, name))
        searched = search.settings.get(f"{name}.training.num_steps")
        num_steps = max(int(end) for end in (ends(searched) if searched else [base.settings.num_steps]))
        every = min(base.settings.validate_every, num_steps)
        self.study = studies.open_study(self.storage, f"{name}-{self.id[:12]}", search, num_steps, every)
        for key, value in self._chosen(base).items():
            self.study.set_user_attr(key, value)
        self.known = studies.known_curves(self.storage, search.metric)
        self.kinds = studies.distributions(search, self.params)
        self.lock = threading.RLock()

    @classmethod
    def latest(cls, environment: Environment, name: str, search: ModelSearch) -> "Search":
        """The last search with these settings, data and code, whatever its sampler, pruner and seeds.

        Raises ``BadInput`` if there is none.
        """
        current = cls(environment, name, search, 1)
        wanted, found = current.study.user_attrs, list[tuple[str, Mapping[str, Any]]]()
        for study in current.storage.get_all_studies():
            trials = current.storage.get_all_trials(study._study_id, deepcopy=False)
            same = all(study.user_attrs.get(key) == wanted[key] for key in ("base", "space"))
            if same and any(trial.state == TrialState.COMPLETE for trial in trials):
                found.append((max(str(trial.datetime_start) for trial in trials), study.user_attrs))
        if not found:
            what = "no search has a result with these settings, data and code"
            raise BadInput(what, where=f"search.{name}", remedy=f"darkroom search {name}")
        chosen = max(found, key=lambda pair: pair[0])[1]
        how = {key: chosen[key] for key in ("sampler", "pruner", "seed")}
        return cls(environment, name, search.model_copy(update=how), chosen["num_seeds"])

    def _chosen(self, base: Training) -> dict[str, Any]:
        """What Optuna's study keeps of the search."""
        whole = json.loads(self.search.model_dump_json())
        how = {key: whole.pop(key) for key in ("sampler", "pruner", "seed")}
        space, metric = digest_of(whole), self.search.metric
        kept = {"base": base.fingerprint, "space": space, "metric": metric, "num_seeds": self.num_seeds}
        return kept | how

    def trainings(self, settings: Mapping[str, Any]) -> list[Training]:
        """The trainings of a trial, one for each seed. Raises ``BadInput`` if the model refuses them."""
        params = params_of(self.search, self.params, settings)
        training, config = training_of(self.name, params)
        seeds = range(training.seed, training.seed + self.num_seeds)
        each = [training.model_copy(update={"seed": seed}) for seed in seeds]
        return [Training(self.name, one, config, self.data, self.needs) for one in each]

    def _require_metric(self, base: Training) -> None:
        needs = {name: model_files.load(folder) for name, folder in self.needs.items()}
        task = model_files.build(self.name, base.config, self.data.spec, 0, needs).eval()
        measured = task.evaluate(self.data.train.batch(np.arange(1)), Noise.whole(0, 1, "validation"))
        known = [f"validation/{metric}" for metric in measured]
        known += [generation.METRIC] * generation.can_generate(task)
        where, remedy = f"params.yaml: search.{self.name}.metric", f"choose one of: {', '.join(known)}"
        if self.search.metric not in known:
            raise BadInput(f"the model has no '{self.search.metric}'", where=where, remedy=remedy)
        if self.search.metric == generation.METRIC and len(self.data.validation) < generation.LEAST_IMAGES:
            what = f"the validation split has fewer than {generation.LEAST_IMAGES} images"
            raise BadInput(what, where=where, remedy=remedy)

    def description(self) -> runs.Description:
        """Its own MLflow run, the parent of its trainings."""
        return runs.Description(
            stage=f"search-{self.name}",
            fingerprint=self.id,
            params={"search": json.loads(self.search.model_dump_json()), "num_seeds": self.num_seeds},
            data_name=self.data.source,
            data_digest=self.data.digest,
            data_source=self.data.folder.as_posix(),
            parent=(),
        )

    def value(self, training: Training, curve: Curve) -> float:
        """The metric of the model that the training hands on, the last of ``curve``.

        Raises ``BadInput`` if the training did not measure it, or if it is NaN.
        """
        if not curve or math.isnan(curve[-1][1]):
            what = f"'{self.search.metric}' is {'NaN' if curve else 'not measured'}"
            where, remedy = f"train-{training.name}", "choose another metric, or other settings"
            raise BadInput(what, where=where, remedy=remedy)
        return curve[-1][1]

    def next_trial(self) -> FrozenTrial | None:
        """Record and return the next trial; None if the space has no other settings.

        Settings that a finished trial had are recorded with its result, and others are tried.
        """
        for _ in range(MOST_REPEATS):
            point = studies.suggest(self.study, self.search, self.params)
            if point is None:
                return None
            settings = settings_of(self.search, point)
            try:
                trainings = self.trainings(settings)
                trainings[0].require_examples()
            except BadInput as error:
                refused = studies.record(self.study, self.kinds, point, {SETTINGS: settings})
                self.tell(refused, TrialState.FAIL, failure=f"{error.where}: {error.what}")
                return self.study.get_trials()[-1]
            fingerprints = [training.fingerprint for training in trainings]
            attributes: dict[str, Any] = {SETTINGS: settings, FINGERPRINTS: fingerprints}
            same = [
                trial
                for trial in studies.first_trials(self.study)
                if trial.user_attrs.get(FINGERPRINTS) == fingerprints
            ]
            if not same:
                return studies.record(self.study, self.kinds, point, attributes)
            attributes[REPEATS] = same[0].number
            studies.record(self.study, self.kinds, point, attributes, same[0])
        return None

    def tell(
        self, trial: FrozenTrial, state: TrialState, value: float | None = None, failure: str = ""
    ) -> None:
        """Record the end of a trial."""
        if failure:
            self.storage.set_trial_user_attr(trial._trial_id, FAILURE, failure[:500])
        self.study.tell(trial.number, value, state)

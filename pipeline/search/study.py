"""The trials of a search, kept by Optuna in .darkroom/search/<model>.log."""

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.files import digest_of
from pipeline.search.settings import ModelSearch
from pipeline.search.space import Point, grid, is_whole, rounded

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

Curve = list[tuple[int, float]]  # the metric by step; the last is that of the model handed on
SETTINGS, CURVES, FINGERPRINTS, FAILURE = "settings", "curves", "fingerprints", "failure"
REPEATS, OWN, SECONDS, VALUES = "repeats", "own folders", "seconds", "values"


def path_of(environment: Environment, model: str) -> Path:
    """The file with all trials of ``model``."""
    return environment.root / ".darkroom/search" / f"{model}.log"


def storage_of(path: Path) -> "JournalStorage":
    """Optuna's storage in the file ``path``. No other process may write to it at the same time.

    What a killed process left is removed: a lock, and a line that was not completely written.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError) as error:
        remedy = "delete it: its trials are lost, MLflow still has their runs"
        raise DarkroomError(f"is damaged ({error})", where=str(path), remedy=remedy) from None


def open_study(
    storage: "JournalStorage", name: str, search: ModelSearch, num_steps: int, every: int
) -> "Study":
    """The study ``name``, created if it is missing. ``every``: steps between two validations."""
    import optuna

    pruners: dict[str, Any] = {
        "none": optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(),
        "hyperband": optuna.pruners.HyperbandPruner(every, num_steps),
    }
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize" if search.mode == "max" else "minimize",
        sampler=optuna.samplers.RandomSampler(),  # not used: suggest() creates its own
        pruner=pruners[search.pruner],
        load_if_exists=True,
    )


def suggest(study: "Study", search: ModelSearch, params: Mapping[str, Any]) -> Point | None:
    """The next point; None if the grid has no further one.

    It depends on the seed and the recorded trials alone, so a search that was killed goes on as if it had
    not been.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    if search.sampler == "grid":
        return next((point for n, point in enumerate(grid(search, params)) if n == len(trials)), None)
    seed = int(digest_of([search.seed, len(trials)])[:8], 16)
    sampler: Any = optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "bayesian":  # grouped by the settings that occur together
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        draft = optuna.create_study(direction=study.direction, sampler=sampler)
        draft.add_trials(trials)
        trial, point = draft.ask(), Point()
        for name, kind in distributions(search, params).items():
            if search.is_active(name, point):
                point[name] = _draw(trial, name, kind)
                if not search.settings[name].choices:
                    whole = isinstance(kind, optuna.distributions.IntDistribution)
                    point[name] = rounded(point[name], search.settings[name], whole)
    return point


def _draw(trial: "Trial", name: str, kind: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    draw: Any = trial.suggest_int if isinstance(kind, IntDistribution) else trial.suggest_float
    return draw(name, kind.low, kind.high, step=kind.step, log=kind.log)


def distributions(search: ModelSearch, params: Mapping[str, Any]) -> dict[str, "BaseDistribution"]:
    """Optuna's distribution of each setting."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, setting in search.settings.items():
        if setting.low is None or setting.high is None:
            found[name] = CategoricalDistribution([*setting.values])
        elif is_whole(search, name, params):
            every = int(setting.step or 1)
            found[name] = IntDistribution(int(setting.low), int(setting.high), setting.log, every)
        else:
            step = None if setting.step is None else float(setting.step)
            found[name] = FloatDistribution(setting.low, setting.high, setting.log, step)
    return found


def record(
    study: "Study",
    kinds: Mapping[str, "BaseDistribution"],
    point: Point,
    attributes: Mapping[str, Any],
    known: "FrozenTrial | None" = None,
) -> "FrozenTrial":
    """Record a trial at ``point``, in one line of the file: as running, or with the result of ``known``.

    If ``known`` is still running, the trial is recorded as failed.
    """
    import optuna

    states = optuna.trial.TrialState
    state = states.RUNNING if known is None else known.state if known.state.is_finished() else states.FAIL
    used = {name: kinds[name] for name in point}
    trial = optuna.trial.create_trial(
        state=state,
        value=known.value if known and state == states.COMPLETE else None,
        params=point,
        distributions=used,
        user_attrs=dict(attributes),
        intermediate_values=known.intermediate_values if known else None,
    )
    study.add_trial(trial)
    return study.get_trials(deepcopy=False)[-1]


def known_curves(storage: "JournalStorage", metric: str) -> dict[str, Curve]:
    """The curves of ``metric`` of all finished trainings in the file, by fingerprint."""
    found: dict[str, Curve] = {}
    for study in storage.get_all_studies():
        if study.user_attrs.get("metric") != metric:
            continue
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            for fingerprint, curve in trial.user_attrs.get(CURVES, {}).items():
                found[fingerprint] = [(step, value) for step, value in curve]
    return found


def first_trials(study: "Study") -> list["FrozenTrial"]:
    """The trials without repetitions, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if REPEATS not in trial.user_attrs]


def importances(study: "Study") -> dict[str, float]:
    """How much each setting matters for being among the best (PED-ANOVA), in [0, 1]; empty if unknown.

    Watanabe et al., "PED-ANOVA", IJCAI 2023. Its sum is 1.
    """
    import optuna

    with suppress(ValueError, RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
        if all(math.isfinite(value) for value in found.values()):
            return {name: float(value) for name, value in found.items()}
    return {}

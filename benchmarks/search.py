"""Compare grid, random and Bayesian search: the best value so far, by trial.

    python benchmarks/search.py [cnn gan] [--source digits] [--trials 20] [--seeds 5] [--steps 100] [--size 8]
                                [--out FILE]

Each sampler runs the same number of trials on the same data (scikit-learn's digits, or ``--source mnist``,
whose files are downloaded), with each seed (of the sampler; the grid has none, so its points are taken in a
random order). The space is that of params.yaml; trainings have ``--steps`` steps and are not pruned. Printed
are mean and standard deviation over the seeds of the best value after some numbers of trials, for each
sampler, and the seconds of a trial that are not training.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from pipeline import environment, process
from pipeline.data.download import download
from pipeline.data.preprocess import preprocess
from pipeline.data.settings import DataSettings
from pipeline.environment import Environment

ROOT = Path(__file__).parents[1]
SAMPLERS = ("grid", "random", "bayesian")


def prepare(folder: Path, source: str, size: int, steps: int) -> None:
    """Write params.yaml and the data into ``folder``."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in ("cnn", "gan"):
        training = params[name]["training"]
        training |= {"num_steps": steps, "validate_every": steps, "sample_every": steps}
        training |= {"checkpoint_every": steps, "log_every": steps}
        if "schedule" in training:
            training["schedule"]["warmup_steps"] = min(10, steps // 5)
        params["search"][name]["pruner"] = "none"
    params["search"]["cnn"] |= {"metric": "validation/cross_entropy", "mode": "min"}
    params["data"] |= {"source": source, "image_size": size}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    settings = DataSettings(source=source, image_size=size)
    where = Environment(root=folder, storage=folder / ".darkroom", mirror=environment.read().mirror)
    download(settings, where, folder / "data/raw")
    preprocess(settings, where, folder / "data/raw", folder / "data/processed/images")


def best_so_far(model: str, sampler: str, seed: int, num_trials: int) -> tuple[list[float], float, float]:
    """The best value after each trial; seconds of the trainings and of all."""
    from pipeline.search import study as studies
    from pipeline.search.search import Search
    from pipeline.search.space import read_search
    from pipeline.search.trials import Budget, run

    began = time.monotonic()
    space = read_search(model).model_copy(update={"sampler": sampler, "seed": seed})
    original = studies.grid
    if sampler == "grid":
        studies.grid = lambda *arguments: iter(shuffled(list(original(*arguments)), seed))
    try:
        search = Search(environment.read(), model, space, 1)
        run(search, Budget(num_trials), Path(f"reports/{model}-{sampler}-{seed}.html"))
    finally:
        studies.grid = original
    trials = [trial for trial in studies.first_trials(search.study) if "values" in trial.user_attrs]
    worst = float("inf")
    values = [trial.user_attrs["values"][0] if trial.user_attrs["values"] else worst for trial in trials]
    trained = sum(trial.user_attrs["seconds"] for trial in trials)
    return np.minimum.accumulate(values).tolist(), trained, time.monotonic() - began


def shuffled(points: list, seed: int) -> list:
    """The ``points`` in an order that depends on ``seed`` alone."""
    order = list(points)
    random.Random(seed).shuffle(order)
    return order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=["cnn", "gan"])
    parser.add_argument("--source", default="digits")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("search.json"))
    chosen = parser.parse_args()
    out, found = chosen.out.resolve(), []
    process.collect_garbage_rarely()
    environment.prepare()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        prepare(Path(folder), chosen.source, chosen.size, chosen.steps)
        for model in chosen.models:
            for seed in range(chosen.seeds):
                for sampler in SAMPLERS:
                    began = time.process_time()
                    curve, trained, seconds = best_so_far(model, sampler, seed, chosen.trials)
                    row = {"model": model, "sampler": sampler, "seed": seed, "best": curve}
                    row |= {"trained": trained, "seconds": seconds, "processor": time.process_time() - began}
                    found.append(row)
                    out.write_text(json.dumps(found))
                    print(f"{model} {sampler} seed {seed}: best {curve[-1]:.5g}, {seconds:.0f} s", flush=True)
            table(model, found, chosen.trials)
        os.chdir(ROOT)


def table(model: str, found: list[dict], num_trials: int) -> None:
    """Print the best value after some numbers of trials."""
    shown = sorted({*range(5, num_trials, 5), num_trials})
    print(f"\n{model}: best value after", *(f"{number:>16}" for number in shown), "trials")
    for sampler in SAMPLERS:
        curves = [row["best"] for row in found if (row["model"], row["sampler"]) == (model, sampler)]
        cells = []
        for number in shown:
            values = [curve[min(number, len(curve)) - 1] for curve in curves]
            deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
            cells.append(f"{np.mean(values):>8.4f} ± {deviation:.4f}")
        print(f"{sampler:>20}", *cells)
    rows = [row for row in found if row["model"] == model]
    trained, seconds = (sum(row[key] for row in rows) for key in ("trained", "seconds"))
    apart = (seconds - trained) / sum(len(row["best"]) for row in rows)
    print(f"{apart:.2f} s a trial apart from its training, {seconds / trained - 1:.1%} of the trainings")


if __name__ == "__main__":
    main()

"""Models that predict the next frames of a clip: errors by horizon, and forecasts that need no model.

Errors are summed over the pixels of a frame in [0, 1], as is usual for Moving MNIST (Srivastava et al. 2015),
and averaged over frames and clips. Clips are (N, T, C, H, W).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.core.abilities import Ability
from pipeline.estimate import Estimate
from pipeline.evaluation import averages, figures
from pipeline.evaluation.context import Context, diverged, made
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.evaluators.reconstruction import psnr, ssim
from pipeline.evaluation.measure import Measure
from pipeline.files import write_text

NUM_ON_SHEET, NUM_ANIMATED = 3, 8  # clips


def squared_error(frames: Tensor, others: Tensor) -> Tensor:
    """The sum over the pixels of each frame, (N,), float64."""
    return (frames.double() - others.double()).square().flatten(1).sum(1)


def absolute_error(frames: Tensor, others: Tensor) -> Tensor:
    """The sum over the pixels of each frame, (N,), float64."""
    return (frames.double() - others.double()).abs().flatten(1).sum(1)


COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "frame_mse": squared_error,
    "frame_mae": absolute_error,
    "frame_ssim": ssim,
    "frame_psnr": psnr,
}


def baselines(frames: Tensor, count: int) -> dict[str, Tensor]:
    """Forecasts (N, count, C, H, W) without a model from ``frames`` (N, T, C, H, W), by name."""
    single = {
        "last frame": frames[:, -1:],
        "mean of the inputs": frames.mean(1, keepdim=True),
        "black": torch.zeros_like(frames[:, :1]),
    }
    return {name: frame.expand(-1, count, -1, -1, -1) for name, frame in single.items()}


def forecasts(model: Context, clips: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The input frames, the true next ones, and by name the forecasts of the model and of the baselines."""
    known = getattr(model.task, "input_frames", clips.shape[1] // 2)
    frames, true = clips[:, :known], clips[:, known:]
    predicted = made(model.task.forecast(frames, true.shape[1]))
    if not predicted.isfinite().all():
        raise diverged(model.name, "predicts frames whose pixels are not finite")
    return frames, true, {model.name: predicted, **baselines(frames, true.shape[1])}


def evaluate(model: Context) -> dict[str, Estimate]:
    """The measures of the forecasts. Also writes a table and a chart by horizon, and draws some clips."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}  # by measure and forecast: values (n, horizons)
    for batch in model.batches("forecasts"):
        _, true, predictions = forecasts(model, batch["clip"])
        for name, compare in COMPARISONS.items():
            for source, frames in predictions.items():
                errors = [compare(*pair) for pair in zip(frames.unbind(1), true.unbind(1))]
                found.setdefault((name, source), []).append(torch.stack(errors, 1).cpu().numpy())
    values = {key: np.concatenate(parts) for key, parts in found.items()}
    _by_horizon(model, {key: each.mean(0) for key, each in values.items()})
    _draw(model)
    measured = {}
    for name in COMPARISONS:
        floors = [
            each.mean() for (own, source), each in values.items() if own == name and source != model.name
        ]
        best = min(floors) if EVALUATOR.measures[name].better == "lower" else max(floors)
        measured[name] = averages.mean([values[name, model.name].mean(1)]).with_floor(float(best))
    return measured


def _by_horizon(model: Context, means: dict[tuple[str, str], np.ndarray]) -> None:
    """Write and draw the means (horizons,) by measure and forecast."""
    import pandas as pd

    tables = {}
    for name in COMPARISONS:
        columns = {source: each for (own, source), each in means.items() if own == name}
        horizons = range(1, 1 + len(means[name, model.name]))
        tables[EVALUATOR.measures[name].title] = pd.DataFrame(columns, index=horizons)
    table = pd.concat(tables, axis=1, names=["measure", "forecast"]).T
    table.insert(0, "mean", table.mean(axis=1))
    write_text(model.table("horizons"), table.reset_index().to_csv(index=False))
    figures.draw_lines(tables, model.picture("horizons"))


def _draw(model: Context) -> None:
    """Draw a sheet of the first clips, and an animation of more of them."""
    clips = model.dataset.test.batch(np.arange(min(len(model.dataset.test), NUM_ANIMATED)), model.task.device)
    frames, true, predictions = forecasts(model, clips["clip"])
    rows = [frames, true, predictions[model.name]]
    longest = max(frames.shape[1], true.shape[1])
    padded = [
        torch.cat([row, row.new_ones(len(row), longest - row.shape[1], *row.shape[2:])], 1) for row in rows
    ]
    sheet = torch.stack([row[:NUM_ON_SHEET] for row in padded], 1).flatten(0, 1)
    names = ["inputs", "truth", "forecast"] * min(NUM_ON_SHEET, len(true))
    figures.save_grid(sheet, model.picture("forecasts"), rows=names)
    both = torch.stack([torch.cat([frames, row], 1) for row in rows[1:]])  # (2, N, T, C, H, W)
    figures.save_animation(both.movedim(2, 0), model.picture("animation"))


# fmt: off
FLOOR = "the best of the last frame, the mean of the inputs and black scores {}"
EVALUATOR = Evaluator(Ability.FORECAST, evaluate, {
    "frame_mse": Measure("Squared error per frame", "lower", FLOOR,
        "Squared error between predicted and true frames: the sum over the pixels in [0, 1] of a frame, "
        "averaged over frames and clips.", headline=True),
    "frame_mae": Measure("Absolute error per frame", "lower", FLOOR,
        "Absolute error between predicted and true frames, summed and averaged in the same way."),
    "frame_ssim": Measure("SSIM of frames", "higher", FLOOR,
        "Luminance, contrast and structure of predicted frames, in small windows; 1 is equality."),
    "frame_psnr": Measure("PSNR of frames", "higher", FLOOR,
        "Peak signal-to-noise ratio of each predicted frame, then averaged.", "dB"),
}, pictures={
    "forecasts": "The first clips of the test split: the input frames, the true next frames and the forecast "
        "of {}.",
    "animation": "Clips of the test split: above the truth, below the forecast of {}, which begins after the "
        "input frames.",
    "horizons": "Errors of {} by horizon, that is how many frames ahead, and of forecasts without a model.",
}, tables={
    "horizons": "By horizon, that is how many frames after the last input frame.",
})

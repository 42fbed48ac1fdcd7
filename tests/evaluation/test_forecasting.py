"""Measures of forecasts, by closed form."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.core.abilities import Ability
from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec, Field
from pipeline.evaluation import figures
from pipeline.evaluation.context import Context
from pipeline.evaluation.evaluators import forecasting
from pipeline.evaluation.settings import EvaluationSettings
from tests.arrays import ArrayDataset

SIDE, NUM_FRAMES, STEP = 8, 6, 20


class Persistent(torch.nn.Module):
    """A forecaster that repeats the last frame, a tenth brighter."""

    dataset, input_frames = "clips", 4
    device = torch.device("cpu")

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forecast(self, frames, count):
        return frames[:, -1:].expand(-1, count, -1, -1, -1) + 0.1


@pytest.fixture
def model(tmp_path):
    """A context of clips of one tone that rises by STEP of 255 from frame to frame."""
    spec = DataSpec({"clip": Field("clip", (NUM_FRAMES, 1, SIDE, SIDE))})
    tones = (STEP * np.arange(NUM_FRAMES, dtype=np.uint8))[None, :, None, None, None] + np.arange(
        3, dtype=np.uint8
    ).reshape(-1, 1, 1, 1, 1)
    rows = np.broadcast_to(tones, (3, NUM_FRAMES, 1, SIDE, SIDE)).copy()
    data = ArrayDataset()
    data.spec, data.class_names, data.test = spec, (), Split([{"clip": rows}], spec)
    context = Context(
        EvaluationSettings(allow_few_samples=True),
        {"clips": data},
        {"p": Persistent(spec)},
        {"p": "0"},
        tmp_path,
    )
    return context.of("p")


def test_floors_are_the_last_frame_the_mean_of_the_inputs_and_black():
    frames = torch.rand(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    found = forecasting.baselines(frames, 2)
    assert list(found) == ["last frame", "mean of the inputs", "black"]
    for number in range(2):
        assert torch.equal(found["last frame"][:, number], frames[:, 3])
        assert torch.allclose(found["mean of the inputs"][:, number], frames.sum(1) / 4)
    assert found["black"].shape == (2, 2, 1, 3, 3) and found["black"].abs().max() == 0


def test_errors_are_sums_over_pixels_and_means_over_frames_and_clips(model):
    measured = forecasting.evaluate(model)
    ahead = np.array([1, 2]) * STEP / 255  # the last input frame is so much darker
    assert measured["frame_mse"].value == pytest.approx(SIDE**2 * np.mean((ahead - 0.1) ** 2), rel=1e-5)
    assert measured["frame_mae"].value == pytest.approx(SIDE**2 * np.mean(np.abs(ahead - 0.1)), rel=1e-5)
    assert measured["frame_psnr"].value == pytest.approx(
        np.mean(-20 * np.log10(np.abs(ahead - 0.1))), rel=1e-5
    )
    assert measured["frame_mse"].floor == pytest.approx(
        SIDE**2 * np.mean(ahead**2), rel=1e-5
    )  # the last frame
    assert measured["frame_psnr"].floor == pytest.approx(np.mean(-20 * np.log10(ahead)), rel=1e-5)
    assert measured["frame_ssim"].value <= 1 and measured["frame_ssim"].floor < measured["frame_ssim"].value


def test_the_table_has_each_horizon_and_each_floor(model):
    forecasting.evaluate(model)
    table = pd.read_csv(model.table("horizons"))
    assert list(table.columns) == ["measure", "forecast", "mean", "1", "2"] and len(table) == 4 * 4
    ahead = np.array([1, 2]) * STEP / 255
    tones = ((np.arange(3)[:, None] + STEP * np.array([4, 5])) / 255) ** 2
    expected = {
        "p": SIDE**2 * (ahead - 0.1) ** 2,
        "last frame": SIDE**2 * ahead**2,
        "mean of the inputs": SIDE**2 * (ahead + 1.5 * STEP / 255) ** 2,
        "black": SIDE**2 * tones.mean(0),
    }
    squares = table[table["measure"] == "Squared error per frame"].set_index("forecast")
    for name, values in expected.items():
        assert np.allclose(squares.loc[name, ["1", "2"]].astype(float), values)
        assert np.isclose(squares.loc[name, "mean"], values.mean())


def test_the_animation_shows_truth_and_forecast_frame_by_frame(model):
    forecasting.evaluate(model)
    with Image.open(model.picture("animation")) as picture:
        assert picture.n_frames == NUM_FRAMES
        tones = []
        for number in range(NUM_FRAMES):
            picture.seek(number)
            values = np.asarray(picture.convert("L"))
            tones.append((values[0, 0], values[-1, 0]))
    assert [above for above, _ in tones] == [STEP * number for number in range(NUM_FRAMES)]
    last = 3 * STEP
    assert [below for _, below in tones] == [0, STEP, 2 * STEP, last, round(last + 25.5), round(last + 25.5)]
    for kind in ("forecasts", "horizons"):
        Image.open(io.BytesIO(model.picture(kind).read_bytes())).verify()


def test_an_animation_is_an_apng_or_a_gif_with_the_same_bytes_each_time(tmp_path):
    frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1, 1, 1).expand(5, 1, 2, 3, 4, 4)
    for suffix in ("png", "gif"):
        paths = [tmp_path / f"{number}.{suffix}" for number in range(2)]
        for path in paths:
            figures.save_animation(frames, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert Image.open(paths[0]).n_frames == 5


def test_the_evaluator_is_for_forecasters():
    assert forecasting.EVALUATOR.needs is Ability.FORECAST

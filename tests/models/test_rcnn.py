"""The recurrent convolutional network: cells, outputs, and what it learns from."""

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.core import model_files
from pipeline.core.batch import Batch
from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec, Field
from pipeline.core.noise import Noise
from pipeline.errors import BadInput
from pipeline.layers.similarity import ssim
from pipeline.models.rcnn import Rcnn
from pipeline.models.rcnn.cells import ConvGRUCell, ConvLSTMCell
from pipeline.models.rcnn.settings import RcnnConfig

NUM_FRAMES, SIDE = 6, 8


def noise(*shape, seed=0):
    return Noise.whole(seed, shape[0]).normal("values", *shape[1:])


def clips(count=4, frames=NUM_FRAMES, seed=0):
    return Noise.whole(seed, count).uniform("clips", frames, 1, SIDE, SIDE)


def build(**settings):
    config = RcnnConfig(**{"width": 4, **settings})
    return Rcnn(config, DataSpec({"clip": Field("clip", (NUM_FRAMES, 1, SIDE, SIDE))}))


def convolved(values, weight, bias, row, column):
    """The sums (outputs,) at one place of a convolution of values (inputs, H, W), by loops."""
    reach, result = weight.shape[-1] // 2, bias.clone()
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            y, x = row + down, column + right
            if 0 <= y < values.shape[1] and 0 <= x < values.shape[2]:
                result += weight[:, :, down + reach, right + reach] @ values[:, y, x]
    return result


def test_the_convolutional_lstm_is_an_lstm_at_each_place():
    """Shi et al. 2015, equation 3, without connections from the memory to the gates."""
    cell, width = ConvLSTMCell(2, 3, 3), 3
    inputs, hidden, memory = (noise(1, channels, 4, 5, seed=channels) for channels in (2, 3, 3))
    with torch.no_grad():
        new_hidden, new_memory = cell(inputs, (hidden, memory))
    values = torch.cat([inputs, hidden], 1)[0]
    for row in range(4):
        for column in range(5):
            gates = convolved(values, cell.gates.weight.data, cell.gates.bias.data, row, column)
            for channel in range(width):
                inward, forget, outward, content = (float(gates[channel + part * width]) for part in range(4))
                kept = float(memory[0, channel, row, column]) / (1 + math.exp(-forget))
                expected = kept + math.tanh(content) / (1 + math.exp(-inward))
                assert math.isclose(new_memory[0, channel, row, column], expected, abs_tol=1e-5)
                shown = math.tanh(expected) / (1 + math.exp(-outward))
                assert math.isclose(new_hidden[0, channel, row, column], shown, abs_tol=1e-5)


def test_the_convolutional_gru_is_a_gru_at_each_place():
    """Ballas et al. 2016, equations 7 to 10."""
    cell, width = ConvGRUCell(2, 3, 3), 3
    inputs, hidden = noise(1, 2, 4, 4), noise(1, 3, 4, 4, seed=1)
    with torch.no_grad():
        (found,) = cell(inputs, (hidden,))
    values, reset = torch.cat([inputs, hidden], 1)[0], torch.zeros(width, 4, 4)
    places = [(row, column) for row in range(4) for column in range(4)]
    gates = {
        place: convolved(values, cell.gates.weight.data, cell.gates.bias.data, *place) for place in places
    }
    for row, column in places:
        reset[:, row, column] = gates[row, column][width:].sigmoid()
    values = torch.cat([inputs[0], reset * hidden[0]])
    for row, column in places:
        content = convolved(values, cell.content.weight.data, cell.content.bias.data, row, column).tanh()
        update = gates[row, column][:width].sigmoid()
        expected = (1 - update) * hidden[0, :, row, column] + update * content
        assert torch.allclose(found[0, :, row, column], expected, atol=1e-5)


def test_a_forecast_goes_on_from_its_own_frames():
    task = build().eval()
    frames = clips()[:, :3]
    with torch.no_grad():
        long = task.forecast(frames, 4)
        assert torch.allclose(task.forecast(frames, 2), long[:, :2], atol=1e-6)
        one = task.forecast(frames, 1)
        again = task.forecast(torch.cat([frames, one], 1), 3)
    assert long.shape == (4, 4, 1, SIDE, SIDE) and torch.allclose(again, long[:, 1:], atol=1e-5)


def test_later_frames_do_not_change_a_loss_except_as_targets_unless_they_are_forced():
    """Without teacher forcing the predictions depend on the input frames alone."""
    first, other = clips(), clips(seed=1)
    mixed = torch.cat([first[:, :3], other[:, 3:]], 1)
    for steps, differs in ((0, False), (10**9, True)):
        task = build(teacher_forcing_steps=steps)
        predicted = [task._next_logits(each, 5, Noise.whole(0, 4, step=1)) for each in (first, mixed)]
        assert torch.equal(predicted[0][:, :3], predicted[1][:, :3])
        assert torch.equal(*(each[:, 3:] for each in predicted)) != differs
    late = build(teacher_forcing_steps=5)
    predicted = [late._next_logits(each, 5, Noise.whole(0, 4, step=5)) for each in (first, mixed)]
    assert torch.equal(*predicted)


@pytest.mark.parametrize("loss", ["mse", "l1", "bce"])
def test_the_loss_is_summed_over_pixels_and_averaged_over_frames_and_clips(loss):
    task = build(loss=loss)
    batch, noise = Batch({"clip": clips()}), Noise.whole(0, 4)
    value, logged = task.loss("rcnn", batch, noise)
    predicted, true = task._next_logits(clips(), 5, noise).sigmoid(), clips()[:, 1:]
    errors = {
        "mse": (predicted - true) ** 2,
        "l1": (predicted - true).abs(),
        "bce": -true * predicted.log() - (1 - true) * (1 - predicted).log(),
    }[loss]
    assert torch.isclose(value, errors.sum() / (4 * 5), rtol=1e-5)
    task.config = task.config.model_copy(update={"ssim_weight": 7.0})
    similarities = torch.stack([ssim(*pair) for pair in zip(predicted.unbind(1), true.unbind(1))])  # (5, 4)
    expected = value + 7 * (1 - similarities.mean())
    assert torch.isclose(task.loss("rcnn", batch, noise)[0], expected, rtol=1e-5)
    squares = ((predicted - true)[:, 2:] ** 2).sum() / (4 * 3)
    assert torch.isclose(logged["frame_mse"], squares, rtol=1e-5)
    assert torch.isclose(task.eval().evaluate(batch, noise)["frame_mse"].mean(), squares, rtol=1e-5)


def test_the_first_forecast_has_the_brightness_of_the_data():
    task, bright = build(), clips().mul(40).byte().numpy()
    task.on_train_start(Split([{"clip": bright}], task.spec))
    with torch.no_grad():
        task.network.output.weight.zero_()
        predicted = task.forecast(clips(), 1)
    assert abs(float(predicted.mean()) - bright.mean() / 255) < 1e-4


def test_a_classifier_needs_labels_and_a_forecaster_frames_to_predict():
    with pytest.raises(BadInput, match="label"):
        build(task="classify")
    with pytest.raises(ValidationError, match="ssim_weight"):
        RcnnConfig(task="classify", ssim_weight=1.0)
    with pytest.raises(ValidationError, match="kernel_size must be odd"):
        RcnnConfig(kernel_size=4)
    with pytest.raises(BadInput, match="input_frames"):
        build(input_frames=NUM_FRAMES)


def test_it_learns_to_move_a_square():
    """A few steps are enough to be better than the last frame."""
    places = Noise.whole(0, 32).integers("places", 4, 2)
    frames = torch.zeros(32, NUM_FRAMES, 1, 16, 16)
    for clip, (top, left) in zip(frames, places.tolist()):
        for number, frame in enumerate(clip):
            frame[0, top + number : top + number + 4, left + number : left + number + 4] = 1
    spec = DataSpec({"clip": Field("clip", (NUM_FRAMES, 1, 16, 16))})
    task = model_files.build("rcnn", {"width": 16}, spec, seed=0)
    optimizer = torch.optim.Adam(task.parameters(), 0.01)
    for step in range(80):
        optimizer.zero_grad()
        task.loss("rcnn", Batch({"clip": frames}), Noise.whole(0, 32, step=step))[0].backward()
        optimizer.step()
    copied = (frames[:, 2:3] - frames[:, 3:]).square().flatten(2).sum(2).mean()
    assert task.eval().evaluate(Batch({"clip": frames}), Noise.whole(0, 32))["frame_mse"].mean() < copied / 2

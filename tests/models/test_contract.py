"""What every model must do, with its default settings and with each variant in tests/models/variants.

A new model in pipeline/models is tested here automatically.

The tests with marker ``gpu`` are the same ones on a GPU.
"""

import copy

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.batch import Batch
from pipeline.core.checkpoint import load_state_dict, state_dict
from pipeline.core.determinism import make_deterministic
from pipeline.core.distributed import DistributedContext
from pipeline.core.ema import ExponentialMovingAverage
from pipeline.core.noise import Noise
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.core.task import Ratio
from pipeline.params import validate
from tests.arrays import ArrayDataset, spec_for
from tests.models import variants

SHAPES = [(1, 8, 2), (3, 13, 5)]  # channels, size, classes
IDS = ["grey 8x8", "rgb 13x13"]
pytestmark = pytest.mark.parametrize("name", [*model_files.names(), *variants.PARAMS])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """The device of a test. On a GPU only deterministic kernels are used, as in a training."""
    if request.param == "cpu":
        yield "cpu"
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cudnn.allow_tf32 = False
    make_deterministic(torch.get_num_threads())
    yield "cuda"
    torch.set_deterministic_debug_mode("default")


def spec_of(name, shape=SHAPES[0]):
    """The fields that the model ``name`` learns from."""
    model, settings = variants.ALL.get(name, (name, {}))
    return spec_for(model, *shape, labelled=settings.get("task") == "classify")


def kind_of(name):
    """The class and the configuration of a model or of a variant of one."""
    model, settings = variants.ALL.get(name, (name, {}))
    kind = model_files.find(model)
    return kind, validate(settings, kind.Config, where=name)


def build(name, device="cpu", shape=SHAPES[0], seed=0):
    kind, config = kind_of(name)
    needs = {need: build(need, shape=shape) for need in kind.needs}
    spec = spec_of(name, shape)
    task = model_files.build(name.partition("/")[0], config, spec, seed, needs).to(device)
    if {"image", "label"} == set(spec.fields):
        task.on_train_start(ArrayDataset(*shape).train)
    if getattr(task, "private", None):
        task.private.begin(TrainingSettings(num_steps=4, batch_size=6), 96, b"key")
    return task


def batch(task, count=6):
    """Random examples."""
    random = noise(task, count, seed=7)
    return Batch(
        {
            name: random.uniform(name, *field.shape)
            if field.kind in ("image", "clip")
            else random.integers(name, field.num_values, *field.shape)
            for name, field in task.spec.fields.items()
        }
    )


def noise(task, count=6, phase="", step=0, seed=0):
    return Noise.whole(seed, count, phase, step, task.device)


def make_step(task, settings=TrainingSettings(), microbatch=0):  # noqa: B008 - it is frozen
    return Step(task, task.phases(), settings, DistributedContext(device=task.device, microbatch=microbatch))


def own(task):
    """The parameters that are trained: not those of needed models."""
    needed = {id(value) for name in task.needs for value in getattr(task, name).parameters()}
    return {name: value for name, value in task.named_parameters() if id(value) not in needed}


def weights(task):
    return {name: value.clone() for name, value in task.state_dict().items()}


def test_initial_weights_depend_on_the_seed_alone(name, device):
    same, again, other = build(name, device), build(name, device), build(name, device, seed=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(same.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert any(not torch.equal(a, b) for a, b in zip(same.parameters(), other.parameters(), strict=True))


def test_phases_share_a_module_or_no_parameter_and_leave_none_out(name, device):
    task = build(name, device)
    modules = {id(phase.module): phase for phase in task.phases()}
    owned = [id(parameter) for phase in modules.values() for parameter in phase.module.parameters()]
    assert len(owned) == len(set(owned)) and set(owned) == {id(value) for value in own(task).values()}
    for phase in task.phases():
        stepped = {id(parameter) for group in phase.optimizer.param_groups for parameter in group["params"]}
        assert stepped == {id(parameter) for parameter in phase.module.parameters()}


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_every_loss_is_a_finite_scalar_and_the_losses_of_a_module_reach_all_of_its_parameters(
    name, device, shape
):
    task = build(name, device, shape)
    for phase in task.phases():
        loss, values = task.loss(phase.name, batch(task, 40), noise(task, 40, phase.name))
        assert loss.dim() == 0 and loss.isfinite()
        assert all(value.dim() == 0 and value.isfinite() for value in values.values())
        loss.backward(inputs=list(phase.module.parameters()))
    without = [key for key, parameter in own(task).items() if parameter.grad is None]
    assert not without, f"{name}: no gradient for {without}"


def test_the_loss_of_a_batch_is_the_mean_of_its_parts(name, device):
    """So that workers, each with its rows, average to the global loss."""
    task = build(name, device)
    whole = batch(task, 8)
    task.eval()
    for phase in task.phases():
        total = task.loss(phase.name, whole, noise(task, 8, phase.name, 1))[0]
        parts = [
            task.loss(phase.name, whole.rows(a, b), noise(task, 8, phase.name, 1).rows(a, b))[0]
            for a, b in ((0, 4), (4, 8))
        ]
        assert torch.allclose(total, sum(parts) / 2, rtol=1e-5)


def test_microbatches_give_the_same_step_as_the_whole_batch(name, device):
    """Only the rounding differs, also with spectral norms, penalties and a smaller last piece."""
    ended = []
    for microbatch in (0, 4):
        task = build(name, device)
        step = make_step(task, TrainingSettings(l2=1e-3), microbatch)
        metrics = [step.run(number, batch(task), noise(task, step=number)) for number in (1, 2, 3)]
        ended.append((weights(task), metrics))
    (whole, whole_metrics), (pieces, pieces_metrics) = ended
    assert all(torch.allclose(whole[key], pieces[key], atol=5e-5, rtol=0) for key in whole)
    for one, two in zip(whole_metrics, pieces_metrics, strict=True):
        assert all(torch.allclose(value, two[key], atol=1e-4, rtol=1e-4) for key, value in one.items())


def test_steps_are_repeatable_and_change_each_phases_network(name, device):
    results = []
    for _ in range(2):
        task = build(name, device)
        before, step = weights(task), make_step(task)
        for number in (1, 2, 3):
            step.run(number, batch(task), noise(task, step=number))
        results.append(weights(task))
        changed = {key for key, value in before.items() if not torch.equal(value, results[-1][key])}
        for phase in task.phases():
            mine = {id(parameter) for parameter in phase.module.parameters()}
            assert changed & {key for key, value in task.named_parameters() if id(value) in mine}
        assert not changed & (dict(task.named_parameters()).keys() - own(task).keys())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_evaluation_gives_finite_values_of_each_example_and_changes_nothing(name, device, shape):
    task = build(name, device, shape).eval()
    before = weights(task)
    with torch.no_grad():
        values = task.evaluate(batch(task), noise(task))
    assert values
    for value in values.values():
        if isinstance(value, Ratio):
            assert len(value.numerator) == 6 and value.numerator.shape == value.denominator.shape
            assert (value.denominator >= 0).all() and value.numerator.isfinite().all()
        else:
            assert value.shape == (6,) and value.isfinite().all()
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_output_images_have_the_shape_and_range_of_the_input(name, device, shape):
    task = build(name, device, shape).eval()
    shown = batch(task)
    with torch.no_grad():
        task.on_train_end([batch(task, 40)])
        preview = task.preview(batch(task, 64), noise(task, 64))
        if preview is not None:
            assert len(preview.images) and len(preview.images) % preview.columns == 0
            assert preview.images.min() >= 0 and preview.images.max() <= 1
        if "image" not in task.spec.fields or "label" not in task.spec.fields:
            return
        drawn = [task.generate(labels, 6, noise(task)) for labels in (None, shown.labels)]
        for images in [*drawn, task.reconstruct(shown.images)]:
            if images is not None:
                assert images.shape == shown.images.shape and images.min() >= 0 and images.max() <= 1
        assert all((a is None) == (drawn[0] is None) for a in drawn)
        logits, features = task.classify(shown.images), task.features(shown.images)
        assert (logits is None) == (features is None)
        if logits is not None:
            assert logits.shape == (6, task.spec.classes)
            assert features.shape[0] == 6 and features.dim() == 2


def test_a_model_classifies_generates_reconstructs_or_draws_a_preview(name, device):
    task = build(name, device).eval()
    shown = batch(task)
    if {"image", "label"} - task.spec.fields.keys():
        measured = task.evaluate(shown, noise(task))
        assert "accuracy" in measured or task.preview(shown, noise(task)) is not None
        return
    outputs = (
        task.classify(shown.images),
        task.generate(None, 6, noise(task)),
        task.reconstruct(shown.images),
    )
    assert any(output is not None for output in outputs)


def test_generated_images_depend_only_on_the_noise(name, device):
    task = build(name, device).eval()
    drawn = task.generate(None, 4, noise(task, 4, seed=3))
    if drawn is not None:
        assert torch.equal(drawn, task.generate(None, 4, noise(task, 4, seed=3)))
        assert not torch.equal(drawn, task.generate(None, 4, noise(task, 4, seed=4)))


def test_training_resumes_from_a_checkpoint_bit_for_bit(name, device):
    settings = TrainingSettings(ema_decay=0.9)

    def start(seed=0):
        task = build(name, device, seed=seed)
        phases, average = task.phases(), ExponentialMovingAverage(task, 0.9)
        return phases, average, Step(task, phases, settings, DistributedContext(device=task.device))

    def run(step, average, numbers):
        for number in numbers:
            step.run(number, batch(step.task), noise(step.task, step=number))
            average.update(number)

    phases, average, step = start()
    run(step, average, (1, 2))
    state = {key: value.clone() for key, value in state_dict(average, phases).items()}
    run(step, average, (3, 4))

    phases_again, average_again, step_again = start(seed=5)
    load_state_dict(state, average_again, phases_again)
    run(step_again, average_again, (3, 4))
    first, second = state_dict(average, phases), state_dict(average_again, phases_again)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_written_model_loads_with_the_same_outputs(name, device, tmp_path):
    task = build(name, device).eval()
    task.on_train_end([batch(task, 40)])
    task.calibrate([batch(task, 40)])
    card = model_files.write(task, tmp_path / name, {"fingerprint": "f"})
    again = model_files.load(tmp_path / name, device)
    assert card["name"] == name.partition("/")[0] and model_files.read_card(tmp_path / name) == card
    assert all(
        torch.equal(a, b)
        for a, b in zip(task.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["model.json", "model.safetensors"]


def test_configuration_survives_json(name):
    kind, config = kind_of(name)
    assert kind.Config.model_validate_json(config.model_dump_json()) == config


def test_a_copy_for_averaging_is_independent(name, device):
    task = build(name, device)
    twin = copy.deepcopy(task)
    make_step(task).run(1, batch(task), noise(task, step=1))
    assert any(not torch.equal(a, b) for a, b in zip(task.parameters(), twin.parameters(), strict=True))

"""What a model can do is found by trying it on an example of its data."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.abilities import Ability, abilities
from pipeline.core.fields import DataSpec, Field
from tests.arrays import batch_of
from tests.core.fake import TwoScalars

SPEC = DataSpec.labelled_images(1, 8, 3)
SMALL = {"gan": {"width": 8}, "vae": {"width": 8}, "ae": {"width": 8}, "cnn": {"channels": [4], "dense": [8]}}
MAKES = {Ability.GENERATE, Ability.USES_LABELS, Ability.DECODE}
REBUILDS = {Ability.RECONSTRUCT, Ability.ENCODE}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn", {Ability.CLASSIFY, Ability.FEATURES}),
        ("gan", MAKES),
        ("vae", MAKES | REBUILDS),
        ("ae", MAKES | REBUILDS),
    ],
)
def test_the_abilities_of_a_trained_model(name, expected):
    task = model_files.build(name, SMALL[name], SPEC, 0).eval()
    labels = torch.arange(30) % 3
    images = (
        torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        * (labels[:, None, None, None] + 1)
        / 3
    )
    if name == "ae":
        assert abilities(task) == REBUILDS  # it generates only after its training
        task.on_train_end([batch_of(images, labels)])
    assert abilities(task) == expected


def test_without_regard_to_labels_a_generator_does_not_use_them():
    class Unconditional(TwoScalars):
        def generate(self, labels, count, noise):
            return noise.uniform("image", 1, 8, 8)

    assert abilities(Unconditional()) == {Ability.GENERATE}


def test_an_unconditional_model_does_not_draw_each_class():
    class Unconditional(TwoScalars):
        drawn = 0

        def generate(self, labels, count, noise):
            self.drawn += 1
            return noise.uniform("image", 1, 8, 8)

    task = Unconditional()
    task.config = SimpleNamespace(conditional=False)
    assert abilities(task) == {Ability.GENERATE} and task.drawn == 1


def test_what_a_model_makes_of_other_data_is_no_ability_with_images():
    class Clips(TwoScalars):
        def generate(self, labels, count, noise):
            return torch.zeros(count, 4, 1, 8, 8)

        def classify(self, images):
            return torch.zeros(len(images), 2, 8, 8)  # a label map

    assert abilities(Clips()) == frozenset()

    task = Clips()
    task.spec = DataSpec({"clip": Field("clip", (4, 1, 8, 8))})
    assert abilities(task) == frozenset()


@pytest.mark.parametrize(
    ("fields", "ability", "method"),
    [
        (
            {"image": Field("image", (1, 8, 8)), "mask": Field("label_map", (8, 8), 3)},
            Ability.SEGMENT,
            {"segment": lambda images: torch.zeros(len(images), 3, 8, 8)},
        ),
        (
            {"clip": Field("clip", (4, 1, 8, 8))},
            Ability.FORECAST,
            {"forecast": lambda frames, count: frames[:, -1:].expand(-1, count, -1, -1, -1)},
        ),
    ],
)
def test_masks_and_clips_have_abilities_of_their_own(fields, ability, method):
    task = TwoScalars()
    task.spec = DataSpec(fields)
    assert abilities(task) == frozenset()
    for name, function in method.items():
        setattr(task, name, function)
    assert abilities(task) == {ability}


def test_a_model_that_draws_the_missing_part_of_an_image_completes():
    class Completes(TwoScalars):
        def complete(self, images, known, noise, labels=None):
            return images * known

    assert abilities(Completes()) == {Ability.COMPLETE}

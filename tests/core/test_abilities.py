"""What a model can do is found by trying it on an example of its data."""

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.abilities import Ability, abilities
from pipeline.core.task import DataSpec
from pipeline.errors import BadInput
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


def test_what_a_model_makes_of_other_data_is_no_ability_with_images():
    class Clips(TwoScalars):
        def generate(self, labels, count, noise):
            return torch.zeros(count, 4, 1, 8, 8)

        def classify(self, images):
            return torch.zeros(len(images), 2, 8, 8)  # a label map

    assert abilities(Clips()) == frozenset()

    class NoImages:
        @property
        def channels(self):
            raise BadInput("the data has no field 'image'")

    task = Clips()
    task.spec = NoImages()
    assert abilities(task) == frozenset()

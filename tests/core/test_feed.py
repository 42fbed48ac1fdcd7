"""All feeds return the same batches."""

import numpy as np
import pytest
import torch

from pipeline.core import feed
from pipeline.core.dataset import Split
from pipeline.core.fields import DataSpec
from pipeline.core.sampler import Sampler

CPU = torch.device("cpu")


@pytest.fixture
def split():
    random = np.random.default_rng(0)
    sizes = (5000, 3000)  # more than ResidentFeed copies at once
    shards = [
        {"image": random.integers(0, 256, (n, 1, 2, 2), dtype=np.uint8), "label": random.integers(0, 9, n)}
        for n in sizes
    ]
    return Split(shards, DataSpec.labelled_images(1, 2, 9))


@pytest.mark.parametrize("kind", [feed.ResidentFeed, feed.Prefetcher])
def test_every_feed_returns_the_batches_of_the_shards(split, kind):
    sampler = Sampler(3, split.shard_sizes, 64)
    indices = lambda step: sampler.indices(step)[10:30]  # of one worker
    get_batch = kind(split, CPU, indices)
    for step in (1, 2, 3, 9, 10, 4, 125, 126):  # also after a jump, and into the next epoch
        batch, expected = get_batch(step), split.batch(indices(step), CPU)
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.labels, expected.labels)
        assert batch.images.stride() == expected.images.stride() and batch.images.dtype == torch.float32


def test_the_next_batch_is_read_while_this_one_is_used(split):
    steps = []
    prefetcher = feed.Prefetcher(split, CPU, lambda step: steps.append(step) or np.arange(4))
    prefetcher(5)
    prefetcher.thread.shutdown()
    assert steps == [5, 6]


def test_an_error_in_the_thread_is_raised_when_the_batch_is_requested(split):
    with pytest.raises(IndexError, match="-1"):
        feed.Prefetcher(split, CPU, lambda step: np.array([-1]))(1)


@pytest.mark.parametrize(
    ("free", "way"), [(4 * 8000 * 12, "ResidentFeed"), (4 * 8000 * 12 - 1, "Prefetcher")]
)
def test_a_gpu_keeps_what_fits_into_a_quarter_of_its_free_memory(split, monkeypatch, free, way):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    for name in ("ResidentFeed", "Prefetcher"):
        monkeypatch.setattr(feed, name, lambda *given, name=name: name)
    assert feed.make_feed(split, torch.device("cuda"), None) == way
    assert (
        feed.make_feed(split, CPU, lambda step: np.arange(step))(3).labels.tolist()
        == split.labels[:3].tolist()
    )

"""The ways of the examples to the device."""

import numpy as np
import pytest
import torch

from pipeline.core import feed
from pipeline.core.dataset import Split
from pipeline.core.sampler import Sampler

CPU = torch.device("cpu")


@pytest.fixture
def split():
    random = np.random.default_rng(0)
    sizes = (5000, 3000)  # more than ResidentFeed copies at once
    return Split(
        [random.integers(0, 256, (n, 1, 2, 2), dtype=np.uint8) for n in sizes],
        [random.integers(0, 9, n) for n in sizes],
    )


@pytest.mark.parametrize("way", [feed.ResidentFeed, feed.Prefetcher])
def test_every_way_gives_the_batches_that_the_shards_hold(split, way):
    order = Sampler(3, split.shard_sizes, 64)
    places = lambda step: order.indices(step)[10:30]  # of one worker
    made = way(split, CPU, places)
    for step in (1, 2, 3, 9, 10, 4, 125, 126):  # also after a jump, and into the next epoch
        given, wanted = made(step), feed.read_batch(split, CPU, places, step)
        assert torch.equal(given.images, wanted.images) and torch.equal(given.labels, wanted.labels)
        assert given.images.stride() == wanted.images.stride() and given.images.dtype == torch.float32


def test_the_next_batch_is_made_ready_while_this_one_is_used(split):
    asked = []
    ahead = feed.Prefetcher(split, CPU, lambda step: asked.append(step) or np.arange(4))
    ahead(5)
    ahead.thread.shutdown()
    assert asked == [5, 6]


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_asked_for(split):
    with pytest.raises(IndexError, match="-1"):
        feed.Prefetcher(split, CPU, lambda step: np.array([-1]))(1)


@pytest.mark.parametrize(("free", "way"), [(4 * 8000 * 4, "ResidentFeed"), (4 * 8000 * 4 - 1, "Prefetcher")])
def test_a_gpu_keeps_what_fits_into_a_quarter_of_its_free_memory(split, monkeypatch, free, way):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    for name in ("ResidentFeed", "Prefetcher"):
        monkeypatch.setattr(feed, name, lambda *given, name=name: name)
    assert feed.make_feed(split, torch.device("cuda"), None) == way
    assert (
        feed.make_feed(split, CPU, lambda step: np.arange(step))(3).labels.tolist()
        == split.labels[:3].tolist()
    )

"""What identifies a registered version: its weights, and the settings that its answers depend on."""

from collections.abc import Mapping
from typing import Any

from pipeline.files import digest_of

KEYS = ("name", "config", "spec", "needs", "class_names", "fit", "bit_depth", "sha256")  # of a model.json


def of_card(card: Mapping[str, Any]) -> dict[str, str]:
    """The ``sha256`` of a model's weights, and a ``digest`` of them with its settings. ``card``: model.json.

    Models with the same weights can answer otherwise, such as a GAN with another truncation. A setting that
    is None counts as one that is not there, as in cards that were written before it existed.
    """
    return {"sha256": card["sha256"], "digest": digest_of([_given(card.get(key)) for key in KEYS])}


def _given(value: Any) -> Any:
    is_mapping = isinstance(value, Mapping)
    return {key: _given(each) for key, each in value.items() if each is not None} if is_mapping else value


def tags(card: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """The identity as tags of MLflow; of an evaluation, with the ``name`` of the model."""
    return {f"darkroom.{key}{name and f'.{name}'}": value for key, value in of_card(card).items()}


def of_tags(tags: Mapping[str, str], name: str = "") -> dict[str, str]:
    """The identity that :func:`tags` has stored; '' for what an earlier version of Darkroom did not."""
    return {key: tags.get(f"darkroom.{key}{name and f'.{name}'}", "") for key in ("sha256", "digest")}

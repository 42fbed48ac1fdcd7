"""A model card (Mitchell et al. 2019): what the model is, its training data, its results and its limits."""

import inspect
from collections.abc import Mapping
from typing import Any

from pipeline.core import model_files
from pipeline.core.fields import DataSpec
from pipeline.estimate import Estimate

NOT_MEASURED = "Not measured yet: `dvc repro evaluate`."
MEASURED, LIMITS = "## Measured", "## Limits"


def text(card: Mapping[str, Any]) -> str:
    """The card of a model as Markdown. ``card``: its model.json."""
    kind, spec = model_files.find(card["name"]), DataSpec.from_json(card["spec"])
    names = card.get("class_names", [])
    classes = f", {len(names)} classes ({', '.join(names[:20])})" if names else ""
    shapes = [(name, " x ".join(map(str, field.shape))) for name, field in spec.fields.items() if field.shape]
    fields = ", ".join(f"{name} {shape}" for name, shape in shapes)
    training = card.get("training", {})
    data = card.get("data", "unknown")
    parts = [
        f"# {card['name']}",
        inspect.cleandoc(inspect.getmodule(kind).__doc__ or ""),  # type: ignore[union-attr]
        "## Data",
        f"{card.get('source', 'unnamed')}, {card.get('images', 'an unknown number of')} training examples "
        f"({fields}){classes}. SHA-256 of the data: `{data}`.",
        "## Training",
        f"{training.get('num_steps', '?')} steps of {training.get('batch_size', '?')} examples, seed "
        f"{training.get('seed', '?')}, {card.get('parameters', '?')} parameters. SHA-256 of the weights: "
        f"`{card['sha256']}`; fingerprint of the training: `{card.get('fingerprint', 'unknown')}`.",
        *_privacy(card),
        MEASURED,
        NOT_MEASURED,
        LIMITS,
        "The model is meant for data like its training data; for other data its results mean nothing. Every "
        "image is made square and scaled to the size above. Distances (FID, KID) compare models of one "
        "project only. Fairness and robustness against attacks were not examined, nor privacy beyond the "
        "measures `memorisation`, `copies` and the attacks on membership, if they are listed above.",
    ]
    return "\n\n".join(parts) + "\n"


def _privacy(card: Mapping[str, Any]) -> list[str]:
    if not (privacy := card["config"].get("privacy")):
        return []
    begun = " counted from its initial weights on," if card.get("training", {}).get("initial_weights") else ""
    return [
        f"Trained with differential privacy:{begun} epsilon {privacy['epsilon']:g} at delta "
        f"{privacy['delta']:g} for each training image, compared with a training without it (gradients are "
        f"clipped to the norm {privacy['max_grad_norm']:g}). This is about the weights alone: measures and "
        "pictures of training images, the SHA-256 of the data above, other trainings with the same images, "
        "and the choice of settings are not counted."
    ]


def measured(text: str, numbers: Mapping[str, Estimate], protocol: str) -> str:
    """The card ``text`` with a table of results. ``protocol``: the digest of how they were measured."""
    rows = ["| measure | value | 95 % interval | floor |", "| --- | --- | --- | --- |"]
    for name, estimate in numbers.items():
        shown = {part: f"{number:.4g}" for part, number in estimate.to_json().items()}
        interval = f"{shown['low']} to {shown['high']}" if {"low", "high"} <= set(shown) else ""
        rows.append(f"| {name} | {shown['value']} | {interval} | {shown.get('floor', '')} |")
    before, _, after = text.partition(MEASURED)
    table = "\n".join(rows) + (f"\n\nProtocol: `{protocol}`." if protocol else "")
    return f"{before}{MEASURED}\n\n{table}\n\n{LIMITS}{after.partition(LIMITS)[2]}"

"""A model's card: what it is, what it was trained on, how well it does, and what it is not good for (Mitchell et al. 2019)."""

import inspect
from collections.abc import Mapping
from typing import Any

from pipeline.core import model_files

NOT_MEASURED = "Not measured yet: `dvc repro evaluate`."
MEASURED, LIMITS = "## Measured", "## Limits"


def text(card: Mapping[str, Any]) -> str:
    """Markdown for the model whose model.json is ``card``."""
    kind, spec = model_files.find(card["name"]), card["spec"]
    classes = ", ".join(card.get("class_names", [])[:20])
    shape = f"{spec['channels']} x {spec['size']} x {spec['size']}"
    training = card.get("training", {})
    parts = [
        f"# {card['name']}",
        inspect.cleandoc(inspect.getmodule(kind).__doc__ or ""),  # type: ignore[union-attr]
        "## Data",
        f"{card.get('source', 'unnamed')}, {card.get('images', 'an unknown number of')} training images of {shape}, "
        f"{spec['classes']} classes ({classes}). SHA-256 of the data: `{card.get('data', 'unknown')}`.",
        "## Training",
        f"{training.get('num_steps', '?')} steps of {training.get('batch_size', '?')} images, seed {training.get('seed', '?')}, "
        f"{card.get('parameters', '?')} parameters. SHA-256 of the weights: `{card['sha256']}`; fingerprint of the training: "
        f"`{card.get('fingerprint', 'unknown')}`.",
        MEASURED,
        NOT_MEASURED,
        LIMITS,
        f"It knows images like those above and no others: an image is cut to its central square and scaled to {spec['size']} pixels, and "
        "one of another kind gets an answer all the same. Distances (FID, KID) compare models of one project only. It was not examined "
        "for fairness, for robustness against attacks, or for what it may reveal of single training images beyond the measure "
        "`memorisation`.",
    ]
    return "\n\n".join(parts) + "\n"


def measured(text: str, numbers: Mapping[str, float], protocol: str) -> str:
    """The card ``text`` with these measures, as ``evaluate`` flattens them, and the digest of the protocol that they were taken by."""
    rows = ["| measure | value | 95 % interval | floor |", "| --- | --- | --- | --- |"]
    for name, value in numbers.items():
        if not (name.endswith(("_low", "_high", "_floor")) and name.rpartition("_")[0] in numbers):
            low, high, floor = (numbers.get(f"{name}_{part}") for part in ("low", "high", "floor"))
            interval = f"{low:.4g} to {high:.4g}" if low is not None and high is not None else ""
            rows.append(f"| {name} | {value:.4g} | {interval} | {'' if floor is None else f'{floor:.4g}'} |")
    before, _, after = text.partition(MEASURED)
    table = "\n".join(rows) + (f"\n\nProtocol: `{protocol}`." if protocol else "")
    return f"{before}{MEASURED}\n\n{table}\n\n{LIMITS}{after.partition(LIMITS)[2]}"

"""Rules that say in words what is wrong with a result.

Each rule looks at one model, or at the network that compares images, and gives a sentence and a remedy.
The report shows them, ``details.json`` stores them, and ``darkroom doctor`` repeats them. To add a rule,
write a function and list it in ``RULES``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.estimate import Estimate
from pipeline.evaluation import glossary
from pipeline.evaluation.evaluators import membership
from pipeline.files import read_json

WARNINGS = "warnings"  # the key of the results that is not a model
# Skill: 0 for always answering the most frequent class, 1 for no mistake.
LEAST_SKILL = 0.5  # of a classifier whose features compare images
NO_SKILL = 0.1  # below it nothing was learned about the classes
LEAST_REAL_PRECISION = 0.6  # of real images against real ones
LEAST_FEATURES = 16
LEAST_IMAGES = 1000  # from which a classifier learned its features
COLLAPSED = 0.15  # precision, recall, coverage or diversity, as a share of real images'
MEMORISED = 0.9  # lower end of the probability to be nearer to a training image than unseen images are
COPIES = 0.02  # lower end of the share of copies among generated images, less that among unseen ones
BLURRED = 0.5  # sharpness, as a share of real images'
GAP = 8.0  # FID of samples above its floor, in units of that of reconstructions
AGREEMENT = 0.85  # label agreement below which such a gap matters, as a share of real images'


@dataclass(frozen=True)
class Warned:
    """``rule`` is the name of the rule; ``what`` is wrong, in a sentence; ``remedy`` says what to do."""

    rule: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Evidence:
    """The measures of one model, and what is needed to judge them."""

    name: str
    measured: Mapping[str, Estimate]
    accuracy: Estimate | None = None  # of the classifier of its data, balanced if classes are uneven
    training_images: int | None = None  # of its data
    dimensions: int | None = None  # if ``name`` is a network by which images are compared; the least it has
    compared: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)  # the models compared by it

    def share(self, quantity: str) -> float | None:
        """The value as a share of real images'; None if it is not measured."""
        estimate = self.measured.get(quantity)
        return estimate.value / estimate.floor if estimate and estimate.floor else None

    def show(self, *quantities: str) -> str:
        """The measured ones of ``quantities``: name, value, and that of real images or the trivial rule."""
        return ", ".join(
            f"{glossary.measure(name).title} {_number(name, self.measured[name].value)}"
            + (f" (real images: {_number(name, floor)})" if (floor := self.measured[name].floor) else "")
            for name in quantities
            if name in self.measured
        )


def weak_features(evidence: Evidence) -> Warned | None:
    """The classifier that compares images makes many mistakes, or tells real images from real ones."""
    found, accuracy = [], balanced(evidence.measured)
    if accuracy and skill(accuracy) < LEAST_SKILL:
        found.append(_recognises(evidence.measured))
    floors = [each["precision"].floor or 0.0 for each in evidence.compared.values() if "precision" in each]
    if floors and min(floors) < LEAST_REAL_PRECISION:
        found.append(f"gives real images a precision of {min(floors):.1%} against real images")
    if not found or not evidence.compared:
        return None
    what = (
        f"{evidence.name}, by which images of {', '.join(evidence.compared)} are compared, "
        f"{' and '.join(found)}: FID, KID, precision, recall, density and coverage say little"
    )
    remedy = f"train {evidence.name} longer or with other settings, or set evaluate.feature_network"
    return Warned("weak features", what, remedy)


def small_features(evidence: Evidence) -> Warned | None:
    """The network that compares images is small, or a classifier that learned from few images."""
    found, dimensions, images = [], evidence.dimensions, evidence.training_images
    if dimensions is None:
        return None
    if dimensions < LEAST_FEATURES:
        found.append(f"has {dimensions} features (at least {LEAST_FEATURES} are advised)")
    if "accuracy" in evidence.measured and images is not None and images < LEAST_IMAGES:
        found.append(f"learned from {images:,} images (at least {LEAST_IMAGES:,} are advised)")
    if not found:
        return None
    what = f"{evidence.name}, by which images are compared, {' and '.join(found)}: distances are coarse"
    return Warned(
        "small features", what, "use a larger classifier or more images, or evaluate.feature_network"
    )


def shuffled_labels(evidence: Evidence) -> Warned | None:
    """A classifier is no better than chance on the test images."""
    accuracy, training = balanced(evidence.measured), evidence.measured.get("training_accuracy")
    if not accuracy or skill(accuracy) >= NO_SKILL:
        return None
    known = f", {training.value:.1%} of the training images" if training else ""
    learned = training is not None and skill(training) > 0.5
    why = (
        "it knows the training images by heart: their labels do not belong to the images"
        if learned
        else "it learned nothing about the classes: the labels were shuffled, or the training failed"
    )
    what = f"{evidence.name} {_recognises(evidence.measured)}{known}; {why}"
    remedy = "compare labels and images (data/processed/*/contact-sheet.png, darkroom inspect)"
    return Warned("shuffled labels", what, f"{remedy}; then look at the curves of the training")


def ignored_labels(evidence: Evidence) -> Warned | None:
    """Generated images do not show the class that was asked for."""
    agreement, accuracy = balanced(evidence.measured, "label_agreement"), evidence.accuracy
    if not agreement or not accuracy or skill(accuracy) < 0.5:  # its answers would mean little
        return None
    if skill(Estimate(agreement.value, floor=accuracy.floor)) >= 2 * NO_SKILL:
        return None
    what = (
        f"{agreement.value:.1%} of the images of {evidence.name} show the class that was asked for "
        f"(chance: {accuracy.floor or 0:.1%}): the labels of its training were shuffled, it ignores them, or "
        "its images are too poor to be recognised"
    )
    return Warned("ignored labels", what, "look at its images and check the labels, then train it again")


def collapsed(evidence: Evidence) -> Warned | None:
    """A generator makes few distinct images, or images unlike the real ones."""
    names = ("precision", "recall", "coverage", "diversity")
    shares = {name: evidence.share(name) for name in names}
    low = {name for name, share in shares.items() if share is not None and share < COLLAPSED}
    if not low - {"precision"}:
        return None
    diversity = shares["diversity"] or 0.0
    if diversity >= COLLAPSED and ("precision" in low or diversity > 1):
        what = f"images of {evidence.name} are unlike the real ones: {evidence.show(*shares)}"
        return Warned("unlike real images", what, "train it longer, or with another learning rate or loss")
    what = f"{evidence.name} makes few distinct images: {evidence.show(*names[1:])}"
    remedy = (
        "it has collapsed: look at its sample sheet; for a GAN use another loss or regulariser, a lower "
        "learning rate of the discriminator or another seed, for a VAE a lower beta"
    )
    return Warned("collapsed", what, remedy)


def memorised(evidence: Evidence) -> Warned | None:
    """Generated images are nearer to training images than unseen real images are."""
    sharp, copies = evidence.share("sharpness"), evidence.measured.get("copies", Estimate(0.0))
    names = ("memorisation", "pixel_memorisation", "copies")
    is_blurred = sharp is not None and sharp < BLURRED  # blurred images are near to all others
    found = [] if is_blurred else [evidence.measured[name] for name in names[:2] if name in evidence.measured]
    if copies.least - (copies.floor or 0) <= COPIES and not any(each.least > MEMORISED for each in found):
        return None
    what = (
        f"{evidence.name} repeats training images: {evidence.show(*names).replace('real', 'unseen')}; "
        "an unseen real image is seldom so near to one"
    )
    remedy = (
        f"look at plots/pictures/{evidence.name}-nearest.png; use more images, augmentation or fewer steps"
    )
    return Warned("memorised", what, remedy)


def exposed(evidence: Evidence) -> Warned | None:
    """An attack tells the training images from unseen ones."""
    found = {
        name: evidence.measured[name].value
        for name in membership.ATTACKS
        if name in evidence.measured and evidence.measured[name].least > membership.EXPOSED
    }
    if not found:
        return None
    name = max(found, key=lambda name: found[name])
    share = evidence.measured[name + membership.FOUND].value
    what = (
        f"{evidence.name} gives its training images away: an attack by {membership.ATTACKS[name]} tells a "
        f"training image from an unseen one in {found[name]:.1%} of all pairs (chance: 50.0%), and finds "
        f"{share:.1%} of the training images with at most 1% false alarms"
    )
    remedy = "do not publish it if the training images are private; use more images, or fewer steps"
    return Warned("exposed", what, remedy)


def blurred(evidence: Evidence) -> Warned | None:
    """Generated images have less energy in high frequencies than real ones."""
    sharp, rebuilt = evidence.share("sharpness"), evidence.share("reconstruction_sharpness")
    if sharp is None or sharp >= BLURRED:
        return None
    what = (
        f"images of {evidence.name} are over-smooth: {evidence.show('sharpness', 'reconstruction_sharpness')}"
    )
    if rebuilt is not None and rebuilt < BLURRED:
        remedy = (
            "its reconstructions are blurred too: lower beta, use a larger code or width, or train longer"
        )
    else:
        remedy = "lower beta, or train longer"
    return Warned("over-smooth", what, remedy)


def prior_gap(evidence: Evidence) -> Warned | None:
    """An autoencoder reconstructs well and generates badly."""
    pair = [evidence.measured.get(name) for name in ("fid", "reconstruction_fid")]
    agreement = evidence.share("label_agreement")
    if not pair[0] or not pair[1] or agreement is None or agreement >= AGREEMENT:
        return None
    samples, rebuilt = (max(each.value - (each.floor or 0), each.floor or 1e-12) for each in pair if each)
    if samples <= GAP * rebuilt:
        return None
    what = f"{evidence.name} generates much worse than it reconstructs: {evidence.show('fid')}, "
    what += f"{evidence.show('reconstruction_fid')}, {evidence.show('label_agreement')}"
    return Warned(
        "prior gap", what, "its random codes are unlike codes of images: fit a richer prior to them"
    )


RULES = (
    weak_features,
    small_features,
    shuffled_labels,
    ignored_labels,
    collapsed,
    memorised,
    exposed,
    blurred,
    prior_gap,
)


def find(
    results: Mapping[str, Mapping[str, Any]],
    classifiers: Mapping[str, str],
    training_images: Mapping[str, int],
) -> dict[str, list[dict[str, str]]]:
    """The warnings by model or network, as JSON. ``results``: measures by model, and "protocol".

    ``classifiers`` and ``training_images``: by model, the classifier of its data ('' if there is none) and
    the size of their training split.
    """
    protocols = results["protocol"]
    measured = {name: Estimate.read(results[name]) for name in protocols}
    spaces: dict[tuple[str, str], dict[str, int]] = {}  # by network and digest: dimensions by model compared
    for name, protocol in protocols.items():
        if used := protocol.get("features"):
            key = used["network"], used["network_digest"]
            spaces.setdefault(key, {})[name] = used["dimensions"]
    own = {(name, protocol["model_digest"]): name for name, protocol in protocols.items()}
    found: dict[str, list[dict[str, str]]] = {}
    for key in dict.fromkeys([*own, *spaces]):  # a file may have the name of a model and another digest
        name, users = own.get(key, ""), spaces.get(key, {})
        evidence = Evidence(
            key[0],
            measured.get(name, {}),
            balanced(measured.get(classifiers.get(name, ""), {})),
            training_images.get(name),
            min(users.values(), default=None),
            {user: measured[user] for user in users},
        )
        if warned := [asdict(warning) for rule in RULES if (warning := rule(evidence))]:
            found[key[0]] = found.get(key[0], []) + warned
    return found


def read(root: Path) -> dict[str, list[dict[str, str]]]:
    """The warnings of the last evaluation in the project ``root``; none if there are no readable results."""
    try:
        return dict(read_json(root / "metrics/details.json").get(WARNINGS, {}))
    except (OSError, ValueError, AttributeError):
        return {}


def balanced(measured: Mapping[str, Estimate], quantity: str = "accuracy") -> Estimate | None:
    """The ``quantity`` averaged over classes, which is measured if they are uneven; else over images."""
    return measured.get(f"balanced_{quantity}") or measured.get(quantity)


def skill(accuracy: Estimate) -> float:
    """(accuracy - chance) / (1 - chance)."""
    chance = accuracy.floor or 0.0
    return (accuracy.value - chance) / max(1e-12, 1 - chance)


def _recognises(measured: Mapping[str, Estimate]) -> str:
    accuracy = balanced(measured) or Estimate(0.0)
    which = " of a class" if "balanced_accuracy" in measured else ""
    chance = f"(always one class: {accuracy.floor or 0:.1%})"
    return f"recognises {accuracy.value:.1%} of the test images{which} {chance}"


def _number(name: str, value: float) -> str:
    return glossary.measure(name).show(value)

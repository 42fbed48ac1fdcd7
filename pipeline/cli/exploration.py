"""`darkroom explore`: pictures of what the latents of a generator mean."""

from pathlib import Path

import click

from pipeline.cli.inference import a_model, choose_classes, load_model, models, new_folder, number
from pipeline.errors import BadInput

NUM_ROWS = 6


@click.command(epilog=a_model)
@click.argument("model")
@click.option("--label", "labels", multiple=True, help="A class; may be repeated. Default: the first six.")
@click.option("--seed", type=number(0), default=0, help="The same seed gives the same pictures.")
@click.option("--out", type=new_folder, help="The folder to write  [default: explored/MODEL]")
@models
def explore(model: str, labels: tuple[str, ...], seed: int, out: Path | None, models: Path | None) -> None:
    """Draw pictures of the latents of MODEL (gan, vae or ae).

    interpolation.png: images from one random latent of a class to another. traversal-NUMBER.png: an image of
    a class (the first, or those named), whose latents change one by one, those that change it most first.
    mixing.png: images with the styles of two others, if the model has styles.
    """
    import torch

    from pipeline.core.abilities import Ability
    from pipeline.core.noise import Noise
    from pipeline.evaluation import exploration, figures

    task, card, abilities = load_model(model, models, "decode", "use gan, vae or ae")
    chosen = choose_classes(card["class_names"], labels)[:NUM_ROWS]
    conditional = Ability.USES_LABELS in abilities
    if labels and not conditional:
        remedy = "leave out --label, or use a model of classes (gan, vae, ae)"
        raise BadInput(f"{model} does not use labels", where=f"--label {labels[0]}", remedy=remedy)
    latents = exploration.Latents(
        task, Ability.ENCODE in abilities, lambda purpose, count: Noise.whole(seed, count, purpose)
    )
    wanted = torch.tensor(chosen)
    out = out or Path("explored", model.replace("/", "-"))
    with torch.inference_mode():
        sheets = {"interpolation": exploration.interpolations(latents, wanted)}
        for label in chosen if labels else chosen[:1]:
            sheets[f"traversal-{label}"] = exploration.traversals(latents, label)
        if mixed := exploration.mixing(latents, wanted):
            sheets["mixing"] = mixed
    names = [card["class_names"][label] for label in chosen] if conditional else []
    for kind, sheet in sheets.items():
        figures.save_grid(sheet.images, out / f"{kind}.png", sheet.columns, sheet.rows or names)
    click.echo(f"{', '.join(f'{kind}.png' for kind in sheets)} -> {out}")

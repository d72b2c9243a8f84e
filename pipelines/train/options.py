"""The options of `folio train` ▶ a request."""

from typing import Literal

from fol_model.recipes import recipe_named
from fol_model.training.config import LossWeights, TrainingConfig
from fol_model.training.door import usual_precision
from pipelines.train.hold_out import By, HoldOutConfig
from pipelines.train.layouts import CellConfig
from pipelines.train.loading import Augment
from pipelines.train.request import Sources, TrainRequest


def request_of(
    *,
    photos: tuple[str, ...],
    gsv_cities: str | None,
    sample_city: int | None,
    drives: bool,
    licence: tuple[str, ...],
    recipe: str,
    start: str | None,
    out: str,
    epochs: int,
    places: int | None,
    photos_per_place: int,
    single: Literal["augment", "leave_out"],
    augment: Augment,
    cell_m: float,
    input_size: int | None,
    blocks: str,
    learning_rate: float,
    linear_steps: int,
    max_grad_norm: float | None,
    precision: Literal["auto", "bfloat16", "float32"],
    accumulate: int,
    ema: float,
    learn: Literal["all", "reliability"],
    reliability: float | None,
    validate: float,
    hold_out: By,
    patience: int,
    checkpoint_minutes: float,
    seed: int,
    workers: int | None,
    device: str,
) -> TrainRequest:
    """Put the options where they belong, and fill in those that depend on others.

    Raises:
        ValueError: an option has a value it cannot have.
    """
    if not blocks.isdecimal() and blocks != "all":
        raise ValueError(f"--blocks must be a number or all, got {blocks!r}")
    known = recipe_named(recipe)
    least = 2 * (workers or 1) * accumulate
    weight = float(known.mode == "folpp") if reliability is None else reliability
    return TrainRequest(
        out=out,
        sources=Sources(
            photos=photos, gsv_cities=gsv_cities, sample_city=sample_city, folders_are_drives=drives, licences=licence
        ),
        recipe=known.name,
        start=start,
        epochs=epochs,
        patience=patience,
        checkpoint_minutes=checkpoint_minutes,
        training=TrainingConfig(
            places_per_batch=max(60, least) if places is None else places,
            photos_per_place=photos_per_place,
            few_photos=single,
            input_size=input_size,
            learned_blocks=None if blocks == "all" else int(blocks),
            learning_rate=learning_rate,
            linear_steps=linear_steps,
            max_grad_norm=max_grad_norm,
            precision=usual_precision(device) if precision == "auto" else precision,
            accumulate=accumulate,
            ema_decay=ema,
            losses=LossWeights(reliability=weight) if learn == "all" else LossWeights.only_reliability(),
            seed=seed,
        ),
        fewer_places=places is None,
        augment=augment,
        cells=CellConfig(side_m=cell_m, gap_m=cell_m / 2),
        hold_out=HoldOutConfig(share=validate, by=hold_out),
        workers=workers,
        device=device,
    )

"""places ▶ weights: what `folio train` does. The steps stand in `data` and `loop`; here they are put together."""

from collections.abc import Sequence
from dataclasses import replace

from fol_model.config import Recipe
from fol_model.recipes import recipe_named
from fol_model.training.config import TrainingConfig
from fol_model.training.places import PlaceSampler
from infra.cluster import ray_cluster
from infra.settings import Settings
from pipelines.engine.model import weights_file
from pipelines.engine.threads import use_threads
from pipelines.train.data import TrainingSet, read_training_set
from pipelines.train.loop import Alone, Run, plan_of, train
from pipelines.train.report import quiet_notes
from pipelines.train.request import TrainRequest, TrainSummary
from pipelines.train.run_folder import WEIGHTS, RunFolder, StepLine
from schemas.errors import ModelError, PlanError


def run_training(request: TrainRequest, settings: Settings) -> TrainSummary:
    """Train a network, or go on with a run that was stopped.

    Raises:
        CatalogError: the photos cannot be understood, or are too few.
        ModelError: recipe, weights and settings do not fit, the folder is another run's or in use, a loss turned NaN, no memory.
        PlanError: more workers than the cluster has room for.
        StorageError: a store does not answer.
        WorkError: workers were lost too often.
    """
    recipe, request = _checked(request, settings)
    data = read_training_set(request, settings)
    run = _planned(request, recipe, data)
    folder = RunFolder(request.out, settings)
    with folder.locked():
        folder.open(run.plan)
        folder.write_rejects(data.rejects, rank=0)
        if request.workers is None:
            use_threads(settings.threads)
            train(run, Alone(), settings)
        else:
            _train_on_ray(run, request.workers, settings)
        return _summary(run, folder)


def _checked(request: TrainRequest, settings: Settings) -> tuple[Recipe, TrainRequest]:
    """Look at everything that needs no photo, before any is read.

    Raises:
        ModelError: the recipe, its weights or the settings do not fit.
    """
    if "://" in request.out:
        raise ModelError(f"{request.out}: a run's folder must be on a disk. Nothing was started. Give a folder with --out.")
    start = weights_file(request.recipe, request.start, settings)
    try:
        recipe = recipe_named(request.recipe)
        request.training.size_for(recipe)
    except ValueError as error:
        raise ModelError(f"{error}. Nothing was started.") from error
    if recipe.mode == "fol" and request.training.losses.reliability:
        raise ModelError(
            f"recipe {recipe.name} is of mode fol, which has no branch that learns reliability, but its loss weighs "
            f"{request.training.losses.reliability:g}. Nothing was started. Set --reliability 0, or take a recipe of mode folpp."
        )
    if start is None and recipe.seed is None and recipe.aggregation != "vlad":
        raise ModelError(
            f"recipe {recipe.name} has no weights of its own to start from. Nothing was started. Give some with --start "
            "FILE.safetensors: of a whole network, or of a DINOv2 backbone; `folio models convert` makes either from a .pth."
        )
    if start is not None and not start.is_file():
        raise ModelError(f"{start}: no such file with weights. Nothing was started. Check --start.")
    return recipe, replace(request, start=None if start is None else str(start))


def _planned(request: TrainRequest, recipe: Recipe, data: TrainingSet) -> Run:
    """Settle how many places a batch has, and what a resumed run must agree with."""
    try:
        fewest = min(len(PlaceSampler(places, _smallest(request)).used) for places in data.layouts)
    except ValueError as error:
        raise ModelError(f"{error}. Nothing was started.") from error
    workers = request.workers or 1
    if request.fewer_places and fewest < request.training.places_per_batch:
        places = max(fewest // workers * workers, request.fewest_places)
        request = replace(request, training=replace(request.training, places_per_batch=places))
    return Run(request=request, recipe=recipe, data=data, plan=plan_of(request, recipe, data))


def _smallest(request: TrainRequest) -> TrainingConfig:
    """The settings with the smallest batch, to count the places that can be used."""
    return replace(request.training, places_per_batch=request.fewest_places)


def _train_on_ray(run: Run, workers: int, settings: Settings) -> None:
    from pipelines.train.actors import train_on_ray  # here, because a training without Ray should not wait for it

    with ray_cluster(settings) as cluster:
        room = cluster.gpus or cluster.cpus
        if workers > room:
            what = "GPUs" if cluster.gpus else "CPUs"
            raise PlanError(
                f"{workers} workers were asked for, but the Ray cluster has {room} {what}. Nothing was started. "
                "Ask for fewer with --workers, set FOLIO_THREADS, or join a larger cluster with RAY_ADDRESS."
            )
        train_on_ray(run, workers, cluster, settings)


def _summary(run: Run, folder: RunFolder) -> TrainSummary:
    progress = folder.progress()
    assert progress is not None  # a run that ended has a checkpoint
    steps = [line for line in folder.lines() if isinstance(line, StepLine)]
    seconds = sum(line.seconds for line in steps)
    folder.write_recalls(progress.best, {"recipe": run.recipe.name, "steps": progress.steps})
    return TrainSummary(
        out=run.request.out,
        recipe=run.recipe.name,
        weights=str(folder.path / WEIGHTS),
        epochs=progress.epoch,
        stopped="patience" if progress.stopped else "epochs",
        steps=progress.steps,
        photos=len(run.data.photos),
        places=len(run.data.layouts[0]),
        rejected=folder.rejected(),
        best=progress.best,
        pseudo_correspondences=_mean([line.pseudo_correspondences for line in steps]),
        images_per_second=sum(line.images for line in steps) / max(seconds, 1e-9),
        report=str(folder.path / "report.html"),
        notes=[*run.data.notes, *quiet_notes(steps)],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)

"""Published weights ▶ the models folder: downloaded from the Hugging Face hub, checked, and converted.

What has arrived of a file stays in the folder when a download breaks off, under a name that ends in `.part`, and the next one
goes on from there. (The hub's own `hf_hub_download` throws it away, so its parts are used here one by one.) The `.pth` is
removed once it is converted.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fol_model.checkpoints import file_sha256
from fol_model.recipes import recipe_named
from infra.settings import Settings
from pipelines.models.convert import Converted, convert, converted
from pipelines.models.listing import PUBLISHED, Published, fetch_name
from schemas.errors import ModelError

SHA256_DIGITS: Final = 64
"""Of an ETag that is the file's sha256, as that of every large file on the hub; a small one's is a git hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Remote:
    """One version of a file on the hub."""

    url: str
    commit: str
    etag: str
    size_bytes: int | None


def fetch(name: str, folder: Path, settings: Settings) -> Converted:
    """Get the published weights of a recipe, unless they are there already.

    Args:
        name: of a recipe whose weights were published, `fol-vitl14` or `fol_vitl14`.
        folder: gets the weights and their card.
        settings: the hub's address.

    Raises:
        ModelError: nothing is published under this name, the hub cannot be reached or has no such file, the disk is too small, or
            what arrived is damaged.
    """
    recipe, published = _published(name)
    kept = folder / f"{recipe}.safetensors"
    if kept.is_file():
        return _already(kept)
    file, commit = _download(published, folder, settings)
    done = convert(file, folder, recipe=recipe, source=f"{published.repository}/{published.file}@{commit}")
    file.unlink()
    return done


def _already(kept: Path) -> Converted:
    """Look at what is there instead of downloading a gigabyte; its card says where it comes from.

    Raises:
        ModelError: it has no card, or is damaged.
    """
    try:
        before = converted(kept, written=False)
    except ValueError as error:
        raise ModelError(f"{error}. Nothing was downloaded. Remove that file to fetch it anew.") from error
    if before is None:
        raise ModelError(
            f"{kept}: is there already, from another source. Nothing was downloaded. Move it away, or give --out DIR."
        )
    return before


def _published(name: str) -> tuple[str, Published]:
    known = ", ".join(fetch_name(recipe) for recipe in PUBLISHED)
    try:
        recipe = recipe_named(name).name
    except ValueError as error:
        raise ModelError(f"{error}. Weights to fetch are published for {known}") from error
    if recipe not in PUBLISHED:
        raise ModelError(f"{name}: no weights are published for it, only for {known}. Nothing was downloaded.")
    return recipe, PUBLISHED[recipe]


def _download(published: Published, folder: Path, settings: Settings) -> tuple[Path, str]:
    """Get a file, or the rest of it.

    Returns:
        The file, and the commit of its repository.

    Raises:
        ModelError: see `fetch`.
    """
    from huggingface_hub import constants  # here, because most commands do not need it
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library: every failure
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    constants.HF_HUB_DISABLE_TELEMETRY = True  # no word to anybody about this machine and what runs on it
    part = None
    try:
        remote = _ask(published, settings)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{published.file}.{remote.etag[:12]}.part"
        arrived = _arrived(part)
        if remote.size_bytes is not None and arrived > remote.size_bytes:
            part.unlink()  # two downloads at once, say
            arrived = 0
        _require_room(published, folder, remote, arrived)
        with part.open("ab") as file:
            http_get(
                remote.url,
                file,
                resume_size=arrived,
                headers=build_hf_headers(),
                expected_size=remote.size_bytes,
                displayed_filename=published.file,
            )
    except (HTTPError, OSError) as error:
        if part and not _arrived(part):
            part.unlink(missing_ok=True)
        raise ModelError(_failure(published, settings, part, error)) from error
    if len(remote.etag) == SHA256_DIGITS and (found := file_sha256(part)) != remote.etag:
        part.unlink()
        raise ModelError(
            f"{remote.url}: arrived damaged: sha256 {found[:12]} instead of {remote.etag[:12]}. It was removed, nothing else was "
            "changed. Run the command again."
        )
    whole = folder / published.file
    part.replace(whole)
    return whole, remote.commit


def _ask(published: Published, settings: Settings) -> _Remote:
    """Ask the hub which version of a file it has.

    Raises:
        ModelError: whoever answers is no hub.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(published.repository, published.file, endpoint=settings.hub)
    found = get_hf_file_metadata(url, endpoint=settings.hub)
    if not found.etag or not found.commit_hash:
        raise ModelError(
            f"{url}: the answer has no ETag and commit, so this is no Hugging Face hub. Nothing was changed. Check HF_ENDPOINT, "
            f"or a proxy between. {_by_hand(published, settings)}"
        )
    pinned = hf_hub_url(published.repository, published.file, revision=found.commit_hash, endpoint=settings.hub)
    return _Remote(url=pinned, commit=found.commit_hash, etag=found.etag, size_bytes=found.size)


def _require_room(published: Published, folder: Path, remote: _Remote, arrived: int) -> None:
    """Refuse a download that would fill the disk: the checkpoint, and as much again for its conversion."""
    needed = 2 * (remote.size_bytes or 0) - arrived
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{folder}: {published.file} and its conversion need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free. "
            "Nothing was downloaded. Make room, or choose another folder with --out or FOLIO_MODELS."
        )


def _failure(published: Published, settings: Settings, part: Path | None, error: Exception) -> str:
    """Say what was tried, why it failed, what is left, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    why = {
        None: (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."),
        401: "it wants a login or has no such file (401). Set HF_TOKEN if you have access",
        403: "it refuses access (403). Set HF_TOKEN if you have access",
        404: "it has no such file (404)",
    }.get(status, f"it answered {status}")
    arrived = _arrived(part) if part else 0
    left = (
        f"The {arrived / 1e6:,.1f} MB that arrived are kept: run the same command again to go on."
        if arrived
        else "Nothing was changed."
    )
    return (
        f"{published.repository}/{published.file}: no download from {settings.hub}: {why}. {left} {_by_hand(published, settings)}"
    )


def _arrived(part: Path) -> int:
    """Bytes of a download that are there."""
    return part.stat().st_size if part.is_file() else 0


def _by_hand(published: Published, settings: Settings) -> str:
    return (
        f"Try again, or download it by hand from {settings.hub}/{published.repository}/resolve/main/{published.file} and run: "
        f"folio models convert {published.file}"
    )

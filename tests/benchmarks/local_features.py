"""How few local features, in how few bytes, are enough: `make bench-local`. Not a test.

Every photo is described once by folio-small, whose local features are kept unrounded below `out/bench/cache` with all that
patches are chosen by. Each variant is made from these: fewer features, fewer numbers of each, fewer bits of each number. For each
set of photos and each variant this measures recall@1, the CPU time that re-ranking takes, and the bytes that a photo takes.

Prints a Markdown table; writes `out/bench/local_features.json` and a drawing of it, `out/bench/local_features.html`. Both are
written after every set, so a run that is stopped leaves what it measured.

    python -m tests.benchmarks.local_features --sets street-lund,mapillary --queries 120
"""

import argparse
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from bokeh.embed import file_html
from bokeh.layouts import column, gridplot
from bokeh.models import Div, FixedTicker, NumeralTickFormatter, Range1d
from bokeh.models.annotations.geometry import Span
from bokeh.plotting import figure
from bokeh.resources import INLINE
from jaxtyping import Float32, Float64, Int64, UInt8

from fol_model.config import PoolConfig, Precision, RerankConfig
from fol_model.inference import Reranker, as_stored
from fol_model.local_decoder import most_confident, pack, patch_of_row
from fol_model.network import FoL
from fol_model.preprocessing import prepare
from fol_model.recipes import folio_small
from fol_model.reranking import best_first
from fol_model.weights import build, checked_state, fingerprint, load_safetensors, shipped_weights
from infra.observability import progress
from pipelines.engine.threads import use_threads
from pipelines.report.map_plot import FONT, GRID
from schemas.local_features import LocalFeatures, bytes_per_feature
from tests.benchmarks.recall import CANDIDATES, NETWORK_CODE, Arrays, Cache, Described, Method, Photo
from tests.benchmarks.recall_sets import WORK, MissingPhotosError, RecallSet, load_set, set_names

CHECKSUM_BYTES: Final = 4
"""Of a photo's chunk, beside its features."""

QUERIES: Final = 120
"""Of a set with more, this many are drawn."""

SEED: Final = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Which local features of a photo are kept, and in what form."""

    features: int
    """This many, those with the highest mask score."""

    step: int = 1
    """Chosen among every n-th row and column of patches: the recipe's `local_patch_step`."""

    dim: int = 48
    """The first numbers of each, made a unit vector again: they are principal components, the strongest first."""

    precision: Precision = "int4"

    @property
    def name(self) -> str:
        """As the table calls it."""
        spread = "" if self.step == 1 else " spread out"
        return f"{self.features}{spread} × {self.dim} {self.precision}"

    @property
    def bytes_per_photo(self) -> int:
        """Stored bytes, as `schemas.local_features` packs them."""
        return self.features * bytes_per_feature(self.dim, self.precision) + CHECKSUM_BYTES


EVERYTHING: Final = Variant(features=640, precision="float32")
SHIPPED: Final = Variant(features=640, precision="int8")
"""What folio-small keeps."""

HALVED: Final = replace(SHIPPED, precision="int4")

SPREAD_OUT: Final = Variant(features=160, step=2)

FEWER_FEATURES: Final = [
    EVERYTHING,
    SHIPPED,
    HALVED,
    *(replace(HALVED, features=features) for features in (400, 320, 160)),
]
"""Drawn as one line: fewer bits, then fewer features."""

FEWER_NUMBERS: Final = [*FEWER_FEATURES[:3], *(replace(HALVED, dim=dim) for dim in (32, 24, 16))]
"""Drawn as another."""


def variants() -> list[Variant]:
    """List what is measured: each number of features in each precision, and in four bits also with fewer numbers."""
    return [
        replace(kept, dim=dim, precision=precision)
        for kept in (*FEWER_FEATURES[2:], SPREAD_OUT)
        for dim, precision in [(48, "float32"), (48, "int8"), (48, "int4"), (32, "int4"), (24, "int4"), (16, "int4")]
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant on one set."""

    set: str
    variant: Variant | None
    """None: the global descriptor alone, without re-ranking."""

    bytes_per_photo: int
    """Of local features."""

    queries: int
    database: int
    recall_adaptive: float
    """Recall@1 as maps answer by default: mode `adaptive`, which chooses its pool itself."""

    recall_adaptive_all: float
    """Recall@1 in the same mode with all candidates in the pool."""

    recall_count: float
    """Recall@1 by the number of matches alone, as FoL, with all candidates in the pool."""

    cpu_ms: float
    """Median over the queries of the time to re-rank 100 candidates, of one thread; fewer are scaled up."""


# ------------------------------------------------------------------------------------------------------ the features


def float_features(network: FoL, photo: Photo) -> Arrays:
    """Describe a photo: its descriptor, and every local feature that some variant may want, unrounded and in raster order.

    These are the recipe's features and those that it would keep with `local_patch_step` 2, a few of which are not among them.
    """
    recipe, spread_out = network.recipe, replace(network.recipe, local_patch_step=2)
    with torch.no_grad():
        sight = network(prepare(photo, recipe.input_size, antialias=recipe.antialias).unsqueeze(0))
        g = recipe.grid_side
        score, reliability = sight.mask_score.view(g, g), sight.reliability.view(g, g)
        every_second = torch.full_like(score, -inf)
        every_second[::2, ::2] = score[::2, ::2]
        also = most_confident(every_second.view(1, -1), spread_out.kept_patches(g * g)).view(g, g)
        packed = pack(sight.local[0], sight.mask[0] | also, patch_of_row(g, recipe.local_stride))
    place = packed.patch.unbind(1)
    return {
        "descriptor": sight.descriptors[0].numpy(),
        "features": packed.features.numpy(),
        "patch": packed.patch.numpy().astype(np.uint8),
        "reliability": reliability[place].mul(255).round().numpy().astype(np.uint8),
        "mask_score": score[place].numpy(),
    }


def folio_small_unrounded() -> Method:
    """Describe photos with folio-small's own weights by `float_features`."""
    recipe = folio_small()
    weights = shipped_weights(recipe)
    assert weights is not None
    state = checked_state(recipe, load_safetensors(weights))
    network = build(recipe, state)
    code = [*NETWORK_CODE, inspect.getsource(float_features).encode()]
    return Method(
        name=f"{recipe.name} unrounded",
        key=hashlib.sha256(b"".join([fingerprint(recipe, state).encode(), *code])).hexdigest(),
        describe=lambda photo: float_features(network, photo),
        decode_side=recipe.input_size,
    )


def derive(photo: Arrays, variant: Variant) -> LocalFeatures:
    """Keep of a photo's unrounded features what a variant keeps.

    Args:
        photo: from `float_features`.
        variant: which and how. It cannot ask for more features than there are.
    """
    kept = best_patches(photo["mask_score"], photo["patch"], variant)
    features = photo["features"][kept, : variant.dim]
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return LocalFeatures(
        features=as_stored(features / np.where(lengths > 0, lengths, 1), variant.precision),
        patch=photo["patch"][kept],
        reliability=photo["reliability"][kept],
    )


def best_patches(
    score: Float32[np.ndarray, " n"], patch: UInt8[np.ndarray, "n 2"], variant: Variant
) -> Int64[np.ndarray, " kept"]:
    """Choose features by the mask score of their patches, of equal ones the first; give their places in raster order."""
    eligible = np.flatnonzero((patch % variant.step == 0).all(axis=1))
    assert len(eligible) >= variant.features
    return np.sort(eligible[np.argsort(-score[eligible], kind="stable")[: variant.features]])


# --------------------------------------------------------------------------------------------------------- measuring


def sample_queries(found: RecallSet, most: int) -> RecallSet:
    """Draw queries of a set that has more, always the same ones."""
    if len(found.queries) <= most:
        return found
    drawn = np.sort(np.random.default_rng(SEED).choice(len(found.queries), most, replace=False))
    return replace(found, queries=[found.queries[index] for index in drawn], positives=found.positives[drawn])


def measure(
    found: RecallSet, database: Sequence[Described], queries: Sequence[Described], chosen: Sequence[Variant]
) -> list[Row]:
    """Measure variants on a set, after the descriptor alone.

    Args:
        found: the set.
        database: its photos as `float_features` describes them.
        queries: the same.
        chosen: the variants.
    """
    best, cosines = nearest(_descriptors(database), _descriptors(queries))
    right = np.take_along_axis(found.positives, best, axis=1)
    alone = float(right[:, 0].mean())
    size = {"set": found.name, "queries": len(queries), "database": len(database)}
    rows = [
        Row(
            **size,
            variant=None,
            bytes_per_photo=0,
            recall_adaptive=alone,
            recall_adaptive_all=alone,
            recall_count=alone,
            cpu_ms=0.0,
        )
    ]
    for variant in progress(chosen, total=len(chosen), unit="variant", description=f"{found.name}: re-ranking"):
        stored = {index: derive(database[index].arrays, variant) for index in np.unique(best).tolist()}
        hits, cpu_s = [], []
        for query, candidates, similar, answers in zip(queries, best.tolist(), cosines, right, strict=True):
            first, seconds = first_places(derive(query.arrays, variant), [stored[index] for index in candidates], similar)
            hits.append(answers[list(first)])
            cpu_s.append(seconds)
        adaptive, adaptive_all, count = np.mean(hits, axis=0).tolist()
        rows.append(
            Row(
                **size,
                variant=variant,
                bytes_per_photo=variant.bytes_per_photo,
                recall_adaptive=adaptive,
                recall_adaptive_all=adaptive_all,
                recall_count=count,
                cpu_ms=1e3 * float(np.median(cpu_s)) * CANDIDATES / best.shape[1],
            )
        )
    return rows


def nearest(
    database: Float32[np.ndarray, "n D"], queries: Float32[np.ndarray, "q D"]
) -> tuple[Int64[np.ndarray, "q K"], Float64[np.ndarray, "q K"]]:
    """Find the candidates of each query by exact cosine, best first, ties in database order; and their cosines."""
    similar = queries.astype(np.float64) @ database.astype(np.float64).T
    best = np.argsort(-similar, axis=1, kind="stable")[:, :CANDIDATES]
    return best, np.take_along_axis(similar, best, axis=1)


def first_places(
    query: LocalFeatures, candidates: Sequence[LocalFeatures], cosines: Float64[np.ndarray, " K"]
) -> tuple[tuple[int, int, int], float]:
    """Re-rank a query three ways.

    Returns:
        Which candidate comes first in mode `adaptive`, in mode `adaptive` with all candidates in the pool, and in mode `count`
        with all candidates in the pool; and the CPU seconds of the second. They are those of the third, too.
    """
    usual = RerankConfig()
    everyone = replace(usual, pool=PoolConfig(fixed_size=len(candidates)))
    start = time.process_time()
    ranked = Reranker(everyone).rerank(query, candidates, cosines)
    seconds = time.process_time() - start
    adaptive = Reranker(usual).rerank_as_needed(query, candidates, cosines).order
    count = replace(everyone, mode="count")
    if ranked.matches.max() > 1:
        by_count = best_first(ranked.matches.astype(np.float32), count)
    else:  # here it matters that FoL does not count a lone pair
        by_count = Reranker(count).rerank(query, candidates, cosines).order
    return (int(adaptive[0]), int(ranked.order[0]), int(by_count[0])), seconds


def _descriptors(photos: Sequence[Described]) -> Float32[np.ndarray, "n D"]:
    return np.stack([photo.arrays["descriptor"] for photo in photos])


# --------------------------------------------------------------------------------------------------------- reporting


def table(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table: a line for each variant, a column for each set."""
    sets = list(dict.fromkeys(row.set for row in rows))
    queries = {row.set: row.queries for row in rows}
    lines = [
        " | ".join(["| local features", "bytes a photo", "CPU ms", *(f"{name} ({queries[name]})" for name in sets)]) + " |",
        "|---" * (3 + len(sets)) + "|",
    ]
    for variant in dict.fromkeys(row.variant for row in rows):
        of = {row.set: row for row in rows if row.variant == variant}
        shares = [f"{of[name].recall_adaptive:.3f} / {of[name].recall_count:.3f}" for name in sets]
        size, cpu_ms = next(iter(of.values())).bytes_per_photo, _cpu_ms(rows, variant)
        lines.append(" | ".join([f"| {_title(variant)}", f"{size:,}", f"{cpu_ms:.0f}", *shares]) + " |")
    explained = (
        f"Recall@1 in mode adaptive / in mode count; behind a set the number of its queries. CPU ms: to re-rank {CANDIDATES} "
        "candidates on one thread, the median of the sets. Spread out: chosen among every second row and column of patches."
    )
    return "\n".join([*lines, "", explained])


def _title(variant: Variant | None) -> str:
    if variant is None:
        return "none: the descriptor alone"
    remark = {EVERYTHING: " (everything)", SHIPPED: " (folio-small)"}.get(variant, "")
    return f"{variant.name}{remark}"


def _cpu_ms(rows: Sequence[Row], variant: Variant | None) -> float:
    return float(np.median([row.cpu_ms for row in rows if row.variant == variant]))


COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#b0538c", "#7a6a00", "#3f3f46")
MARKERS: Final = ("circle", "square", "triangle", "inverted_triangle", "diamond", "hex")
SIGNS: Final = "●■▲▼◆⬢"
"""The markers, as the legend writes them."""

PANEL_PX: Final = {"width": 450, "height": 420}
NONE_BYTES: Final = 2_800
"""Where the descriptor alone stands on the logarithmic axis, which has no place for its 0 bytes."""


def drawing(rows: Sequence[Row]) -> str:
    """Draw rows as a page that works offline: recall@1 in both modes and the CPU time, by bytes a photo."""
    lowest = min(recall for row in rows for recall in (row.recall_adaptive, row.recall_count))
    recall = Range1d(start=float(0.05 * np.floor((lowest - 0.01) / 0.05)), end=1.015)
    most_ms = max(row.cpu_ms for row in rows)
    slowest = Range1d(start=-0.03 * most_ms, end=1.05 * most_ms)
    panels = [
        [
            _panel(f"{what}: recall@1, mode adaptive", rows, path, "recall_adaptive", recall),
            _panel(f"{what}: recall@1, mode count", rows, path, "recall_count", recall),
            _panel(f"{what}: CPU ms for {CANDIDATES} candidates", rows, path, "cpu_ms", slowest),
        ]
        for what, path in (("Fewer features", FEWER_FEATURES), ("Fewer numbers", FEWER_NUMBERS))
    ]
    head = Div(text=_legend(rows), width=3 * PANEL_PX["width"], styles={"font": f"14px/1.5 {FONT}"})
    return file_html(column(head, gridplot(panels, toolbar_location=None)), INLINE, "Local features: bytes, time and recall")


def _legend(rows: Sequence[Row]) -> str:
    queries = {row.set: row.queries for row in rows}
    styles = zip(queries.items(), COLOURS, SIGNS, strict=False)
    names = [f'<span style="color:{colour}">{sign}&nbsp;{name}&nbsp;({count})</span>' for (name, count), colour, sign in styles]
    return (
        "<b>How few local features, in how few bytes, are enough?</b> Across: bytes a photo, logarithmic. From right to left: "
        "fewer bits, then fewer features or fewer numbers. Dotted: what folio-small keeps. None: the descriptor alone. Hollow: "
        f"{SPREAD_OUT.features} features of every second row and column of patches. In brackets: queries.<br>"
        + " &emsp; ".join(names)
    )


def _panel(title: str, rows: Sequence[Row], path: Sequence[Variant], value: str, y_range: Range1d) -> figure:
    """Draw one value: a line for each set along a path of variants, and what lies beside it."""
    ticks = {NONE_BYTES: "none", **{variant.bytes_per_photo: _tick(variant) for variant in path}}
    plot = figure(**PANEL_PX, title=title, x_axis_type="log", x_range=Range1d(start=2_300, end=160_000), y_range=y_range)
    plot.add_layout(Span(location=SHIPPED.bytes_per_photo, dimension="height", line_color="#b9b2a3", line_dash="dotted"))
    for name, colour, marker in zip(dict.fromkeys(row.set for row in rows), COLOURS, MARKERS, strict=False):
        of = {row.variant: getattr(row, value) for row in rows if row.set == name}
        line = [of[variant] for variant in path]
        plot.line([variant.bytes_per_photo for variant in path], line, color=colour, line_width=1.5, alpha=0.8)
        plot.scatter([variant.bytes_per_photo for variant in path], line, marker=marker, color=colour, size=8, alpha=0.8)
        plot.scatter([NONE_BYTES], [of[None]], marker=marker, color=colour, size=8, alpha=0.8)
        if path is FEWER_FEATURES:
            at = [SPREAD_OUT.bytes_per_photo]
            plot.scatter(at, [of[SPREAD_OUT]], marker=marker, line_color=colour, fill_color="white", size=9, line_width=1.5)
    plot.xaxis.ticker = FixedTicker(ticks=list(ticks))
    plot.xaxis.major_label_overrides = ticks
    plot.xaxis.major_label_orientation = 0.9
    plot.yaxis.formatter = NumeralTickFormatter(format="0" if value == "cpu_ms" else "0.00")
    plot.grid.grid_line_color = GRID
    plot.outline_line_color = plot.axis.minor_tick_line_color = None
    plot.title.text_font = plot.axis.major_label_text_font = FONT
    return plot


def _tick(variant: Variant) -> str:
    return f"{variant.features} × {variant.dim} {variant.precision}, {variant.bytes_per_photo / 1e3:.1f} kB"


def write(out: Path, facts: dict[str, object], rows: Sequence[Row]) -> None:
    """Write the rows as JSON and, beside it, their drawing; each appears whole."""
    listed = [{"name": _title(row.variant), **asdict(row)} for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, json.dumps({**facts, "rows": listed}, indent=1) + "\n"), (out.with_suffix(".html"), drawing(rows))):
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        part.rename(path)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="How few local features, in how few bytes, are enough.")
    parser.add_argument("--sets", default=",".join(set_names()), help="separated by commas (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of a set, at most (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=WORK / "local_features.json", help="the drawing lies beside it (default: %(default)s)"
    )
    asked = parser.parse_args()

    use_threads(1)
    cv2.setNumThreads(1)
    method, cache = folio_small_unrounded(), Cache(WORK / "cache")
    facts = {"weights": method.key, "candidates": CANDIDATES, "seed": SEED, "reranking": asdict(RerankConfig())}
    rows: list[Row] = []
    for name in asked.sets.split(","):
        try:
            found = sample_queries(load_set(name), asked.queries)
        except MissingPhotosError as error:
            print(f"not measured: {error}", file=sys.stderr)
            continue
        database = cache.describe(method, found.database, of=f"{name}, database")
        rows += measure(found, database, cache.describe(method, found.queries, of=f"{name}, queries"), variants())
        write(asked.out, facts, rows)
        print(f"measured: {name}", file=sys.stderr, flush=True)
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()

"""Another hour, another season, another camera: what changes in the pixels of a view and leaves everything where it is.

Used by `augment`. Each function takes a view, draws from the generator how much, and returns another view.

Letters: S the view's side, s that of a coarse map of it.
"""

from io import BytesIO
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch.nn import functional

from fol_model.training.config import AugmentConfig

Pixels = Float32[np.ndarray, "3 S S"]
"""RGB from 0 to 1, colour by colour: what is done to all three alike then runs along whole rows."""

Rgb = Float32[np.ndarray, "3 1 1"]

_COARSE: Final = 8
"""Light and fog vary slowly: they are worked out on one of so many pixels along each side."""

_LUMA: Final = np.array((0.299, 0.587, 0.114), np.float32)


def relit(view: Image.Image, rng: np.random.Generator, config: AugmentConfig) -> Image.Image:
    """Change colours, time of day, weather, sharpness, noise and compression, each by its chance."""
    view = recoloured(view, rng, config.colour)
    at_night = rng.random() < config.night
    if at_night:
        view = night(view, rng)
    if rng.random() < config.weather:
        view = foggy(view, rng, at_night=at_night) if rng.random() < 0.5 else rainy(view, rng)
    if rng.random() < config.blur:
        view = blurred(view, rng)
    if at_night or rng.random() < config.noise:
        view = noisy(view, rng, strength=rng.uniform(0.02, 0.1) if at_night else rng.uniform(0.01, 0.05))
    if rng.random() < config.jpeg:
        view = compressed(view, quality=int(rng.integers(15, 80)))
    return view


def recoloured(view: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Change saturation, gamma, contrast, brightness and the colour of the light. Strength 0 leaves all as it is."""
    saturation = 1 + strength * rng.uniform(-1, 1)
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA  # each row: one colour out of the three
    view = view.convert("RGB", tuple(np.column_stack([mix, np.zeros(3)]).flatten().tolist()))
    gamma = np.exp(0.8 * strength * rng.uniform(-1, 1))
    contrast = np.exp(0.8 * strength * rng.uniform(-1, 1))
    brightness = 0.4 * strength * rng.uniform(-1, 1)
    cast = np.exp(0.25 * strength * rng.uniform(-1, 1, 3))
    level = np.linspace(0, 1, 256)[:, None] ** gamma * cast  # (256, 3)
    table = (level - 0.5) * contrast + 0.5 + brightness
    return view.point(np.clip(255 * table + 0.5, 0, 255).astype(np.uint8).T.flatten().tolist())


def night(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put out the sun: dark sky, little light from everywhere, pools of light around lamps, and lamps that glow."""
    size = view.width
    level = np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(rng.uniform(1.0, 1.5))
    pixels = level[_planes(view)]
    grey = _grey(pixels)
    sky = _sky(view) * np.clip((grey - 0.3) * 6, 0, 1)  # near the roofs the pixels decide
    lamps = _random_lamps(rng)
    ambient = rng.uniform(0.05, 0.3) * _tint(rng, 0.35)
    pixels += np.float32(rng.uniform(0, 0.6)) * (grey - pixels)  # little colour is seen in little light
    pixels *= _enlarged(_light_of(lamps, size // _COARSE, ambient), size)
    pixels += sky * (np.float32(rng.uniform(0.0, 0.12)) * _tint(rng, 0.4) - pixels)
    exposure = min(rng.uniform(0.08, 0.3) / max(float(pixels.mean()), 1e-3), 4.0)
    black = np.float32(rng.uniform(0, 0.06))
    pixels *= (1 - black) * np.float32(exposure)
    pixels += black
    return ImageChops.add(_image(pixels), _glow(lamps, size, rng))


def foggy(view: Image.Image, rng: np.random.Generator, *, at_night: bool) -> Image.Image:
    """Hide what is far, which is taken to be what is high in the photo."""
    pixels = _pixels(view)
    s = view.width // _COARSE
    height = np.linspace(0, 1, s, dtype=np.float32)[:, None]
    far = np.clip(1.1 - rng.uniform(0.6, 1.2) * height, 0.1, 1) + 0.15 * _patchy(s, rng)
    through = np.exp(-np.float32(rng.uniform(0.4, 2.0)) * far).astype(np.float32)
    through = _enlarged(through[None], view.width)
    air = (rng.uniform(0.08, 0.25) if at_night else rng.uniform(0.55, 0.9)) * _tint(rng, 0.06)
    pixels -= air
    pixels *= through
    pixels += air
    return _image(pixels)


def rainy(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw streaks, all leaning one way, and dull the rest."""
    size = view.width
    streaks = Image.new("L", (size, size))
    draw = ImageDraw.Draw(streaks)
    lean = rng.uniform(-0.4, 0.4)
    for x, y, length in rng.uniform((0, -0.1, 0.02), (1, 1, 0.1), (int(rng.integers(80, 300)), 3)) * size:
        draw.line((x, y, x + lean * length, y + length), fill=255, width=1)
    dull, bright = rng.uniform(0.6, 0.9), rng.uniform(0.2, 0.5)
    dulled = view.point(lambda value: dull * (value - 0.4 * 255) + 0.38 * 255)
    drops = streaks.filter(ImageFilter.BoxBlur(0.7)).point(lambda value: bright * value)
    return ImageChops.add(dulled, Image.merge("RGB", (drops, drops, drops)))


def blurred(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lose focus, or move while the shutter is open. In parts of a 320 px view, so that all sizes lose the same detail."""
    radius = rng.uniform(0.4, 1.6) * view.width / 320
    if rng.random() < 0.6:
        return view.filter(ImageFilter.GaussianBlur(radius))
    along_x = rng.random() < 0.7
    return view.filter(ImageFilter.BoxBlur((2 * radius, 0) if along_x else (0, 2 * radius)))


def noisy(view: Image.Image, rng: np.random.Generator, *, strength: float) -> Image.Image:
    """Add what a sensor adds: more to what is brighter, though less than in proportion; mostly grey, and coarser in colour."""
    size = view.width
    half = -(-size // 2)
    colour = _bell(rng, (3, half, half)) * np.float32(0.6 * strength / 2)  # of middle grey
    values = np.linspace(0, 1, 256, dtype=np.float32)
    deviation = (np.float32(strength) * np.sqrt(values + np.float32(0.1)))[np.asarray(view.convert("L"))]
    pixels = _pixels(view)
    pixels += _bell(rng, (size, size)) * deviation
    pixels += colour.repeat(2, axis=1).repeat(2, axis=2)[:, :size, :size]
    return _image(pixels)


def compressed(view: Image.Image, *, quality: int) -> Image.Image:
    """Go through JPEG and back."""
    stream = BytesIO()
    view.save(stream, "JPEG", quality=quality)
    with Image.open(stream, formats=["JPEG"]) as again:
        return again.convert("RGB")


def _sky(view: Image.Image) -> Float32[np.ndarray, "1 S S"]:
    """Guess, from 0 to 1, what is sky: bright, without detail, no redder than blue, and so all the way up to the top edge."""
    s = view.width // _COARSE
    small = _pixels(view.resize((s, s), Image.Resampling.BOX))
    grey = _grey(small)
    detail = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    smooth = np.clip(1.5 - 8 * detail, 0, 1)
    cool = np.clip(1 + 6 * (small[2] - small[0]), 0, 1)
    open_above = np.minimum.accumulate(np.clip((grey - 0.35) * 6, 0, 1) * smooth * cool, axis=0)
    coarse = Image.fromarray((255 * open_above).astype(np.uint8))
    wide = coarse.filter(ImageFilter.MaxFilter(5))  # no streaks under wires and posts
    return _enlarged(np.asarray(wide, np.float32)[None] / 255, view.width)


Lamps = Float32[np.ndarray, "n 7"]
"""x, y and reach, in shares of the view's side; brightness; red, green, blue."""


def _random_lamps(rng: np.random.Generator) -> Lamps:
    """Some street lamps high up, some windows and headlamps lower, warm or cold."""
    n = int(rng.integers(1, 9))
    place = rng.uniform((0, 0.1, 0.08), (1, 0.75, 0.35), (n, 3))
    warm = rng.random((n, 1)) < 0.7
    colours = np.where(warm, (1.0, 0.75, 0.45), (0.9, 0.95, 1.0)) * rng.uniform(0.85, 1.15, (n, 3))
    return np.column_stack([place, rng.uniform(0.3, 1.0, n), colours]).astype(np.float32)


def _light_of(lamps: Lamps, s: int, ambient: Rgb) -> Float32[np.ndarray, "3 s s"]:
    """Sum up what falls on each part of the view: from lamps, each in its reach, more downwards; and from everywhere."""
    middle = (np.arange(s, dtype=np.float32) + 0.5) / s
    light = np.broadcast_to(ambient, (3, s, s))
    for x, y, reach, brightness, *colour in lamps:
        across = np.exp(-(((middle - x) / reach) ** 2))
        down = np.exp(-(((middle - y) / np.where(middle > y, 2 * reach, reach)) ** 2))
        light = light + brightness * np.array(colour, np.float32)[:, None, None] * (down[:, None] * across[None, :])
    return light


def _glow(lamps: Lamps, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw the lamps themselves: a blinding core and a halo around it."""
    half = -(-size // 2)
    cores = Image.new("RGB", (half, half))
    draw = ImageDraw.Draw(cores)
    for x, y, _, brightness, *colour in lamps:
        radius = rng.uniform(0.004, 0.02) * half * brightness
        shade = tuple(int(255 * min(1.0, 0.4 + 0.6 * float(part))) for part in colour)
        draw.ellipse((x * half - radius, y * half - radius, x * half + radius, y * half + radius), fill=shade)
    halo = cores.filter(ImageFilter.BoxBlur(0.05 * half)).filter(ImageFilter.BoxBlur(0.03 * half))
    gain = rng.uniform(2, 6)
    drawn = ImageChops.add(cores.filter(ImageFilter.BoxBlur(1)), halo.point(lambda value: gain * value))
    return drawn.resize((size, size), Image.Resampling.BILINEAR)


def _bell(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Draw about normal numbers, mean 0 and deviation 1: sums of two even ones, four times as fast."""
    dice = rng.integers(0, 256, (2, *shape), np.uint8)
    return np.asarray((dice[0].astype(np.float32) + dice[1] - np.float32(255)) * np.float32(1 / 104.5))


def _patchy(s: int, rng: np.random.Generator) -> Float32[np.ndarray, "s s"]:
    """Smooth random hills, mean about 0."""
    return np.asarray(_enlarged(rng.standard_normal((1, 4, 4), np.float32), s)[0])


def _tint(rng: np.random.Generator, strength: float) -> Rgb:
    """White, or a little off it."""
    return (1 + strength * rng.uniform(-1, 1, (3, 1, 1))).astype(np.float32)


def _enlarged(coarse: Float32[np.ndarray, "channels s s"], size: int) -> Float32[np.ndarray, "channels S S"]:
    fine = functional.interpolate(torch.from_numpy(coarse).unsqueeze(0), size=(size, size), mode="bilinear")
    return np.asarray(fine[0])


def _grey(pixels: Pixels) -> Float32[np.ndarray, "S S"]:
    return np.asarray(np.tensordot(_LUMA, pixels, axes=1))


def _planes(view: Image.Image) -> UInt8[np.ndarray, "3 S S"]:
    return np.stack([np.asarray(band) for band in view.split()])


def _pixels(view: Image.Image) -> Pixels:
    pixels = _planes(view).astype(np.float32)
    pixels *= np.float32(1 / 255)
    return pixels


def _image(pixels: Pixels) -> Image.Image:
    """Round to whole levels; changes the array it is given."""
    pixels *= np.float32(255)
    pixels += np.float32(0.5)
    planes = np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])

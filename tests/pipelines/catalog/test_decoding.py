"""Pixels through the child process: right ones, and a reason where there are none. Every malformed file passes through here."""

import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.catalog import decoding
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from schemas.errors import PhotoError, WorkError
from schemas.reasons import RejectReason
from tests.pipelines.catalog.photos import SHARED, encoded, gradient, jpeg, manifest

MALFORMED = manifest("malformed")
READ_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF")


@pytest.fixture(scope="module")
def decoder() -> Iterator[PhotoDecoder]:
    with PhotoDecoder(PhotoLimits()) as decoder:
        yield decoder


def reason(decoder: PhotoDecoder, data: bytes) -> RejectReason:
    with pytest.raises(PhotoError) as caught:
        decoder.decode(data)
    assert caught.value.detail
    return caught.value.reason


def pillows(data: bytes) -> np.ndarray:
    """What Pillow makes of a photo in this process: upright, as RGB."""
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("row", MALFORMED, ids=lambda row: row["file"])
def test_each_malformed_file_is_read_or_rejected_with_a_reason(row: dict[str, str], decoder: PhotoDecoder):
    data = (SHARED / "malformed" / row["file"]).read_bytes()
    child = decoder.pid
    start = time.monotonic()
    if row["category"] == "heic":
        assert decoder.decode(data).shape == (854, 1280, 3)
    elif row["pillow13_load"] == "ok" and row["format"] in READ_FORMATS:
        pixels = decoder.decode(data)
        assert pixels.dtype == np.uint8
        if row["mode"] in ("RGB", "L", "CMYK"):
            np.testing.assert_array_equal(pixels, pillows(data))
    else:
        reason(decoder, data)
    assert time.monotonic() - start < 10
    assert child in (None, decoder.pid), "it did not even cost a restart"
    assert peak_memory_mib(decoder) < 256, "the limit is 512"


def peak_memory_mib(decoder: PhotoDecoder) -> float:
    """The most memory the decoder had since it was started; unknown, hence 0, where there is no /proc."""
    if sys.platform != "linux":
        return 0
    status = Path(f"/proc/{decoder.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(64, 48), (3000, 1000)], ids=["in one strip", "in several strips"])
def test_a_photo_comes_out_upright(decoder: PhotoDecoder, orientation: int, size: tuple[int, int]):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(*size), "JPEG", exif=exif)

    np.testing.assert_array_equal(decoder.decode(data), pillows(data))


@pytest.mark.parametrize("number", range(2, 9))
def test_real_photos_of_all_orientations_show_the_same_picture(shared_data: Path, decoder: PhotoDecoder, number: int):
    """The first is of another brightness, so that it differs from the others by 13; upside down or mirrored by 35 and more."""
    upright, turned = (decoder.decode((shared_data / "exif" / f"ianare__landscape_{n}.jpg").read_bytes()) for n in (1, number))

    assert np.abs(coarse(turned) - coarse(upright)).mean() < 20


def coarse(photo: np.ndarray) -> np.ndarray:
    """The mean colours of 20 x 15 tiles of a photo of 600 x 450 pixels."""
    return photo.reshape(15, 30, 20, 30, 3).mean(axis=(1, 3))


def test_a_tiff_is_turned_once(decoder: PhotoDecoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(gradient(40, 20), "TIFF", exif=exif)

    assert decoder.decode(data).shape == (40, 20, 3)


def test_a_broken_orientation_leaves_the_photo_as_it_is(decoder: PhotoDecoder):
    exif = Image.Exif()
    exif[0x0112] = 9

    assert decoder.decode(encoded(gradient(40, 20), "JPEG", exif=exif)).shape == (20, 40, 3)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128, 0), (129, 1), (257, 1), (32_896, 128), (65_535, 255)])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight_by_257(decoder: PhotoDecoder, form: str, value: int, expected: int):
    data = encoded(Image.fromarray(np.full((2, 3), value, dtype=np.uint16)), form)

    assert decoder.decode(data).tolist() == [[[expected] * 3] * 3] * 2


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("LA", (50, 0), (255, 255, 255)),
    ],
)
def test_grey_becomes_colour_and_transparency_white(
    decoder: PhotoDecoder, mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]
):
    data = encoded(Image.new(mode, (2, 1), colour), "PNG")

    assert decoder.decode(data).tolist() == [[list(expected)] * 2]


def test_cmyk_becomes_colour(decoder: PhotoDecoder):
    cyan = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)

    red, green, blue = decoder.decode(cyan)[0, 0].tolist()

    assert (red, green, blue) == (0, 255, 255)


def test_a_palette_becomes_colour(decoder: PhotoDecoder):
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])

    assert decoder.decode(encoded(palette, "PNG")).tolist() == [[[10, 20, 30]]]


def test_of_several_pictures_the_first_is_taken(decoder: PhotoDecoder):
    pages = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (10, 200)]

    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])

    assert decoder.decode(data)[0, 0].tolist() == [10, 0, 0]


@pytest.mark.parametrize(
    ("width", "height", "min_side", "expected"),
    [
        (1600, 1200, 300, (300, 400)),  # a quarter
        (1600, 1200, 301, (600, 800)),  # a half: a quarter would be one pixel short
        (1600, 1200, 1201, (1200, 1600)),  # smaller than asked: all there is
        (100, 1600, 90, (1600, 100)),
    ],
)
def test_a_jpeg_is_decoded_smaller_but_no_side_below_the_least(
    decoder: PhotoDecoder, width: int, height: int, min_side: int, expected: tuple[int, int]
):
    data = encoded(gradient(width, height), "JPEG")

    assert decoder.decode(data, min_side=min_side).shape[:2] == expected
    assert decoder.decode(data).shape[:2] == (height, width)


def test_a_photo_that_ends_early_is_rejected(decoder: PhotoDecoder):
    data = encoded(gradient(300, 200), "JPEG")

    assert reason(decoder, data[: len(data) // 2]) == RejectReason.TRUNCATED
    assert reason(decoder, data[: len(data) // 2]) == RejectReason.TRUNCATED, "also after the first"


def test_floating_point_pixels_are_no_photo(decoder: PhotoDecoder):
    assert reason(decoder, encoded(Image.new("F", (2, 2), 0.5), "TIFF")) == RejectReason.UNSUPPORTED_FORMAT


def test_a_photo_that_needs_too_much_memory_is_rejected_and_the_next_one_read():
    """5000 x 5000 pixels of 4 bytes are 95 MiB; the decoder gets 64."""
    with PhotoDecoder(PhotoLimits(decoder_memory_bytes=64 * 2**20)) as decoder:
        assert reason(decoder, encoded(Image.new("RGB", (5000, 5000)), "PNG")) == RejectReason.DECODER_CRASHED
        assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)


def test_too_many_bytes_do_not_reach_the_decoder():
    with PhotoDecoder(PhotoLimits(max_bytes=100)) as decoder:
        assert reason(decoder, b"x" * 101) == RejectReason.TOO_MANY_BYTES
        assert decoder.pid is None


def test_a_decoder_that_hangs_is_killed_and_replaced():
    with PhotoDecoder(PhotoLimits(decode_timeout_s=1.0)) as decoder:
        decoder.decode(jpeg())
        hanging = decoder.pid
        os.kill(hanging, signal.SIGSTOP)

        assert reason(decoder, jpeg()) == RejectReason.DECODER_TIMEOUT

        assert_gone(hanging)
        assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)
        assert decoder.pid != hanging


def test_a_photo_larger_than_the_pipe_cannot_block_the_parent_for_ever():
    with PhotoDecoder(PhotoLimits(decode_timeout_s=1.0)) as decoder:
        decoder.decode(jpeg())
        os.kill(decoder.pid, signal.SIGSTOP)

        assert reason(decoder, jpeg() + b"\0" * 2**20) == RejectReason.DECODER_TIMEOUT


def test_a_decoder_that_crashes_in_mid_photo_is_said_to_have_crashed():
    with PhotoDecoder(PhotoLimits()) as decoder:
        decoder.decode(jpeg())
        os.kill(decoder.pid, signal.SIGSTOP)
        threading.Timer(0.2, crash, (decoder.pid,)).start()

        with pytest.raises(PhotoError, match="decoder-crashed: the decoder was ended by signal 11"):
            decoder.decode(jpeg() + b"\0" * 2**20)

        assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)


def crash(pid: int) -> None:
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("kills", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_decoder_that_is_killed_from_outside_is_replaced_once_for_the_same_photo(
    kills: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
):
    """By a system that is short of memory, or that stops a service; a second time is said to be the photo's fault."""
    ask, killed = decoding._Child.ask, list[int]()

    def killed_first(child: decoding._Child, *question: Any) -> Any:
        if len(killed) < kills:
            killed.append(child.process.pid)
            child.process.send_signal(number)
        return ask(child, *question)

    monkeypatch.setattr(decoding._Child, "ask", killed_first)
    with PhotoDecoder(PhotoLimits()) as decoder:
        if kills == 1:
            assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)
        else:
            with pytest.raises(PhotoError, match=f"decoder-crashed: the decoder was ended by signal {number.value}"):
                decoder.decode(jpeg())
        assert len(set(killed)) == kills
        assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)


def test_a_decoder_that_died_between_two_photos_is_replaced_silently():
    with PhotoDecoder(PhotoLimits()) as decoder:
        decoder.decode(jpeg())
        dead = decoder.pid
        os.kill(dead, signal.SIGKILL)
        time.sleep(0.1)

        assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)
        assert decoder.pid != dead


def test_a_closed_decoder_leaves_no_process_and_starts_again_when_asked():
    decoder = PhotoDecoder(PhotoLimits())
    decoder.decode(jpeg())
    child = decoder.pid

    decoder.close()
    decoder.close()

    assert_gone(child)
    assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)
    decoder.close()


def test_what_c_libraries_print_stays_away_from_the_user(shared_data: Path, decoder: PhotoDecoder, capfd):
    for row in MALFORMED:
        if row["category"] == "crash-corpus" and row["pillow13_load"] != "ok":
            reason(decoder, (shared_data / "malformed" / row["file"]).read_bytes())

    assert capfd.readouterr() == ("", "")


def test_decoders_in_several_threads_do_not_disturb_each_other():
    photos = [encoded(gradient(200 + step, 100), "JPEG") for step in range(6)]
    shapes: dict[int, list[int]] = {}

    def work(number: int) -> None:
        with PhotoDecoder(PhotoLimits()) as decoder:
            shapes[number] = [decoder.decode(photo).shape[1] for photo in photos]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert shapes == {number: [200, 201, 202, 203, 204, 205] for number in range(3)}


def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch):
    (tmp_path / "PIL.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)

    with PhotoDecoder(PhotoLimits()) as decoder:
        assert decoder.decode(jpeg(size=(8, 6))).shape == (6, 8, 3)


def test_a_decoder_that_cannot_start_is_no_fault_of_the_photo(monkeypatch, tmp_path: Path):
    (tmp_path / "PIL.py").write_text("raise ImportError('no Pillow here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with (
        PhotoDecoder(PhotoLimits()) as decoder,
        pytest.raises(WorkError, match="cannot be started: it ended with status 1: ImportError: no Pillow here"),
    ):
        decoder.decode(jpeg())


def assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_decoder_uses_the_memory_of_one_photo_for_the_next():
    """1024 x 768 pixels are 3 MB in Pillow and 2.3 MB to hand over: 1,300 pages that the system would have to clear each time."""
    photo = jpeg(size=(1024, 768))
    with PhotoDecoder(PhotoLimits()) as decoder:
        for _ in range(3):
            decoder.decode(photo)
        before = pages_asked_for(decoder.pid)
        for _ in range(10):
            decoder.decode(photo)

        assert (pages_asked_for(decoder.pid) - before) / 10 < 50


def pages_asked_for(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])

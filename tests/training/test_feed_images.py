"""Images of a batch: pixels of tiny PNGs made by hand, what is random, and what is broken."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from lakering.errors import IntegrityError
from recipes.training import ImageSettings
from training.feed.images import center_box, decode_images, random_box

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def png(width: int, height: int, rows: list[list[int]], kind: int = GREY, depth: int = 8, **chunks: bytes) -> bytes:
    """A PNG made by hand: ``rows`` are the samples of each line."""
    lines = b"".join(b"\0" + b"".join(v.to_bytes(depth // 8, "big") for v in row) for row in rows)
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)}
    parts |= {name.encode(): content for name, content in chunks.items()} | {b"IDAT": zlib.compress(lines), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts.items()
    )


def jpeg(pixels: np.ndarray, quality: int = 95, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, **options)
    return stream.getvalue()


def settings(size=(2, 2), channels=1, **more) -> ImageSettings:
    return ImageSettings(size=size, channels=channels, **more)


def decode(cells, chosen: ImageSettings, *, row_ids=None, **options) -> np.ndarray:
    """The images as 0..255 where they are not normalised, so that expectations are the samples as written."""
    out = np.full((len(cells), *chosen.size, chosen.channels), np.nan, np.float32)
    ids = np.arange(len(cells)) if row_ids is None else np.array(row_ids)
    decode_images(cells, ids, chosen, out=out, column="photo", source=lambda i: f"file of {i}", **options)
    return out


def samples(out: np.ndarray) -> list:
    return np.round(out * 255).astype(int).squeeze(-1).tolist()


WIDE = png(4, 2, [[10, 20, 30, 40], [50, 60, 70, 80]])


def test_an_image_of_the_size_wanted_keeps_its_pixels():
    assert samples(decode([WIDE], settings((2, 4)))) == [[[10, 20, 30, 40], [50, 60, 70, 80]]]


def test_values_lie_between_0_and_1():
    assert decode([png(2, 1, [[0, 255]])], settings((1, 2))).ravel().tolist() == [0.0, 1.0]


def test_the_centre_is_the_largest_box_of_the_size_s_shape():
    assert samples(decode([WIDE], settings((2, 2)))) == [[[20, 30], [60, 70]]]


def test_a_smaller_size_is_the_mean_of_what_it_covers():
    image = png(4, 2, [[0, 0, 0, 0], [8, 8, 8, 8]])
    # The triangle of a bilinear filter at half size weighs its four lines 1:3:3:1; the border has the inner three.
    assert samples(decode([image], settings((1, 1))))[0] == [[4]]


def test_colours_are_normalised_channel_by_channel():
    image = png(1, 1, [[51, 102, 255]], COLOUR)
    chosen = settings((1, 1), 3, normalise={"mean": [0.1, 0.2, 0.5], "std": [0.5, 0.1, 0.25]})
    np.testing.assert_allclose(decode([image], chosen).ravel(), [0.2, 2.0, 2.0], rtol=1e-6)


def test_channels_keep_their_place_in_wide_images():
    image = png(2, 1, [[1, 2, 3, 4, 5, 6]], COLOUR)
    chosen = settings((1, 2), 3, normalise={"mean": [0, 1, 2], "std": [1]})
    np.testing.assert_allclose(decode([image], chosen)[0, 0] * 255, [[1, 2 - 255, 3 - 510], [4, 5 - 255, 6 - 510]], rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "colours"),
    [
        (png(1, 1, [[7]], GREY), [7, 7, 7]),
        (png(1, 1, [[7 * 256 + 200]], GREY, 16), [7, 7, 7]),
        (png(1, 1, [[1 * 256, 2 * 256, 3 * 256]], COLOUR, 16), [1, 2, 3]),
        (png(1, 1, [[7, 0]], GREY_ALPHA), [7, 7, 7]),
        (png(1, 1, [[1, 2, 3, 0]], COLOUR_ALPHA), [1, 2, 3]),
        (png(1, 1, [[1]], PALETTE, PLTE=bytes([9, 9, 9, 1, 2, 3])), [1, 2, 3]),
        (png(1, 1, [[1]], PALETTE, PLTE=bytes([9, 9, 9, 1, 2, 3]), tRNS=bytes([255, 0])), [1, 2, 3]),
    ],
    ids=["grey", "grey 16", "colour 16", "grey alpha", "colour alpha", "palette", "palette alpha"],
)
def test_every_kind_of_png_gives_its_colours(image, colours):
    assert np.round(decode([image], settings((1, 1), 3)).ravel() * 255).tolist() == colours


def test_one_channel_of_a_colour_image_is_its_luma():
    image = png(3, 1, [[255, 0, 0, 0, 255, 0, 0, 0, 255]], COLOUR)
    assert samples(decode([image], settings((1, 3)))) == [[[76, 150, 29]]]  # 0.299, 0.587 and 0.114 of 255


@pytest.mark.parametrize(("channels", "expected"), [(3, [200, 100, 50]), (1, [0.299 * 200 + 0.587 * 100 + 0.114 * 50])])
def test_a_jpeg_gives_its_colours_whatever_its_size(channels, expected):
    pixels = np.broadcast_to(np.array([200, 100, 50], np.uint8), (640, 480, 3))
    for size in ((16, 16), (640, 480), (700, 500)):
        out = decode([jpeg(pixels)], settings(size, channels)) * 255
        np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), atol=2)


def saved(mode: str, colour: int | tuple[int, ...], **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (40, 30), colour).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "colours"),
    [
        (saved("L", 70), [70, 70, 70]),
        (saved("RGB", (200, 100, 50), progressive=True), [200, 100, 50]),
        (saved("RGB", (200, 100, 50), subsampling=0), [200, 100, 50]),
        (saved("CMYK", (0, 255, 255, 0)), [255, 0, 0]),
    ],
    ids=["grey", "progressive", "no subsampling", "cmyk"],
)
def test_every_kind_of_jpeg_gives_its_colours(image, colours):
    np.testing.assert_allclose(decode([image], settings((1, 1), 3)).ravel() * 255, colours, atol=2)


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)), st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["JPEG", "PNG"]), st.integers(0, 2**40),
)  # fmt: skip
@hypothesis_settings(deadline=None, max_examples=150)
def test_an_image_of_any_size_fills_any_size_from_any_box(stored, wanted, format, row_id):
    stream = io.BytesIO()
    Image.new("L", stored, 100).save(stream, format)
    chosen = settings(wanted, crop="random", flip=True, scale=(0.01, 1))
    out = decode([stream.getvalue()], chosen, row_ids=[row_id], epoch=3) * 255
    np.testing.assert_allclose(out, 100, atol=1)


def test_a_jpeg_decoded_at_a_part_of_its_size_shows_the_same():
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    out = decode([jpeg(np.broadcast_to(ramp, (600, 800)))], settings((60, 80))) * 255
    np.testing.assert_allclose(out[0, :, :, 0], np.broadcast_to(np.linspace(0, 255, 80), (60, 80)), atol=3)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, [[1, 2], [3, 4]]), (2, [[2, 1], [4, 3]]), (3, [[4, 3], [2, 1]]), (4, [[3, 4], [1, 2]]),
     (5, [[1, 3], [2, 4]]), (6, [[3, 1], [4, 2]]), (7, [[4, 2], [3, 1]]), (8, [[2, 4], [1, 3]])],
)  # fmt: skip
def test_an_image_is_turned_as_its_exif_orientation_says(orientation, upright):
    note = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0]) + bytes(4)
    assert samples(decode([png(2, 2, [[1, 2], [3, 4]], eXIf=note)], settings())) == [upright]


def test_a_turned_jpeg_is_cropped_as_it_is_seen():
    # Stored 80 wide and 40 high, dark on the left: seen 40 wide and 80 high, dark above.
    stored = np.zeros((40, 80), np.uint8)
    stored[:, 40:] = 240
    exif = Image.Exif()
    exif[0x0112] = 6
    out = decode([jpeg(stored, exif=exif.tobytes())], settings((8, 4))) * 255
    np.testing.assert_allclose(out[0, :3, :, 0], 0, atol=3)
    np.testing.assert_allclose(out[0, 5:, :, 0], 240, atol=3)


def test_a_broken_exif_note_does_not_break_its_image():
    assert samples(decode([png(2, 2, [[1, 2], [3, 4]], eXIf=b"rubbish")], settings())) == [[[1, 2], [3, 4]]]


def test_about_half_of_the_images_are_mirrored():
    out = samples(decode([WIDE] * 1000, settings((2, 4), flip=True), epoch=0))
    mirrored = sum(image == [[40, 30, 20, 10], [80, 70, 60, 50]] for image in out)
    assert mirrored + sum(image == [[10, 20, 30, 40], [50, 60, 70, 80]] for image in out) == 1000
    assert 440 < mirrored < 560


NOISE = png(16, 12, np.random.default_rng(4).integers(0, 256, (12, 16)).tolist())
RANDOM = settings((6, 6), crop="random", flip=True)


def test_what_is_random_depends_on_seed_epoch_and_row_alone():
    ids = np.arange(-30, 30)
    whole = decode([NOISE] * 60, RANDOM, row_ids=ids, seed=3, epoch=1)
    with ThreadPoolExecutor(3) as pool:  # in another order, in other company, in other threads
        alone = list(pool.map(lambda i: decode([NOISE], RANDOM, row_ids=[i], seed=3, epoch=1)[0], ids[::-1]))
    np.testing.assert_array_equal(whole, np.stack(alone[::-1]))
    assert len({image.tobytes() for image in whole}) == 60


@pytest.mark.parametrize("other", [{"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}, {"seed": 3}])
def test_another_seed_or_epoch_draws_anew(other):
    one, two = (decode([NOISE] * 20, RANDOM, **chosen) for chosen in ({"seed": 3, "epoch": 1}, other))
    assert not (one == two).all(axis=(1, 2, 3)).any()


def test_without_an_epoch_nothing_is_random():
    plain = decode([NOISE] * 3, settings((6, 6)))
    np.testing.assert_array_equal(decode([NOISE] * 3, RANDOM, seed=3), plain)


boxes = {"width": st.integers(1, 5000), "height": st.integers(1, 5000), "form": st.floats(0.05, 20)}
shares = st.floats(0, 1, exclude_max=True)


@hypothesis_settings(deadline=None)
@given(**boxes, area=st.floats(0.01, 1), stretch=st.floats(0.75, 4 / 3), x=shares, y=shares)
def test_a_random_box_lies_within_the_image_and_has_its_area(width, height, form, area, stretch, x, y):
    left, top, right, bottom = random_box(width, height, form, area, stretch, x, y)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (right - left) * (bottom - top) == pytest.approx(area * width * height, rel=1e-6)
    found, wanted = (right - left) / (bottom - top), form * stretch
    if found != pytest.approx(wanted, rel=1e-6):  # then it is as wide, or as high, as the image lets it be
        assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


@hypothesis_settings(deadline=None)
@given(**boxes)
def test_the_centre_box_touches_two_sides_and_has_the_form(width, height, form):
    left, top, right, bottom = center_box(width, height, form)
    assert (right - left) / (bottom - top) == pytest.approx(form, rel=1e-6)
    assert (left + right, top + bottom) == pytest.approx((width, height))
    assert (right - left, bottom - top) <= (width, height)
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


def test_random_crops_have_areas_of_the_scale_s_range():
    # Column c of a ramp holds c: a crop of the whole height and the size's form shows how wide it was.
    ramp = png(200, 200, [list(range(200))] * 200)
    out = decode([ramp] * 300, settings((20, 20), crop="random", scale=(0.25, 0.25)), epoch=0) * 255
    widths = (out[:, 0, -1, 0] - out[:, 0, 0, 0]) * 20 / 19
    assert widths.min() >= 100 * 0.75**0.5 - 3
    assert widths.max() <= 100 * (4 / 3) ** 0.5 + 3


BROKEN = {
    "empty": b"",
    "text": b"no image",
    "cut png": NOISE[:-40],
    "cut jpeg": jpeg(np.zeros((64, 64), np.uint8))[:-30],
    "other format": b"GIF89a" + bytes(20),
    "wrong checksum": NOISE[:20] + b"\xff" + NOISE[21:],
}


@pytest.mark.parametrize("cell", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_named_with_its_row_and_file(cell):
    with pytest.raises(IntegrityError, match=r"file of 1: photo of row -77 is no image that can be read: ") as caught:
        decode([WIDE, cell], settings(), row_ids=[5, -77])
    assert "on_error: skip" in str(caught.value)


@pytest.mark.parametrize("cell", BROKEN.values(), ids=BROKEN)
def test_a_skipped_image_is_zeros_and_told(cell):
    chosen = settings(on_error="skip", normalise={"mean": [0.5], "std": [0.1]})
    out = np.full((3, 2, 2, 1), np.nan, np.float32)
    broken = decode_images([WIDE, cell, WIDE], np.arange(3), chosen, out=out, column="photo", source=str)
    assert broken.tolist() == [False, True, False]
    assert not out[1].any()
    assert out[0].all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@hypothesis_settings(deadline=None)
@given(st.data())
def test_no_damage_to_an_image_raises_anything_else(data):
    whole = data.draw(
        st.sampled_from([NOISE, jpeg(np.arange(4096, dtype=np.uint8).reshape(64, 64), exif=b"Exif\0\0MM\0*" + bytes(30))])
    )
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + data.draw(st.integers(0, 8)) :]
    out = np.empty((1, 2, 2, 1), np.float32)
    decode_images([damaged], np.zeros(1, np.int64), settings(on_error="skip"), out=out, column="photo", source=str)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("side", "says"),
    [(40, "its 40 x 40 pixels are more than max_pixels, 1,000"), (60_000, r"\(3600000000 pixels\) exceeds limit")],
)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side, says):
    with pytest.raises(IntegrityError, match=says):
        decode([png(side, side, [])], settings(max_pixels=1000))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": (0, 2)}, "greater than or equal to 1"),
        ({"scale": (0.5, 0.2)}, "two shares of the area"),
        ({"scale": (0, 1)}, "two shares of the area"),
        ({"normalise": {"mean": [0.5, 0.5], "std": [1]}}, r"normalise.mean has 2 figures for 3 channels"),
        ({"normalise": {"mean": [0.5], "std": [0]}}, "greater than 0"),
        ({"max_pixels": 10**9}, "less than or equal to"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, says):
    with pytest.raises(ValidationError, match=says):
        ImageSettings(**{"size": (2, 2), **wrong})

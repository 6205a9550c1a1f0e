"""Images of a batch: JPEG and PNG bytes to float32, cropped, mirrored and normalised as the recipe says.

What is drawn for an image depends on (seed, epoch, row id) alone, so an epoch's images are the same on any number of
ranks and threads. Pillow decodes and resizes without Python's lock: threads share the rows of a batch between them.

An image is turned upright as its EXIF orientation says. Transparency is left out, as TensorFlow's and torch's decoders
do; 16-bit greys keep their upper 8 bits. One channel of a colour image is its luma (ITU-R 601). Resizing is bilinear
and, when it shrinks, antialiased. A JPEG that is much larger than wanted is decoded at 1/2, 1/4 or 1/8 of its size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Transpose

from lakering.errors import IntegrityError
from recipes.training import ImageSettings
from training.feed.random import random_units

Box = tuple[float, float, float, float]
Draw = npt.NDArray[np.float64]
FORMATS = ("JPEG", "PNG")
#: A random crop is at most this much wider, or higher, than the shape that it is resized to.
STRETCH = 4 / 3
#: A JPEG is decoded at no less than so many times the size wanted, so that the resizing still has pixels to average.
DETAIL = 2
ORIENTATION = 0x0112
UPRIGHT = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
           6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}  # fmt: skip
SWAPPING = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)


def decode_images(
    cells: Sequence[bytes] | npt.NDArray[np.object_],
    row_ids: npt.NDArray[np.int64],
    settings: ImageSettings,
    *,
    out: npt.NDArray[np.float32],
    column: str,
    source: Callable[[int], str],
    seed: int = 0,
    epoch: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Decodes ``cells``, each the bytes of a file, into ``out``: C-ordered float32 [rows, height, width, channels].

    With an ``epoch`` images are cropped and mirrored at random as the settings say; without one (validation, test,
    scoring) all are cropped at the centre and none is mirrored. Any rows may be decoded in any thread.

    Returns which rows are broken, as bool [rows]: their pixels are 0, and the caller gives them weight 0, so that every
    rank still has all its rows and steps, and the mean over the global batch leaves them out. With ``on_error: fail``
    there are none: IntegrityError names column, row id, and what ``source`` tells of the row's index (its file)."""
    assert out.flags.c_contiguous
    assert out.shape == (len(cells), *settings.size, settings.channels)
    draws = _draws(row_ids, seed, epoch)
    broken = np.zeros(len(cells), np.bool_)
    for i, cell in enumerate(cells):
        try:
            image = _read(cell, settings, draws[i] if draws is not None else None)
        except _Broken as error:
            if settings.on_error == "fail":
                raise IntegrityError(
                    f"{source(i)}: {column} of row {row_ids[i]} is no image that can be read: {error}",
                    next_step="mend the image and build the examples again, or let such rows weigh nothing (on_error: skip)",
                ) from error.__cause__
            broken[i] = True
            out[i] = 0
            continue
        _normalise(np.asarray(image), settings, out[i])
    return broken


def center_box(width: int, height: int, form: float) -> Box:
    """The largest box (left, top, right, bottom) of an image that has this form (its width by its height)."""
    box_width, box_height = min(width, height * form), min(height, width / form)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def random_box(width: int, height: int, form: float, area: float, stretch: float, x: float, y: float) -> Box:
    """A box (left, top, right, bottom) of ``area`` times the image's area, ``stretch`` times as wide for its height as
    ``form`` tells, or as near to that as the image allows; ``x`` and ``y`` say where, from 0 (left, top) to 1.

    After Szegedy et al., Going deeper with convolutions (2015), where boxes that do not fit are drawn again."""
    # A box of area a * W * H lies within the image when its form is from a W/H (as high as it) to W/(a H) (as wide).
    form = min(max(form * stretch, area * width / height), width / (area * height))
    box_width = min(width, math.sqrt(area * width * height * form))
    box_height = min(height, area * width * height / box_width)
    left, top = x * (width - box_width), y * (height - box_height)
    return left, top, min(width, left + box_width), min(height, top + box_height)


class _Broken(Exception):
    """Why bytes are no image that can be read."""


def _draws(row_ids: npt.NDArray[np.int64], seed: int, epoch: int | None) -> Draw | None:
    """Five random numbers in [0, 1) for each row."""
    return None if epoch is None else random_units(seed, epoch, np.asarray(row_ids)[:, None], np.arange(5))


@contextmanager
def _understood(cell: bytes) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything (SyntaxError, struct.error, ...)
        begin = cell[:8].hex(" ") or "nothing"
        raise _Broken(f"{len(cell):,} bytes that begin with {begin} ({type(error).__name__}: {error})") from error


def _read(cell: bytes, settings: ImageSettings, draw: Draw | None) -> Image.Image:
    """The image in the settings' size and channels."""
    with _understood(cell):
        image = Image.open(io.BytesIO(cell), formats=FORMATS)
    if image.width * image.height > settings.max_pixels:
        raise _Broken(f"its {image.width:,} x {image.height:,} pixels are more than max_pixels, {settings.max_pixels:,}")
    turn = UPRIGHT.get(_orientation(image))
    whole_width, whole_height = image.size[::-1] if turn in SWAPPING else image.size
    box = _box(whole_width, whole_height, settings, draw)
    height, width = settings.size
    detail = DETAIL * max(width / (box[2] - box[0]), height / (box[3] - box[1]))
    mode = "RGB" if settings.channels == 3 else "L"
    with _understood(cell):
        image.draft(mode, (math.ceil(image.width * detail), math.ceil(image.height * detail)))
        image.load()
    upright = _in_mode(image if turn is None else image.transpose(turn), mode)
    made = upright.resize((width, height), Image.Resampling.BILINEAR, _scaled(box, whole_width, whole_height, upright.size))
    mirrored = settings.flip and draw is not None and draw[4] < 0.5
    return made.transpose(Transpose.FLIP_LEFT_RIGHT) if mirrored else made


def _scaled(box: Box, width: int, height: int, size: tuple[int, int]) -> Box:
    """A box of an image of width by height, in the same image decoded at another size. It stays within it."""
    x, y = size[0] / width, size[1] / height
    return box[0] * x, box[1] * y, min(size[0], box[2] * x), min(size[1], box[3] * y)


def _box(width: int, height: int, settings: ImageSettings, draw: Draw | None) -> Box:
    form = settings.size[1] / settings.size[0]
    if draw is None or settings.crop == "center":
        return center_box(width, height, form)
    area, stretch, x, y, _ = draw.tolist()
    low, high = settings.scale
    return random_box(width, height, form, low + area * (high - low), STRETCH ** (2 * stretch - 1), x, y)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1)) if "exif" in image.info else 1
    except Exception:  # a broken note beside an image that is whole
        return 1


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would cut 256 and more off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def _normalise(pixels: npt.NDArray[np.uint8], settings: ImageSettings, out: npt.NDArray[np.float32]) -> None:
    """Writes uint8 [height, width(, channels)] as float32."""
    height, width = settings.size
    rows = out.reshape(height, -1)  # channels side by side: figures per channel are repeated over the width
    np.divide(pixels.reshape(height, -1), np.float32(255), out=rows)
    if settings.normalise:
        for figures, step in ((settings.normalise.mean, np.subtract), (settings.normalise.std, np.divide)):
            each = np.broadcast_to(np.array(figures, np.float32), settings.channels)
            step(rows, np.tile(each, width), out=rows)

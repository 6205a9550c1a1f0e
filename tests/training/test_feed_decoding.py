"""Images that a feed's batches hold, decoded ahead of the training by threads."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakering.errors import IntegrityError, SettingError
from lakering.manifest import Column
from recipes import read_recipe
from recipes.training import ImageSettings
from tests.training.test_feed_images import png
from training.feed import Feed, Order
from training.feed.adapters import tf_dataset
from training.feed.decoding import ImageDecoder, find_row

ORDER = Order(seed=9, batch_size=64, window=2, lanes=8)
PLAIN = ImageSettings(size=(2, 3), channels=1)
RANDOM = ImageSettings(size=(2, 2), channels=1, crop="random", flip=True)
SKIP = ImageSettings(size=(2, 3), channels=1, on_error="skip")


def photo_of(row_id: int) -> list[list[int]]:
    return [[row_id % 251, 1, 2], [3, 4, row_id // 251]]


def write_photos(toy, broken=()):
    """Gives every train row a photo; those of the broken rows are cut."""
    sizes = {}
    for file in toy.file("train").parent.glob("*.parquet"):
        rows, parquet = pq.read_table(file), pq.ParquetFile(file)
        cells = [png(3, 2, photo_of(row_id))[: -30 if row_id in broken else None] for row_id in rows["row_id"].to_pylist()]
        rows = rows.append_column("photo", pa.array(cells, pa.binary()))
        with pq.ParquetWriter(file, rows.schema) as writer:
            at = 0
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                writer.write_table(rows.slice(at, count))
                at += count
        sizes[file.name] = file.stat().st_size
    groups = [{**group, "file_bytes": sizes[group["path"]]} for group in toy.manifest.row_groups.to_pylist()]
    table = pa.Table.from_pylist(groups, schema=toy.manifest.row_groups.schema)
    return replace(
        toy, manifest=replace(toy.manifest, columns=(*toy.manifest.columns, Column("photo", "image")), row_groups=table)
    )


@pytest.fixture
def toy(write_toy):
    return write_photos(write_toy())


def feed_of(toy, rank=0, ranks=1):
    return Feed(lake=toy.lake, manifest=toy.manifest, split="train", order=ORDER, rank=rank, ranks=ranks)


def decoder_of(toy, settings, *, augment=False, seed=5, **options):
    feed = feed_of(toy)
    groups = [feed.row_group(number) for number in range(toy.manifest.split("train").num_rows)]
    return ImageDecoder(settings={"photo": settings}, seed=seed, augment=augment, **options,
                        where=lambda row_id: find_row(toy.lake.storage.filesystem, groups, "row_id", row_id))  # fmt: skip


def decoded(toy, settings, *, rank=0, ranks=1, epoch=0, **options):
    with closing(feed_of(toy, rank, ranks).epoch(epoch)) as batches:
        return list(decoder_of(toy, settings, **options).decode(batches, epoch))


def photos_by_row(batches):
    return {
        int(row_id): image.tobytes()
        for batch in batches
        for row_id, image in zip(batch.row_id, batch.images["photo"], strict=True)
    }


def test_every_row_brings_its_own_image(toy):
    batches = decoded(toy, PLAIN, threads=2)
    assert [batch.step for batch in batches] == list(range(11))
    for batch in batches:
        assert (batch.images["photo"].dtype, batch.images["photo"].shape) == (np.float32, (batch.num_rows, 2, 3, 1))
        for row_id, image in zip(batch.row_id.tolist(), batch.images["photo"], strict=True):
            assert np.round(image[:, :, 0] * 255).tolist() == photo_of(row_id)
        assert batch.weight is None


def test_images_are_random_by_row_and_epoch_whatever_the_ranks_and_threads(toy):
    alone = photos_by_row(decoded(toy, RANDOM, augment=True))
    shared = [photos_by_row(decoded(toy, RANDOM, augment=True, rank=rank, ranks=3, threads=3, ahead=rank)) for rank in range(3)]
    assert alone == {**shared[0], **shared[1], **shared[2]}
    assert len(alone) == 650
    later = photos_by_row(decoded(toy, RANDOM, augment=True, epoch=1))
    assert sum(alone[row] == later[row] for row in alone) < 20


def test_outside_of_training_images_are_the_same_in_every_epoch(toy):
    assert photos_by_row(decoded(toy, RANDOM, epoch=0)) == photos_by_row(decoded(toy, RANDOM, epoch=1))


def test_a_broken_image_is_named_with_its_file(write_toy):
    toy = write_photos(write_toy(), broken={300})  # of 130 + 70 rows in file 0, then 90 + 110 + 50 in file 1
    with pytest.raises(
        IntegrityError, match=f"^{toy.file('train', 1)}, row group 1: photo of row 300 is no image that can be read"
    ):
        decoded(toy, PLAIN, threads=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lakering")]


@pytest.mark.parametrize("weight", [False, True])
def test_a_row_whose_image_is_skipped_weighs_nothing_on_any_rank(write_toy, weight):
    toy = write_photos(write_toy(weight=weight), broken={7, 300, 649})
    for ranks in (1, 2):
        weights: dict[int, float] = {}
        broken = 0
        for rank in range(ranks):
            decoder = decoder_of(toy, SKIP, threads=2)
            with closing(feed_of(toy, rank, ranks).epoch(0)) as batches:
                for batch in decoder.decode(batches, 0):
                    weights |= dict(zip(batch.row_id.tolist(), batch.weight.tolist(), strict=True))
                    for row_id, image in zip(batch.row_id.tolist(), batch.images["photo"], strict=True):
                        assert image.any() == (row_id not in {7, 300, 649})
            broken += decoder.broken
        assert broken == 3
        written = toy.rows["train"]["w"].tolist() if weight else [1.0] * 650
        assert weights == {row: 0.0 if row in {7, 300, 649} else written[row] for row in range(650)}


def test_a_feed_hands_its_images_on_decoded_to_tensorflow_too(write_toy):
    toy = write_photos(write_toy(), broken={7})
    feed = replace(feed_of(toy), images={"photo": SKIP})
    for epoch in (0, 1):
        elements = list(tf_dataset(feed, epoch).as_numpy_iterator())
        assert [element["images"]["photo"].shape for element in elements] == [(64, 2, 3, 1)] * 10 + [(10, 2, 3, 1)]
        weights = {row: weight for e in elements for row, weight in zip(e["row_id"].tolist(), e["weight"].tolist(), strict=True)}
        assert [row for row, weight in weights.items() if weight != 1] == [7]
        for element in elements:
            for row_id, image in zip(element["row_id"].tolist(), element["images"]["photo"], strict=True):
                assert row_id == 7 or np.round(image[:, :, 0] * 255).tolist() == photo_of(row_id)
    assert feed.statistics.images_skipped == 2


def test_a_feed_draws_what_is_random_from_its_seed_epoch_and_rows(toy):
    feed = replace(feed_of(toy), images={"photo": RANDOM}, augment=True, row_ids=False)
    first = photos_by_row(feed.epoch(0))
    assert first == photos_by_row(decoded(toy, RANDOM, augment=True, seed=ORDER.seed))
    assert first == photos_by_row(feed.epoch(0))


def test_a_column_that_is_no_image_is_named(toy):
    with pytest.raises(
        SettingError, match=r"training\.images: 'foto' is no image column of the examples; did you mean 'photo'\?"
    ):
        replace(feed_of(toy), images={"foto": PLAIN})


def test_images_are_set_in_the_recipe(toy):
    recipe = read_recipe(toy.recipe, overrides=["training.images={photo: {size: [2, 3], crop: random}}"])
    assert recipe.settings.training.images["photo"].size == (2, 3)
    toy.recipe.write_text(
        toy.recipe.read_text().replace("training: {", "training: {images: {photo: {size: [2], crops: random}}, ")
    )
    with pytest.raises(SettingError, match=r"training\.images\.photo\.crops: unknown key 'crops'; did you mean 'crop'\?"):
        read_recipe(toy.recipe)
    toy.recipe.write_text(toy.recipe.read_text().replace(", crops: random", ""))
    with pytest.raises(SettingError, match=r"training\.images\.photo\.size: Tuple should have at least 2 items"):
        read_recipe(toy.recipe)


def test_closed_in_the_middle_it_leaves_no_thread(toy):
    with closing(feed_of(toy).epoch(0)) as batches, closing(decoder_of(toy, PLAIN, threads=2).decode(batches, 0)) as images:
        next(images)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lakering")]


def test_no_more_batches_are_taken_than_are_held(toy):
    taken = []

    def counted():
        with closing(feed_of(toy).epoch(0)) as batches:
            for batch in batches:
                taken.append(batch.step)
                yield batch

    with closing(decoder_of(toy, PLAIN, ahead=2).decode(counted(), 0)) as images:
        assert next(images).step == 0
        assert taken == [0, 1, 2]

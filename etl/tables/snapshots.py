"""From a build to the manifest that training reads, and to the pin that keeps both."""

from __future__ import annotations

from etl.tables.example_files import lowered_retention, read_row_groups, set_retention, validate_counts
from etl.tables.examples import BUILD, build_lock, find_build
from etl.tables.inventory import build_of, list_snapshots
from lakering.errors import IntegrityError, LakeringError, SettingError, nearest
from lakering.lake import Lake
from lakering.manifest import JSON, Column, Manifest, read_manifest, validate_files, write_pin
from lakering.pins import Pin, delete_pin, read_pins


def make_snapshot(lake: Lake, recipe: str, build_id: str | None = None, *, by: str) -> tuple[Manifest, bool]:
    """Pins a build, the newest complete one by default, and writes its manifest; returns that and whether it was there.

    The pin comes first, and the build's lock is held: what a manifest names is never what the cleaner removes. Raises
    StageError when there is no such build, IntegrityError when its files are not those that were written."""
    chosen = find_build(lake, recipe, build_id)["build"]
    with build_lock(lake, recipe, chosen):
        manifest = build_manifest(lake, recipe, chosen)
        there = lake.storage.exists(*lake.snapshot(recipe, manifest.id), JSON)
        _pin(lake, manifest, by)
        # Written again although it is there: a person who asks for the newest build gets the newest snapshot.
        manifest.write(lake)
    return manifest, there


def build_manifest(lake: Lake, recipe: str, build_id: str | None = None, *, dry_run: bool = False) -> Manifest:
    """The manifest of a complete build, the newest by default; its retention is raised before. With ``dry_run`` it is the
    manifest that there would be, and the table stays as it is.

    Raises StageError when there is no such build, IntegrityError when its files are not those that were written."""
    build = find_build(lake, recipe, build_id)
    table = tuple(build["table"].split("/"))
    lowered = lowered_retention(lake, table) if build["format"] == "delta" else {}
    if lowered and not dry_run:
        set_retention(lake, table, lowered)
    version, row_groups = read_row_groups(lake, table, build["format"])
    if lowered and dry_run and version is not None:
        version += 1  # raising the retention is a commit
    validate_counts(row_groups, build["num_rows"], f"build {build['build']}")
    return Manifest(
        recipe=recipe,
        build=build["build"],
        table=build["table"],
        version=version,
        columns=tuple(Column(**column) for column in build["columns"]),
        label="label",
        label_kind=build["label_kind"],
        classes=build.get("classes"),
        weight=build["weight"],
        statistics=build["statistics"],
        contracts=build["contracts"],
        row_groups=row_groups,
    )


def pin_snapshot(lake: Lake, recipe: str, snapshot: str, *, by: str) -> Manifest:
    """Pins a snapshot that is there. Raises IntegrityError, and leaves no new pin, when its files are gone."""
    with build_lock(lake, recipe, read_manifest(lake, recipe, snapshot).build):
        manifest = read_manifest(lake, recipe, snapshot)  # again: the cleaner may have had the lock
        _pin(lake, manifest, by)
    return manifest


def unpin_snapshot(lake: Lake, recipe: str, snapshot: str) -> tuple[str | None, Pin | None]:
    """Takes a snapshot's pin away, so that the cleaner may remove its build; returns the build, and the pin if it had one."""
    pin = read_pins(lake).get(snapshot)
    delete_pin(lake, snapshot)
    return pin.build if pin else build_of(lake, recipe, snapshot), pin


def find_recipe(lake: Lake, recipes: list[str], snapshot: str) -> str:
    """Which of the recipes has a snapshot, or a pin of it. Raises SettingError that offers the nearest."""
    known = {name: recipe for recipe in recipes for name in list_snapshots(lake, recipe)}
    known |= {name: pin.recipe for name, pin in read_pins(lake).items() if pin.recipe in recipes}
    if snapshot not in known:
        of = f"recipe '{recipes[0]}'" if len(recipes) == 1 else "any recipe"
        raise SettingError(f"{snapshot!r} is not a snapshot of {of} in {lake.storage.root}{nearest(snapshot, known)}")
    return known[snapshot]


def _pin(lake: Lake, manifest: Manifest, by: str) -> None:
    """Where nothing is locked, the cleaner may be at work: it removes the build's record before it looks at the pins a last
    time, and here the pin is written before the record is looked for. So one of the two sees the other."""
    there = manifest.id in read_pins(lake)
    write_pin(lake, manifest, by)
    try:
        if not lake.storage.exists(*lake.build(manifest.recipe, manifest.build), BUILD):
            raise IntegrityError(f"snapshot {manifest.id}: its build {manifest.build} is being removed, or was",
                                 next_step="build the examples again (build_examples), then snapshot")  # fmt: skip
        validate_files(lake, manifest)
    except LakeringError:
        if not there:
            delete_pin(lake, manifest.id)
        raise

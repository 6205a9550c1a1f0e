"""Pins: the small files that name what the cleaner must leave alone. ``lakering.manifest`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lakering.errors import InputError, IntegrityError
from lakering.lake import PINS, Lake

SUFFIX = ".json"


@dataclass(frozen=True)
class Pin:
    """A snapshot that stays, the build that it keeps, and who pinned it."""

    snapshot: str
    recipe: str
    build: str
    by: str


def read_pins(lake: Lake, known: Mapping[str, Pin] | None = None) -> dict[str, Pin]:
    """All pins of a lake by snapshot. Those ``known`` from an earlier look are not read again: a snapshot's id tells its build.

    Raises IntegrityError for a pin that cannot be understood, since nobody can say then what may be removed."""
    pins = {}
    for name in lake.storage.list(PINS):
        if name.startswith(".") or not name.endswith(SUFFIX):
            continue  # a temporary name
        snapshot = name.removesuffix(SUFFIX)
        pin = (known or {}).get(snapshot) or _read_pin(lake, snapshot)
        if pin:
            pins[snapshot] = pin
    return pins


def delete_pin(lake: Lake, snapshot: str) -> None:
    lake.storage.delete(PINS, snapshot + SUFFIX)


def _read_pin(lake: Lake, snapshot: str) -> Pin | None:
    parts = (PINS, snapshot + SUFFIX)
    try:
        facts = lake.storage.read_json(*parts)
        return Pin(snapshot=snapshot, recipe=facts["recipe"], build=facts["build"], by=facts["by"])
    except InputError:
        return None  # taken away since it was listed
    except (KeyError, TypeError):
        raise IntegrityError(f"{lake.storage.path(*parts)} does not tell recipe, build and by",
                             next_step="remove it if its snapshot may go, else take the snapshot again") from None  # fmt: skip

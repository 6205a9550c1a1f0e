"""Random numbers that depend on named integers alone: the same on any rank, in any thread, in any order of asking."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def random_keys(*parts: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """64 random bits for each combination of the (broadcast) parts: SplitMix64's finaliser, folded over them.

    Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014). Unlike a generator of numpy it is
    evaluated for all parts at once, and no release of numpy can change it."""
    key = np.zeros((), dtype=np.uint64)
    for part in parts:
        key = mixed(np.asarray(key ^ np.asarray(part, dtype=np.int64).astype(np.uint64)))
    return key


def mixed(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mixes the bits of each key, in place."""
    shifted = np.empty_like(key)
    key += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key ^= np.right_shift(key, np.uint64(shift), out=shifted)
        key *= np.uint64(factor)
    key ^= np.right_shift(key, np.uint64(31), out=shifted)
    return key


def random_units(*parts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1) for each combination of the (broadcast) parts: the upper 53 of their random bits."""
    return (random_keys(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53

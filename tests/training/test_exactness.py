"""The same numbers on one, two and three ranks, and to the bit from run to run on as many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.exact_ranks import CASES, LONG, SIZES, write_recipes

pytestmark = pytest.mark.faults
SCRIPT = Path(__file__).with_name("exact_ranks.py")
#: Cases by number of ranks. All of them on three ranks would take minutes more.
RANKS = {1: list(CASES), 2: list(CASES), 3: ["adam", "two_tower", "float32", "gradient"]}


@pytest.fixture(scope="module")
def seen(tmp_path_factory, toy_writer, job_environment):
    """By number of ranks what each saw of every case, and of a second start of the deterministic one."""
    toy = toy_writer(tmp_path_factory.mktemp("exact"), SIZES)
    write_recipes(toy.recipe)

    def run(ranks: int, output: str, *cases: str) -> list[dict]:
        launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks), "--network-interface", "lo"]
        command = [*(launcher if ranks > 1 else []), sys.executable, str(SCRIPT), str(toy.folder), output, *cases]
        done = subprocess.run(command, env=job_environment, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return [json.loads((toy.folder / f"{output}-{rank}.json").read_text()) for rank in range(ranks)]

    ranks = {n: run(n, f"n{n}", *cases) for n, cases in RANKS.items()}
    again = {n: run(n, f"again{n}", "deterministic") for n in (1, 2)}
    return ranks, again


@pytest.mark.parametrize(("case", "ranks"), [(c, n) for n in (2, 3) for c in RANKS[n] if LONG[0] in CASES[c][1]])
def test_float64_losses_are_those_of_one_rank(seen, case, ranks):
    alone, ours = seen[0][1][0][case], seen[0][ranks][0][case]
    assert alone["rows"] == ours["rows"] == ([50] * 40 + [33]) * 5
    assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-10)
    assert len(set(alone["losses"])) == 205
    assert np.mean(alone["losses"][-41:]) < np.mean(alone["losses"][:41])


@pytest.mark.parametrize("ranks", [2, 3])
def test_float32_losses_over_twenty_steps(seen, ranks):
    alone, ours = seen[0][1][0]["float32"], seen[0][ranks][0]["float32"]
    assert alone["rows"] == ours["rows"] == [100] * 20 + [33]
    assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_float32_gradient_of_equal_weights(seen, ranks):
    alone, ours = (np.array(seen[0][n][0]["gradient"]["velocity"]) for n in (1, ranks))
    assert np.linalg.norm(alone) > 0.1
    assert np.linalg.norm(ours - alone) < 1e-6 * np.linalg.norm(alone)


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_hold_the_same_weights(seen, ranks):
    for case in RANKS[ranks]:
        assert len({rank[case]["weights"] for rank in seen[0][ranks]}) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_deterministic_runs_are_equal_to_the_bit(seen, ranks):
    first, second = seen[0][ranks][0]["deterministic"], seen[1][ranks][0]["deterministic"]
    assert first["weights"] == second["weights"]
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == 15

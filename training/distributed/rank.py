"""A rank's own process under Spark: takes an order on standard input, and answers on what was standard output.

    python -m training.distributed.rank

The order: {"function": "module:name", "request", "stall_seconds", "device"}; the answer: {"result"}, or {"error",
"ours"}, where "ours" tells an error with a text for people."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from lakering.errors import LakeringError
from training.distributed.launch import work_as_rank
from training.distributed.world import _to_json


def main() -> None:
    order = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of the answer
    outcome: dict[str, Any]
    try:
        outcome = {"result": work_as_rank(order["function"], order["request"], True, order["stall_seconds"], order["device"])}
    except Exception as failure:
        text = _to_json(failure, int(os.environ["HOROVOD_RANK"]))
        outcome = {"error": json.loads(text), "ours": isinstance(failure, LakeringError)}
    with answer:
        json.dump(outcome, answer)


if __name__ == "__main__":
    main()

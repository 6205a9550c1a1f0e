"""Evaluates a trained model on the hold-out, beside two baselines, and writes the report.

spark-submit --properties-file spark-defaults.conf training/jobs/evaluate.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import sys

from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary
from training.distributed import STALL_SECONDS, launch, num_ranks, only_first_speaks, parse_device
from training.evaluate import evaluate_request
from training.preview import preview_evaluation
from training.summaries import add_evaluation


def parser() -> argparse.ArgumentParser:
    flags = job_parser("Evaluates a trained model on the hold-out split and writes a report.")
    flags.add_argument("--ranks", type=int, metavar="N", help="under spark-submit: how many ranks, one a task slot")
    flags.add_argument("--run", metavar="ID", help="the run to evaluate (default: the newest with a trained model)")
    flags.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing, launch no rank")
    flags.add_argument("--network-interface", metavar="NIC", help="what ranks talk over (default: Horovod's choice)")
    flags.add_argument("--stall-seconds", type=int, default=STALL_SECONDS, metavar="S",
                       help="a rank that keeps the others waiting this long is named and ends the run")  # fmt: skip
    flags.add_argument("--device", default="auto", metavar="D", help="cpu, gpu, or auto (default): a GPU if there is one")
    return flags


def main(args: argparse.Namespace, summary: Summary) -> None:
    request = evaluate_request(read_recipe_of(args), run=args.run)
    if args.dry_run:
        num_ranks(args.ranks)
        return preview_evaluation(summary, request)
    result = launch("training.evaluate:evaluate", request, args.ranks, args.network_interface, args.stall_seconds,
                    device=parse_device(args.device))  # fmt: skip
    if "report" in result:
        add_evaluation(summary, result)


if __name__ == "__main__":
    run_job(main, parser(), only_first_speaks(sys.argv[1:]))

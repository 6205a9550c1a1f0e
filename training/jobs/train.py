"""Trains the recipe's model on its newest snapshot.

spark-submit --properties-file spark-defaults.conf training/jobs/train.py --recipe recipes/flights.yaml --ranks 2
horovodrun -np 2 python training/jobs/train.py --recipe recipes/flights.yaml
python training/jobs/train.py --recipe recipes/flights.yaml
"""

from __future__ import annotations

import argparse
import sys

from lakering.jobs import job_parser, read_recipe_of, run_job
from lakering.summary import Summary
from training.distributed import MAX_RESETS, STALL_SECONDS, Elastic, launch, num_ranks, only_first_speaks, parse_device
from training.preview import preview_training
from training.requests import train_request
from training.summaries import add_training


def parser() -> argparse.ArgumentParser:
    flags = job_parser("Trains the recipe's model on a snapshot; goes on with a run that was broken off.")
    flags.add_argument("--ranks", type=int, metavar="N", help="under spark-submit: how many ranks, one a task slot")
    flags.add_argument("--snapshot", metavar="ID", help="the snapshot to train on (default: the newest)")
    flags.add_argument("--new", action="store_true", help="train again, though a run of the same inputs is complete")
    flags.add_argument("--resume", metavar="RUN",
                       help="the run to go on with (default: that of the same snapshot, recipe and code, if any)")  # fmt: skip
    flags.add_argument("--spot-notice", metavar="PLACE",
                       help="file:/path or http(s) URL that is looked at every 2 s; once the file is there, or the URL answers "
                       "200, the training is saved and ended as by SIGTERM, with exit status 75")  # fmt: skip
    flags.add_argument("--scale-batch", type=int, metavar="K",
                       help="K times the recipe's global batch; learning rate and warm-up are scaled with it")  # fmt: skip
    flags.add_argument("--profile", metavar="FIRST:LAST",
                       help="record these global steps for TensorBoard's profiler, with Horovod's timeline")  # fmt: skip
    flags.add_argument("--elastic", metavar="MIN:MAX",
                       help="go on when ranks die (and "
                       "under horovodrun --min-np MIN --max-np MAX when hosts are added)")  # fmt: skip
    flags.add_argument("--max-resets", type=int, default=MAX_RESETS, metavar="N",
                       help="with --elastic: end when ranks were lost or added more often")  # fmt: skip
    flags.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing, launch no rank")
    flags.add_argument("--network-interface", metavar="NIC", help="what ranks talk over (default: Horovod's choice)")
    flags.add_argument("--stall-seconds", type=int, default=STALL_SECONDS, metavar="S",
                       help="a rank that keeps the others waiting this long is named and ends the run")  # fmt: skip
    flags.add_argument("--device", default="auto", metavar="D", help="cpu, gpu, or auto (default): a GPU if there is one")
    return flags


def main(args: argparse.Namespace, summary: Summary) -> None:
    request = train_request(read_recipe_of(args), snapshot=args.snapshot, new=args.new, scale_batch=args.scale_batch,
                            profile=args.profile, resume=args.resume, spot_notice=args.spot_notice)  # fmt: skip
    elastic = Elastic.parse(args.elastic, args.max_resets) if args.elastic else None
    device = parse_device(args.device)
    if args.dry_run:
        return preview_training(summary, request, num_ranks(args.ranks))
    result = launch("training.train:train", request, args.ranks, args.network_interface, args.stall_seconds, elastic, device)
    add_training(summary, result)


if __name__ == "__main__":
    run_job(main, parser(), only_first_speaks(sys.argv[1:]))

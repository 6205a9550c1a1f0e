"""``horovodrun`` with its doors shut, by the same arguments:

python -m training.distributed.horovodrun -np 2 python training/jobs/train.py --recipe recipes/flights.yaml

Its servers listen on the loopback, or on the interface named with ``--network-interface``, alone; no secret of the
environment stands in a command line, where other users of the machine read it; too few slots are told at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lakering.errors import LakeringError, SettingError, TrainingError
from training.distributed.services import listening_on

#: Names of environment variables whose values are kept out of the command lines of other machines.
SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|SAS", re.IGNORECASE)
#: Seconds to wait for hosts when too few are left: a discovery script may find others, a list of hosts does not grow.
WAIT_DISCOVERY, WAIT_FIXED = 600, 10
#: Seconds that ranks wait for each other at a start: a rank that joins has TensorFlow to import.
CONNECT_SECONDS = 180


def main() -> int:
    """Runs the command on every slot; returns the exit status."""
    from horovod.runner import launch

    args = launch.parse_args()
    try:
        with listening_on(validate(args)), secrets_unexported():
            launch._run(args)
    except LakeringError as error:
        return _fail(error)
    except Exception as error:
        return _fail(TrainingError(f"the ranks did not all end well: {' '.join(str(error).split())}",
                                   next_step="a rank above tells why; started again, a training goes on from its last "
                                   "checkpoint"))  # fmt: skip
    return 0


def validate(args: argparse.Namespace) -> str:
    """The interface that all ranks can use. Raises SettingError for too few slots, and for hosts elsewhere without a
    named interface. Sets how long an elastic run waits for hosts, unless the arguments or the environment say it."""
    from horovod.runner.common.util.hosts import parse_host_files, parse_hosts_and_slots
    from horovod.runner.util.network import filter_local_addresses

    if args.hostfile and not args.hosts:
        args.hosts = parse_host_files(args.hostfile)
    ranks = args.min_num_proc or args.num_proc
    names: list[str] = []
    if args.hosts:
        try:
            names, slots = parse_hosts_and_slots(args.hosts)
        except ValueError as error:
            raise SettingError(f"-H {args.hosts}: {error}") from None
        asked, there = max(ranks or 0, args.num_proc or 0), sum(slots.values())
        if asked > there:
            raise SettingError(f"-np {asked}, but -H {args.hosts} has {there} slots",
                               next_step=f"ask for at most {there} ranks, or give a host more slots")  # fmt: skip
    elastic = args.host_discovery_script is not None or args.min_num_proc is not None
    if elastic:
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(CONNECT_SECONDS))
        if args.elastic_timeout is None and "HOROVOD_ELASTIC_TIMEOUT" not in os.environ:
            grows = args.host_discovery_script is not None or args.cooldown_range is not None
            args.elastic_timeout = WAIT_DISCOVERY if grows else WAIT_FIXED
    named = sorted(args.nics or ())
    if (remote := filter_local_addresses(names)) and not named:
        raise SettingError(f"-H {args.hosts}: {', '.join(sorted(remote))} is not this machine, and no interface is named",
                           next_step="name the one that all hosts share: --network-interface NIC")  # fmt: skip
    if elastic:
        args.nics = args.nics or {"lo"}  # without one, Horovod waits for a second host
    return named[0] if named else "lo"


@contextmanager
def secrets_unexported() -> Iterator[None]:
    """Inside, Horovod's command lines hold no secret of the environment: on this machine the ranks inherit it anyway."""
    from horovod.runner import gloo_run
    from horovod.runner.util.network import filter_local_addresses

    build: Callable[[str, Mapping[str, str]], Callable[[Any], str]] = gloo_run._slot_info_to_command_fn

    def build_without(run_command: str, env: Mapping[str, str]) -> Callable[[Any], str]:
        local = build(run_command, {name: value for name, value in env.items() if os.environ.get(name) != value})
        remote = build(run_command, {name: value for name, value in env.items() if not SECRET.search(name)})

        def command(slot: Any) -> str:
            if slot.hostname not in filter_local_addresses([slot.hostname]):
                return local(slot)
            if left_out := sorted(filter(SECRET.search, env)):
                print(f"warning: {slot.hostname} is not given {', '.join(left_out)}: they would stand in command lines; "
                      "let it have them by its own means", file=sys.stderr)  # fmt: skip
            return remote(slot)

        return command

    gloo_run._slot_info_to_command_fn = build_without
    try:
        yield
    finally:
        gloo_run._slot_info_to_command_fn = build


def _fail(error: LakeringError) -> int:
    print(f"error: {error.message}" + (f"\nnext: {error.next_step}" if error.next_step else ""), file=sys.stderr)
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())

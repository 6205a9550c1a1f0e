"""A Kafka broker on this machine, for trials: one node on 127.0.0.1, without security.

    python scripts/kafka.py start [--port PORT] [--heap 512m]     tells its bootstrap servers
    python scripts/kafka.py status | stop

Its data, settings and log lie in a folder (.kafka, or --folder), which `stop` leaves: the next start has the same topics
on the same port.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from broker import Broker, BrokerError
from installer import SetupError
from spark_conf import ROOT


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status 0: as asked; 1: not running, or could not be started."""
    parser = argparse.ArgumentParser(description="A Kafka broker on this machine.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--port", type=int, default=0, help="to listen on (default: the one of before, else a free one)")
    parser.add_argument("--heap", default="512m", help="memory of its JVM")
    parser.add_argument("--folder", type=Path, default=ROOT / ".kafka")
    arguments = parser.parse_args()
    broker = Broker(arguments.folder, port=arguments.port, heap=arguments.heap)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if arguments.action == "start":
            servers = broker.start()
            print(f"bootstrap servers: {servers}\nthe recipes' own: export KAFKA_SERVERS={servers}")
        elif arguments.action == "stop":
            print("the broker has ended" if broker.stop() else "no broker was running")
        elif not broker.running():
            print("no broker is running", file=sys.stderr)
            return 1
        else:
            print(f"bootstrap servers: {broker.servers}")
    except (BrokerError, SetupError, OSError) as error:
        print(f"kafka: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kafka: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

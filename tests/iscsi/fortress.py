"""A portal in a process of its own, to be attacked: prints its address, and ends with its standard input.

python -m tests.iscsi.fortress [THREADS]
"""

from __future__ import annotations

import sys

from tests.iscsi import served


def main() -> None:
    """Serve three disks of 4 MiB, which hardly count beside what clients make us keep."""
    served.SIZE = 4 << 20
    with served.served(threads=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as running:
        print(running.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

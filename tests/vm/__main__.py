"""`python -m tests.vm -- COMMAND…`: boot, run one command in the checkout, exit with its status."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from . import Job, Machine, MachineError

TIMEOUT_STATUS = 124  # as timeout(1)
MACHINE_STATUS = 255  # the machine failed, not the command
REFRESH = 0.2  # seconds between two looks at the output


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", default="2G", help="as qemu -m takes it (%(default)s)")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for the command (%(default)g)")
    parser.add_argument("--kernel", type=Path, metavar="VMLINUZ", help="another kernel than the newest installed one")
    parser.add_argument("--keep-console", type=Path, metavar="FILE", help="write the kernel's console here")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="program and arguments; one word is a shell line")
    options = parser.parse_args()

    machine = Machine(cpus=options.cpus, memory=options.memory, kernel=options.kernel)
    try:
        with machine as vm:
            job = vm.spawn(options.command[0] if len(options.command) == 1 else options.command)
            return follow(job, options.timeout)
    except MachineError as error:
        print(error, file=sys.stderr)
        return MACHINE_STATUS
    except KeyboardInterrupt:
        return 130
    finally:
        if options.keep_console:
            options.keep_console.write_text(machine.console())


def follow(job: Job, timeout: float) -> int:
    """Show the job's output as it grows, until it ends; its exit status."""
    deadline = time.monotonic() + timeout
    with job.stdout_path.open("rb") as stdout, job.stderr_path.open("rb") as stderr:
        while True:
            ended = job.join(REFRESH)
            for output, ours in ((stdout, sys.stdout.buffer), (stderr, sys.stderr.buffer)):
                shutil.copyfileobj(output, ours)
                ours.flush()
            if ended:
                return job.result().returncode
            if time.monotonic() > deadline:
                print(f"timeout: {timeout:g} s", file=sys.stderr)
                return TIMEOUT_STATUS


if __name__ == "__main__":
    sys.exit(main())

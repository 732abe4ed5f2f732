"""`python -m tests.simulation`: run schedules by seed, or one schedule step by step."""

from __future__ import annotations

import argparse
import itertools
import sys
from time import monotonic

from tests.simulation.schedule import Schedule, parse_step
from tests.simulation.search import LEVELS, Failure, explore, kind_of, schedule_of, violation_of
from tests.simulation.shrink import shrink


def main() -> int:
    """Return 1 when something fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--level", choices=LEVELS, default="engine")
    parser.add_argument("--seed", type=int, help="run the schedule of this seed alone")
    parser.add_argument("--steps", help="run these steps, as a failure prints them")
    parser.add_argument("--variant", type=int, help="what the world is built with")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed of a search")
    parser.add_argument("--seconds", type=float, help="how long to search; without it until something fails")
    parser.add_argument("--kinds", nargs="*", default=(), help="search for these kinds of failure alone")
    options = parser.parse_args()
    if options.steps is not None or options.seed is not None:
        if options.steps is not None:
            steps = tuple(parse_step(text) for text in options.steps.split())
            schedule = Schedule(options.level, steps, options.variant or 0)
        else:
            schedule = schedule_of(options.level, options.seed)
            if kind_of(schedule) is not None:
                schedule = shrink(schedule, kind_of)
        found = violation_of(schedule, print)
        print(found[1] if found is not None else "all is well")
        return found is not None
    began = monotonic()
    count, failure = explore(
        options.level,
        itertools.count(options.first),
        seconds=options.seconds,
        kinds=options.kinds,
        variant=options.variant,
    )
    print(f"{count} schedules in {monotonic() - began:.1f} s")
    print("all is well" if failure is None else failure)
    return isinstance(failure, Failure)


if __name__ == "__main__":
    sys.exit(main())

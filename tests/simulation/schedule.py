"""A schedule: a list of steps, each a name and six bytes that choose among what is possible when its turn comes.

A step means something whatever came before it (its bytes are taken modulo what there is), so that steps can be left
out, and numbers made smaller, and what remains is a schedule still. That is what makes failures shrink.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

CHOICES = 6  # bytes of a step
Step = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run does: `variant` is what the world is built with, `seed` where the steps came from (None: a person)."""

    level: str
    steps: tuple[Step, ...]
    variant: int = 0
    seed: int | None = None

    def __str__(self) -> str:
        """Return the options of `python -m tests.simulation` that repeat it."""
        steps = " ".join(format_step(step) for step in self.steps)
        return f'--level {self.level} --variant {self.variant} --steps "{steps}"'

    def with_steps(self, steps: Iterable[Step]) -> Schedule:
        """Return the same world with other steps."""
        return replace(self, steps=tuple(steps))


def format_step(step: Step) -> str:
    """Return a step as text: its name and, without the zeros at the end, its choices in hexadecimal."""
    name, choices = step
    digits = choices.rstrip(b"\0").hex()
    return f"{name}:{digits}" if digits else name


def parse_step(text: str) -> Step:
    """Return the step that `format_step` has written."""
    name, _, digits = text.partition(":")
    return name, bytes.fromhex(digits).ljust(CHOICES, b"\0")


def generate(level: str, weights: Mapping[str, int], variants: Sequence[int], seed: int, length: int) -> Schedule:
    """Return the schedule of a seed: at most `length` steps.

    Each seed leaves some kinds of steps out, another set each time: a fault that needs many of one kind is found
    sooner when others do not come between.
    """
    rng = random.Random(seed)
    bits = rng.getrandbits(64)
    kept = {name: weight for at, (name, weight) in enumerate(weights.items()) if weight >= 30 or bits >> at & 1}
    count = length // 3 + rng.randrange(length - length // 3)
    names = rng.choices(list(kept), cum_weights=list(accumulate(kept.values())), k=count)
    data = rng.randbytes(CHOICES * count)
    steps = tuple((name, data[at * CHOICES : (at + 1) * CHOICES]) for at, name in enumerate(names))
    return Schedule(level, steps, rng.choice(variants), seed)

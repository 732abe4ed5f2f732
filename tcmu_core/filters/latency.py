"""Latency: a time, or a distribution that times are drawn from."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable

from tcmu_core.errors import ConfigError
from tcmu_core.filters.clock import duration

Latency = Callable[[random.Random], float]
_SHAPES: dict[str, tuple[int, str]] = {
    "uniform": (2, "uniform/LEAST/MOST"),
    "normal": (2, "normal/MEAN/DEVIATION"),
    "exponential": (1, "exponential/MEAN"),
    "pareto": (2, "pareto/LEAST/SHAPE"),
}


def latency(text: str) -> Latency:
    """Return what draws seconds as `text` says: `5ms`, `uniform/1ms/5ms`, `normal/…`, `exponential/…`, `pareto/…`.

    Raises:
        ConfigError: it is none of these.
    """
    shape, *parts = text.split("/")
    if not parts:
        fixed = duration(text)
        return lambda chance: fixed
    count, form = _SHAPES.get(shape, (0, ""))
    if not count:
        raise ConfigError(f"{text!r} is no latency: write a time, or {', '.join(form for _, form in _SHAPES.values())}")
    if len(parts) != count:
        raise ConfigError(f"{text!r}: write {form}")
    first = duration(parts[0])
    if shape == "exponential":
        return lambda chance: chance.expovariate(1 / first) if first else 0.0
    if shape == "pareto":
        try:
            slope = float(parts[1])
        except ValueError:
            slope = 0.0
        if not 0 < slope < math.inf:  # nor is it no number, NaN
            raise ConfigError(f"{parts[1]!r} is no shape: write a number above 0, such as 1.5")
        return lambda chance: _pareto(chance, first, slope)
    second = duration(parts[1])
    if shape == "uniform":
        return lambda chance: chance.uniform(first, second)
    return lambda chance: max(0.0, chance.gauss(first, second))


def _pareto(chance: random.Random, least: float, slope: float) -> float:
    try:
        return least * chance.paretovariate(slope)
    except OverflowError:  # the smaller the shape, the longer its tail
        return sys.float_info.max

"""Random numbers as functions of (seed, epoch, purpose, sample): the same on any rank, in any order, after a resume.

Bits are taken raw from a ``Philox`` generator (Salmon et al. 2011), because NumPy guarantees that stream across its
versions, but not what ``Generator`` makes of it.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.samples import Indices

ORDER, CHANGES, NOISE, MIXING = range(4)  # what bits are for: each purpose has its own stream


def shuffled(count: int, seed: int, epoch: int) -> Indices:
    """The numbers 0 … ``count`` − 1 in the order of an epoch."""
    bits = np.random.Philox(_sequence(seed, epoch, ORDER)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)


def _sequence(seed: int, epoch: int, purpose: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed & 0xFFFF_FFFF_FFFF_FFFF, epoch, purpose])


class Stream:
    """The random words of single samples. Not for several threads at once; making one costs some 30 µs."""

    def __init__(self, seed: int, epoch: int, purpose: int) -> None:
        self._generator = np.random.Philox(key=_sequence(seed, epoch, purpose).generate_state(2, np.uint64))
        self._state = self._generator.state  # writing to it is ten times faster than making a generator a sample

    def words(self, sample: int, count: int) -> NDArray[np.uint64]:
        """The first ``count`` 64-bit words of ``sample``, which has 2⁶⁶ of its own."""
        counter = self._state["state"]["counter"]
        counter[:] = 0
        counter[1] = sample
        self._generator.state = self._state
        return self._generator.random_raw(count)

    def fractions(self, samples: Indices, count: int) -> list[list[float]]:
        """For each of ``samples`` the first ``count`` numbers from 0 up to, but not including, 1."""
        bits = np.empty((len(samples), count), dtype=np.uint64)
        for row, sample in enumerate(samples.tolist()):
            bits[row] = self.words(sample, count)
        fractions: list[list[float]] = ((bits >> np.uint64(11)) * 2.0**-53).tolist()
        return fractions


def below(limit: int, fraction: float) -> int:
    """An integer from 0 to ``limit`` − 1."""
    return int(fraction * limit)


def between(low: float, high: float, fraction: float) -> float:
    """A number from ``low`` to ``high``."""
    return low + (high - low) * fraction


def normal_field(words: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
    """Fill ``out`` (contiguous, of 4·len(words) values or fewer) with normally distributed numbers of σ 1."""
    quantiles = words.astype("<u8", copy=False).view("<u2")[: out.size]
    np.take(_normal_quantiles(), quantiles, out=out.reshape(-1), mode="clip")


@cache
def _normal_quantiles() -> NDArray[np.float32]:
    """Of the middles of 2¹⁶ equal shares: ±4.2 σ at the ends, and a look-up is faster than any transformation."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse((share + 0.5) / 65536) for share in range(65536)], dtype=np.float32)


_TRIES = 12  # each fails with less than 5 %
MIXING_WORDS = 1 + 2 * (1 + 2 * _TRIES)


def beta(alpha: float, fractions: list[float]) -> float:
    """A number distributed as Beta(α, α), out of 2·(1 + 2·12) fractions: G₁ / (G₁ + G₂) of two Gamma(α) numbers."""
    half = len(fractions) // 2
    difference = _log_gamma_distributed(alpha, fractions[half:]) - _log_gamma_distributed(alpha, fractions[:half])
    return 1 / (1 + math.exp(difference)) if difference < 700 else 0.0


def _log_gamma_distributed(alpha: float, fractions: list[float]) -> float:
    """Logarithm of a Gamma(α) number, by Marsaglia and Tsang (2000): that of α + 1, times U^(1/α)."""
    first, *rest = (max(fraction, 2.0**-54) for fraction in fractions)
    d = alpha + 1 - 1 / 3
    value = 1.0
    for one, two in zip(rest[::2], rest[1::2]):
        x = NormalDist().inv_cdf(one)
        value = (1 + x / math.sqrt(9 * d)) ** 3
        if value > 0 and math.log(two) < x * x / 2 + d * (1 - value + math.log(value)):
            break
        value = 1.0  # as good as never after all tries: the middle of the distribution
    return math.log(d * value) + math.log(first) / alpha

"""What is asked of a fleet: requests from a trace, or drawn from a seed.

A trace is CSV with the header `arrival_s,input,output`, or `arrival_s,input,output,prefix`: seconds
since the beginning, which never go back; tokens of the prompt and of the answer; and of the prompt
those at its beginning that all requests with a prefix have in common, an instruction say.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from services.common.errors import InvalidArgument, NotFound

MAX_REQUESTS = 1_000_000
MAX_TOKENS = 1 << 20
MAX_ARRIVAL_S = 30 * 86_400.0
HEADER = ["arrival_s", "input", "output"]
WITH_PREFIX = [*HEADER, "prefix"]


@dataclass(frozen=True, slots=True)
class Request:
    """One of them; tokens."""

    arrival_s: float
    input: int
    output: int
    prefix: int = 0


def read_trace(path: Path, limit: int = MAX_REQUESTS, scale: float = 1.0) -> tuple[Request, ...]:
    """The first `limit` requests, arrivals `scale` times as far apart; 0: all come at once. Raises
    InvalidArgument, naming file, line and field, and NotFound."""
    try:
        with path.open(newline="") as file:
            found = tuple(_rows(path, csv.reader(file), limit, scale))
    except OSError as error:
        raise NotFound(f"cannot read {path.name}: {error.strerror}", field=path.name) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument(f"{path.name} is not CSV", field=path.name) from error
    if not found:
        raise InvalidArgument(f"{path.name}:2: arrival_s: no request", field="arrival_s")
    return found


def _rows(path: Path, rows: Iterator[list[str]], limit: int, scale: float) -> Iterator[Request]:
    header = next(rows, [])
    if header not in (HEADER, WITH_PREFIX):
        names = ",".join(WITH_PREFIX)
        raise InvalidArgument(
            f"{path.name}:1: header: is not {names}, prefix being optional", field="header"
        )
    before_s = 0.0
    for count, row in enumerate(rows):
        line = count + 2
        if count == MAX_REQUESTS:
            raise InvalidArgument(
                f"{path.name}:{line}: arrival_s: more than {MAX_REQUESTS} requests",
                field="arrival_s",
            )
        if count == limit:
            return
        if len(row) != len(header):
            raise InvalidArgument(
                f"{path.name}:{line}: {header[-1]}: {len(row)} fields, not {len(header)}",
                field=header[-1],
            )
        arrival_s = _number(path, line, "arrival_s", row[0], before_s, MAX_ARRIVAL_S)
        tokens = [
            int(_number(path, line, name, text, least, MAX_TOKENS))
            for name, text, least in zip(header[1:], row[1:], (1, 1, 0), strict=False)
        ]
        if len(tokens) == 3 and tokens[2] > tokens[0]:
            raise InvalidArgument(
                f"{path.name}:{line}: prefix: is longer than the prompt", field="prefix"
            )
        before_s = arrival_s
        yield Request(arrival_s * scale, *tokens)


def _number(path: Path, line: int, name: str, text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        what = text[:40] if text.isprintable() else "what stands there"
        why = "goes backwards" if name == "arrival_s" and 0 <= number < least else "is no number"
        if not math.isnan(number) and why == "is no number":
            why = f"is not within {least:g} to {most:g}"
        raise InvalidArgument(f"{path.name}:{line}: {name}: {what} {why}", field=name)
    return number


@dataclass(frozen=True, slots=True)
class Generator:
    """Poisson arrivals, lengths from log-normal distributions of these means (tokens) and
    coefficients of variation."""

    requests: int
    rate_rps: float
    input_mean: float
    output_mean: float
    input_cv: float = 1.0
    output_cv: float = 1.0

    @classmethod
    def fitted_to(cls, trace: tuple[Request, ...]) -> Generator:
        """One whose means and variations are those of a trace."""
        span_s = trace[-1].arrival_s - trace[0].arrival_s
        input_mean, input_cv = _moments([one.input for one in trace])
        output_mean, output_cv = _moments([one.output for one in trace])
        rate = (len(trace) - 1) / span_s if span_s > 0 else float(len(trace))
        return cls(len(trace), max(rate, 1e-9), input_mean, output_mean, input_cv, output_cv)

    def draw(self, random: Random, until_s: float = math.inf) -> tuple[Request, ...]:
        """The same for the same seed; those that come later are left out."""
        requests, at_s = [], 0.0
        inputs = _Lengths.of(self.input_mean, self.input_cv)
        outputs = _Lengths.of(self.output_mean, self.output_cv)
        for _ in range(self.requests):
            at_s += random.expovariate(self.rate_rps)
            if at_s > until_s:
                break
            requests.append(Request(at_s, inputs.draw(random), outputs.draw(random)))
        return tuple(requests)


def _moments(values: list[int]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return mean, math.sqrt(variance) / mean


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Of a log-normal distribution, whole and at least 1."""

    mean: float
    mu: float
    sigma: float

    @classmethod
    def of(cls, mean: float, variation: float) -> _Lengths:
        sigma2 = math.log1p(variation * variation)
        return cls(mean, math.log(mean) - sigma2 / 2, math.sqrt(sigma2))

    def draw(self, random: Random) -> int:
        drawn = random.lognormvariate(self.mu, self.sigma) if self.sigma else self.mean
        return min(MAX_TOKENS, max(1, round(drawn)))

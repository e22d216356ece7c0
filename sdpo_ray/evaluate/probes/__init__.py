"""One question about a candidate in each file; each returns its scores under canonical names."""

from sdpo_ray.evaluate.statistics import Estimate
from sdpo_ray.records import Score


def score(name: str, estimate: Estimate) -> Score:
    return Score(name=name, n=estimate.n, value=estimate.value, low=estimate.low, high=estimate.high)

"""Does a personal policy do what its user asked for, on conversations that it never saw?"""

from collections import defaultdict
from collections.abc import Sequence

from sdpo_ray.evaluate.probes import score
from sdpo_ray.evaluate.statistics import mean_over_clusters
from sdpo_ray.records import Gain, Score


def gain(found: Sequence[Gain], *, confidence: float) -> tuple[Score, ...]:
    """Score `gain`: nats a token, with conversations as the unit that varies; `n` counts conversations.

    Raises DataError for fewer than two of them.
    """
    nats, tokens = defaultdict[str, float](float), defaultdict[str, int](int)
    for each in found:
        nats[each.conversation] += each.nats
        tokens[each.conversation] += each.num_tokens
    return (score("gain", mean_over_clusters(list(nats.values()), list(tokens.values()), confidence)),)

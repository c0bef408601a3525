"""Krum and multi-Krum: the sites whose models have the nearest neighbours (Blanchard et al. 2017, arXiv 1703.02757).

With n sites of which f may send anything, a site's score is the sum of its n - f - 2 smallest squared distances to
others; those with the smallest scores are kept. It needs n >= 2 f + 3.
"""

from torch import Tensor

from common.federation import Krum


def select(distances: Tensor, sites: list[str], spec: Krum) -> list[str]:
    """The sites kept, sorted; of equal scores the first in the alphabet.

    Args:
        distances: [sites, sites] squared distances, in the order of `sites`.
    """
    near = len(sites) - spec.faulty - 2
    # A site's distance to itself is the smallest, 0.
    scores = distances.sort(dim=1).values[:, 1 : near + 1].sum(dim=1).tolist()
    ranked = sorted(zip(scores, sites, strict=True))
    return sorted(site for _, site in ranked[: spec.keep])

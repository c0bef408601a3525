"""What a secure sum costs: a site's work and the coordinator's, by the number of sites, for a million parameters.

A site's fixed work is its keys, checking all signatures, dealing and opening shares; its work by parameters is the
fixed-point encoding and one stream of masks for each other site. The coordinator's is adding the vectors and taking
away what does not cancel: a stream for each survivor, and one for each pair of a survivor and a dropped site. All in
CPU seconds of one process. `site_seconds` is a site's work by parameters at 8 sites.

    OMP_NUM_THREADS=1 python -m benchmarks.secure_sum [--quick]
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from common.update.fixed_point import FixedPoint
from common.update.masks import add_masks
from common.update.secagg import (
    Session,
    advertise,
    check_advertised,
    deal,
    leftover,
    masks_of,
    new_secrets,
    open_dealt,
    opened,
)

SITES, QUICK_SITES = (3, 8, 16, 32), (3, 8)
PARAMETERS = 1_000_000
PIECE = 1 << 16
"""Numbers masked at a time, so that they stay in the core's cache."""


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - start


def measured(number: int, dropped: int) -> dict[str, float]:
    """CPU seconds of one site and of the coordinator in one sum."""
    names = tuple(f"site-{n:02}" for n in range(number))
    session = Session("0" * 64, "benchmark", 1, 0, names, number // 2 + 1)
    identity = {site: ec.generate_private_key(ec.SECP384R1()) for site in names}
    own = {site: new_secrets() for site in names}
    sent = [advertise(session, site, own[site], identity[site]) for site in names]
    seconds: dict[str, float] = {}
    with timed(seconds, "site_fixed"):
        roster = check_advertised(session, sent, {site: key.public_key() for site, key in identity.items()})
        deal(session, names[0], own[names[0]], roster)
    sealed = {site: deal(session, site, own[site], roster) for site in names}
    held = {}
    for site in names:
        seconds["opening"] = 0.0
        with timed(seconds, "opening"):
            held[site] = {s: open_dealt(session, site, own[site], roster[s], sealed[s][site]) for s in names}
    seconds["site_fixed"] += seconds.pop("opening")

    coding = FixedPoint(1.0, number)
    values = np.random.default_rng(1).uniform(-1e-3, 1e-3, PARAMETERS).astype(np.float32)
    with timed(seconds, "site"):
        vector = np.empty(PARAMETERS, np.uint32)
        masks = masks_of(session, names[0], own[names[0]], roster)
        for begin in range(0, PARAMETERS, PIECE):
            vector[begin : begin + PIECE] = coding.encode(values[begin : begin + PIECE])
            add_masks(vector[begin : begin + PIECE], masks, begin)

    survivors = names[dropped:]
    answers = {site: opened(held[site], survivors) for site in survivors}
    with timed(seconds, "coordinator"):
        total = np.zeros(PARAMETERS, np.uint32)
        for _ in survivors:
            total += vector
        rest = leftover(session, roster, survivors, answers)
        for begin in range(0, PARAMETERS, PIECE):
            add_masks(total[begin : begin + PIECE], rest, begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 and 8 sites only")
    given = parser.parse_args()
    print(f"{'sites':>6}{'dropped':>9}{'site, fixed':>14}{'site':>12}{'coordinator':>14}")
    values: dict[str, float] = {}
    for number in QUICK_SITES if given.quick else SITES:
        for dropped in (0, (number - 1) // 2):
            seconds = measured(number, dropped)
            row = f"{number:>6}{dropped:>9}{seconds['site_fixed']:>12.3f} s{seconds['site']:>10.3f} s"
            print(f"{row}{seconds['coordinator']:>12.3f} s", flush=True)
            if number == 8:
                suffix = "_dropped" if dropped else ""
                values |= {f"coordinator_seconds{suffix}": seconds["coordinator"], "site_seconds": seconds["site"]}
    print(json.dumps({name: round(value, 4) for name, value in sorted(values.items())}))


if __name__ == "__main__":
    main()

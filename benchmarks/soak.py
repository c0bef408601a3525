"""Many short rounds over TLS with random faults: does anything grow, and is the model that of a run without faults?

Real processes on this machine: a coordinator, sites that dial in through relays, the tiny study. In about one round of
four something is killed, or a wire is cut, damaged or loses an answer; what, when and where follow from the seed. After
each round the memory (RSS) of every long-lived process is noted, and the bytes of the coordinator's folder, its
database, the run's folder and each site's. The final model is compared with the simulation's, bit for bit.

`same`: whether they are equal. `rss_growth`, by process: the median of the last third of the rounds over that of the
middle third, of sites the largest. `bytes_per_round`: by how much folders grew a round over the last two thirds.

    python -m benchmarks.soak [--sites N] [--rounds N] [--seed N] [--often P] [--quick] [--plot FILE] [--json FILE]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks._consortium import running_consortium, simulated
from benchmarks._faults import LONGEST_S, Run, Wired, same
from benchmarks._soak_faults import Planned, Saboteur, plan
from benchmarks._soak_look import Look, growth, look, slopes
from benchmarks._tiny import TINY, answering_model

SITES, ROUNDS, SEED = 8, 100, 1
QUICK_SITES, QUICK_ROUNDS = 2, 3
OFTEN = 0.25
"""Probability of a fault in a round; if quick, there is one in the only round between the first and the last."""
SHIPPED = ("synthetic-north", "synthetic-south", "synthetic-east", "synthetic-west")
LOOK_S = 0.5


def names(count: int) -> tuple[str, ...]:
    return tuple([*SHIPPED, *(f"synthetic-{number}" for number in range(5, count + 1))][:count])


def study(rounds: int) -> dict[str, object]:
    of_rounds = {"rounds": rounds, "local_steps": 1, "validation_patients": 0, "deadline_s": 2 * LONGEST_S,
                 "keep_checkpoints": 2}  # fmt: skip
    return {**TINY, "name": "soak", "rounds": of_rounds}


def follow(run: Run, made: Wired, planned: list[Planned]) -> Iterator[tuple[Look, list[str]]]:
    """A look after each round, and what was done meanwhile. A run that ended by a fault is resumed.

    Raises:
        RuntimeError: it ends more often than there were faults.
    """
    saboteur, waiting, looked, done, ends = Saboteur(made, run), list(planned), 0, list[str](), 0
    while True:
        ended = not run.process.running
        begun = {event["round"] for event in run.events("round_started")}
        for fault in [fault for fault in waiting if fault.round in begun]:
            waiting.remove(fault)
            done.append(saboteur.do(fault))
            print(f"round {fault.round}: {done[-1]}", flush=True)
        finished = {event["round"] for event in run.events("round_finished")}
        if len(finished) > looked:
            looked = len(finished)
            taken = look(made, run, looked)
            print(f"round {looked} after {taken.seconds:.0f} s", flush=True)
            yield taken, done
            done = []
        if ended and run.process.wait(0) == 0:
            return
        if ended:
            ends += 1
            if ends > len(planned) - len(waiting):
                raise RuntimeError(run.process.log.read_text())
            run.process = run.start("run", "--resume", run.folder)
        time.sleep(LOOK_S)


def soak(sites: int, rounds: int, seed: int, often: float = OFTEN) -> dict[str, object]:
    values = study(rounds)
    planned = plan(names(sites), rounds, seed, often)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = answering_model(folder / "model", values, hidden=32)
        (folder / "simulated").mkdir()
        with running_consortium(folder, values, model, names(sites), Wired) as made:
            started = time.monotonic()
            run = Run(made)
            rows = list(follow(run, made, planned))
            seconds = time.monotonic() - started
            ended = run.end()
            tries = len(run.events("asked_again"))
        expected = simulated(made, folder / "simulated", made.study)
    looks = [seen for seen, _ in rows]
    return {
        "same": same(ended, expected),
        "sites": sites,
        "rounds": rounds,
        "seed": seed,
        "seconds": round(seconds),
        "faults": [asdict(fault) for fault in planned],
        "asked_again": tries,
        "rss_growth": growth(looks),
        "bytes_per_round": slopes(looks),
        "looks": [asdict(seen) for seen in looks],
        "done": [done for _, done in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--often", type=float, help=f"probability of a fault in a round; {OFTEN} unless given")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SITES} sites, {QUICK_ROUNDS} rounds")
    parser.add_argument("--plot", type=Path, help="also draw memory and bytes into this file")
    parser.add_argument("--json", type=Path, help="write every figure there")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sites = given.sites or (QUICK_SITES if given.quick else SITES)
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    often = given.often or (1.0 if given.quick else OFTEN)
    result = soak(sites, rounds, given.seed, often)
    if given.json:
        given.json.write_text(json.dumps(result))
    if given.plot:
        from benchmarks._soak_look import draw

        draw(result, given.plot)
    told = {name: value for name, value in result.items() if name not in ("looks", "done", "faults")}
    print(json.dumps({**told, "faults": len(result["faults"])}))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

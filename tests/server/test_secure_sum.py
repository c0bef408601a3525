"""Secure sums between the real sites' app and the real coordinator: what comes out, who drops out, what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from safetensors.torch import load_file

from client.egress import REFUSALS
from client.policy import SUM_CHANGED, SUM_FEW, SUM_KEYS, SUM_OLD
from common.keys import make_site_key, read_private_key
from common.secure_sum import coding_of, session_of
from common.study import Study
from common.transfer.records import PAYLOAD_MISSING, by_site, in_by_site
from common.update import secagg
from common.update.tensors import State
from server.gathering import RoundFailed
from server.round_store import Checkpoint
from server.secure_sum import identities
from tests.server.adding import same
from tests.server.conftest import REGISTRY
from tests.server.summing import MODEL, SITES, Run, added, dropping, fails, patients, round_record

CLIP = {"steps": ["difference", "clip"], "clip_norm": 1.0}
NUMBERS = {"rounds": 2, "local_steps": 1, "validation_patients": 0, "deadline_s": 30.0}


@pytest.fixture(scope="module")
def four_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four-sites")
    for site in SITES:
        text = f'extends = "{REGISTRY}"\nsite = "{site}"\n[synthetic]\npatients = 60\nseed = 1\n'
        (folder / f"{site}.toml").write_text(text)
    return folder


@pytest.fixture
def make(
    small_study: Callable[..., Study], four_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    monkeypatch.setattr("server.rounds.DESCRIBE_S", 5.0)

    def run(**tables: object) -> Run:
        values: dict[str, Any] = {
            "sites": {"train": list(SITES)}, "rounds": {**NUMBERS, "quorum": 3}, "update": CLIP,
            "secure_sum": {"threshold": 3}, "simulation": {"site_configs": str(four_sites)},
        }  # fmt: skip
        return Run(small_study(**(values | tables)), tmp_path / "arm")

    return run


def mean(sites: tuple[str, ...] | str, number: int) -> float:
    return sum(added(site, number) for site in sites) / len(sites)


def near(run: Run, model: State, moved: float) -> bool:
    """Within the bound of the sums of two rounds and the roundings of float32, of values up to 2."""
    bound = 2 * coding_of(run.study).error(len(SITES)) / 3 + 6 * 2.0**-23
    return all(float((model[name] - (tensor + moved)).abs().max()) <= bound for name, tensor in MODEL.items())


def test_every_round_is_the_mean_and_no_single_update_is_at_the_coordinator(make: Callable[..., Run]) -> None:
    run, seen = make(), []

    def look(site: str, message: Message) -> Message:
        """Before the last answer of the sum: all that the coordinator ever has."""
        if message.metadata.message_type == "query.sum_open":
            seen.extend(path for path in run.arm.glob("received-*/*") if path not in seen)
        return message

    run.grid.to = look
    assert near(run, run.go(), mean(SITES, 1) + mean(SITES, 2))
    masked = [path for path in seen if path.suffix == ".payload"]
    assert len(masked) == 2 * len(SITES)
    assert {path.name for path in seen} - {path.name for path in masked} == {"sum.json", *(f"{s}.json" for s in SITES)}
    assert not list(run.arm.glob("received-*")), "nothing of the masked updates stays either"
    for site in SITES:
        assert {len(run.audited(site, kind)) for kind in ("Keyed", "Dealt", "Masked", "Agreed", "Opened")} == {2}
        told = run.audited(site, "Opened")[0]["detail"]
        assert told == "shares that open the sum of 4 sites, without 0"
    (finished, _) = run.events("round_finished")
    assert finished["contributions"]["a"]["weight"] == 0.25 and finished["bytes"]["a"] > 4 * 1501


def test_what_arrives_is_masked(make: Callable[..., Run]) -> None:
    """The same update in two runs, of which one is hidden from the other's coordinator by nothing but the masks."""
    run, arrived = make(rounds={**NUMBERS, "rounds": 1}), {}

    def keep(site: str, message: Message) -> Message:
        if message.metadata.message_type == "query.sum_survivors":
            (path,) = run.arm.glob(f"received-0001/{site}-*.payload")
            arrived[site] = load_file(path)["w"]
        return message

    run.grid.to = keep
    run.go()
    clear = round(added("a", 1) * coding_of(run.study).scale)
    for numbers in arrived.values():
        assert numbers.unique().numel() == numbers.numel(), "every weight has the same change, and another number"
        assert int((numbers - clear).abs().min()) > 0


def test_means_by_patients(make: Callable[..., Run]) -> None:
    rounds = {**NUMBERS, "rounds": 1, "weights": "patients"}
    run = make(rounds=rounds, secure_sum={"threshold": 3, "largest_weight": 80})
    weights = [patients(site) for site in SITES]
    moved = sum(w * added(site, 1) for w, site in zip(weights, SITES, strict=True)) / sum(weights)
    assert near(run, run.go(), moved)
    parts = {site: given["weight"] for site, given in run.events("round_finished")[0]["contributions"].items()}
    assert parts == {site: weight / sum(weights) for site, weight in zip(SITES, weights, strict=True)}


@pytest.mark.parametrize("kind", ["train", "query.sum_keys", "query.sum_shares", "query.sum_vector"])
def test_a_site_that_drops_out_is_left_out_of_the_sum(make: Callable[..., Run], kind: str) -> None:
    run = make(rounds={**NUMBERS, "rounds": 1, "quorum": 3})
    run.grid.back = dropping({"d"}, kind)
    assert near(run, run.go(), mean("abc", 1))
    assert list(run.events("round_finished")[0]["contributions"]) == ["a", "b", "c"]
    without = 1 if kind == "query.sum_vector" else 0
    assert run.audited("a", "Opened")[0]["detail"] == f"shares that open the sum of 3 sites, without {without}"


@pytest.mark.parametrize("kind", ["query.sum_survivors", "query.sum_open"])
def test_a_site_that_drops_out_at_the_end_is_in_the_sum(make: Callable[..., Run], kind: str) -> None:
    run = make(rounds={**NUMBERS, "rounds": 1})
    run.grid.back = dropping({"d"}, kind)
    assert near(run, run.go(), mean(SITES, 1))


def test_below_the_minimum_nothing_is_opened_and_a_resumed_run_sums_anew(make: Callable[..., Run]) -> None:
    run = make(rounds={**NUMBERS, "rounds": 1, "quorum": 3})
    away = {"c", "d"}
    run.grid.back = dropping(away, "query.sum_vector")
    with pytest.raises(RoundFailed, match=r"masked updates of 2 sites and needs 3; none from c, d"):
        run.go()
    assert not any(run.audited(site, "Agreed") or run.audited(site, "Opened") for site in SITES)
    away.clear()
    assert near(run, run.go(), mean(SITES, 1))
    assert [kind for kind, _ in run.grid.asked].count("train") == len(SITES), "nobody trained twice"
    assert len(run.audited("a", "Keyed")) == 2, "with new keys"


def test_a_study_that_waits_sums_again_with_all(make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.missing.AGAIN_S", 0.01)
    run, left = make(rounds={**NUMBERS, "rounds": 1, "on_missing": "wait"}), [2]

    def twice(site: str, reply: Message) -> Message:
        if reply.metadata.message_type == "query.sum_vector" and site == "b" and left[0]:
            left[0] -= 1
            return fails(reply)
        return reply

    run.grid.back = twice
    assert near(run, run.go(), mean(SITES, 1))
    assert [event["missing"] for event in run.events("round_waits")] == [["b"], ["b"]]


KINDS = ["train", *(f"query.sum_{phase}" for phase in ("keys", "shares", "vector", "survivors", "open"))]


class Killed(Exception):
    """The coordinator is gone."""


@pytest.mark.parametrize(("kind", "number"), list(zip(KINDS, (2, 4, 2, 3, 4, 2), strict=True)))
def test_a_coordinator_that_dies_anywhere_ends_with_the_same_bits(
    make: Callable[..., Run], tmp_path: Path, kind: str, number: int
) -> None:
    run, left = make(), [number]
    whole = Run(run.study, tmp_path / "whole").go()

    def kill(site: str, reply: Message) -> Message:
        left[0] -= reply.metadata.message_type == kind
        if left[0] == 0:
            left[0] = -1
            raise Killed
        return reply

    run.grid.back = kill
    with pytest.raises(Killed):
        run.go()
    assert same(run.go(), whole), "masks are drawn anew, and leave no bit"
    opened = [entry["sha256"] for site in SITES for entry in run.audited(site, "Keyed")]
    assert len(set(opened)) == 2 * len(SITES), "one set of keys a round"


def test_a_site_that_is_gone_when_the_run_is_resumed_is_in_the_sum_that_has_its_update(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dead = make(rounds={**NUMBERS, "rounds": 1, "quorum": 3}), []

    def kill(site: str, reply: Message) -> Message:
        if reply.metadata.message_type == "query.sum_survivors" and not dead:
            dead.append(site)
            raise Killed
        return reply

    run.grid.back = kill
    with pytest.raises(Killed):
        run.go()
    monkeypatch.setattr("server.rounds.DESCRIBE_S", 1.0)
    del run.grid.contexts[SITES.index("d") + 2]
    assert near(run, run.go(), mean(SITES, 1))
    assert not run.audited("d", "Opened")


def test_a_site_that_lost_its_update_trains_again(make: Callable[..., Run]) -> None:
    run = make(rounds={**NUMBERS, "rounds": 1, "quorum": 4})
    done = []

    def lose(site: str, message: Message) -> Message:
        if message.metadata.message_type == "query.sum_keys" and site == "b" and not done:
            done.append(site)
            shutil.rmtree(next((run.arm / "sites" / "b").glob("studies/*/runs/run/withheld")))
        return message

    run.grid.to = lose
    with pytest.raises(RoundFailed, match="none from b"):
        run.go()
    assert near(run, run.go(), mean(SITES, 1))
    assert run.grid.asked.count(("train", "b")) == 2


def test_secrets_are_the_sites_own_and_go_when_the_round_is_folded(make: Callable[..., Run]) -> None:
    run, modes = make(), set()

    def look(site: str, message: Message) -> Message:
        if message.metadata.message_type == "query.sum_open":
            (place,) = (run.arm / "sites" / site).glob("studies/*/sum.json")
            modes.add(place.stat().st_mode & 0o777)
            assert b'"seed":""' not in place.read_bytes()
        return message

    run.grid.to = look
    run.go()
    assert modes == {0o600}
    for site in SITES:
        (place,) = (run.arm / "sites" / site).glob("studies/*/sum.json")
        assert b'"seed":""' in place.read_bytes() and b'"sealed":{}' in place.read_bytes()
        assert not list((run.arm / "sites" / site).glob("studies/*/runs/run/withheld/*"))
        assert not list((run.arm / "sites" / site).glob("studies/*/runs/run/outbox/*"))


def stopped(run: Run, kind: str, change: Callable[[str, Message], Message]) -> tuple[list[str], str]:
    """A round in which messages of this kind are changed; what sites refused, and the coordinator's last word."""
    run.grid.to = lambda site, message: (
        change(site, message) if message.metadata.message_type == kind else message
    )
    with pytest.raises(RoundFailed) as failed:
        run.go()
    faults = [event["fault"] for event in run.events("site_refused")]
    assert faults and all(run.audited(site, "Refused") for site in SITES[:1]), "it is in the site's log too"
    assert not any(run.audited(site, "Opened") for site in SITES)
    return faults, str(failed.value)


class TestACoordinatorThatDoesNotKeepToIt:
    def test_swaps_a_key(self, make: Callable[..., Run], tmp_path: Path) -> None:
        run = make()
        own, key = secagg.new_secrets(), read_private_key(make_site_key(tmp_path / "coordinator")[0])

        def swap(site: str, message: Message) -> Message:
            keys = in_by_site(message.content.config_records["keys"])
            session = session_of(run.study, "run", 1, 1)
            keys["b"] = secagg.advertise(session, "b", own, key).packed
            message.content["keys"] = by_site(keys)
            return message

        faults, said = stopped(run, "query.sum_shares", swap)
        assert set(faults) == {REFUSALS[SUM_KEYS]} and "the shares of 0 sites" in said

    def test_adds_a_site_of_its_own(self, make: Callable[..., Run], tmp_path: Path) -> None:
        run = make()
        own, key = secagg.new_secrets(), read_private_key(make_site_key(tmp_path / "coordinator")[0])

        def join(site: str, message: Message) -> Message:
            keys = in_by_site(message.content.config_records["keys"])
            stranger = secagg.advertise(session_of(run.study, "run", 1, 1), "stranger", own, key)
            message.content["keys"] = by_site({**keys, "stranger": stranger.packed})
            return message

        assert set(stopped(run, "query.sum_shares", join)[0]) == {REFUSALS[SUM_KEYS]}

    def test_leaves_out_all_but_two(self, make: Callable[..., Run]) -> None:
        def few(site: str, message: Message) -> Message:
            keys = in_by_site(message.content.config_records["keys"])
            message.content["keys"] = by_site({name: keys[name] for name in ("a", site)})
            return message

        assert set(stopped(make(), "query.sum_shares", few)[0]) == {REFUSALS[SUM_FEW]}

    def test_passes_on_other_shares(self, make: Callable[..., Run]) -> None:
        def other(site: str, message: Message) -> Message:
            sealed = in_by_site(message.content.config_records["sealed"])
            message.content["sealed"] = by_site({**sealed, "a": bytes(76)})
            return message

        assert set(stopped(make(), "query.sum_vector", other)[0]) == {REFUSALS[SUM_KEYS]}

    def test_says_that_others_are_left_than_before(self, make: Callable[..., Run]) -> None:
        """To have the other kind of share opened too: each site signs one list of survivors."""
        run = make(rounds={**NUMBERS, "rounds": 1})
        run.go()
        about = {"round": round_record(run), "sum": ConfigRecord({"attempt": 1, "survivors": ["a", "b", "c"]})}
        # The round is folded, so its secrets are gone.
        assert run.ask("a", "query.sum_survivors", **about).error.code == SUM_OLD

        def twice(site: str, message: Message) -> Message:
            if site == "a":
                about = {
                    "round": round_record(again),
                    "sum": ConfigRecord({"attempt": 1, "survivors": list("abc")}),
                    "signatures": message.content.config_records["signatures"],
                }
                codes.append(again.ask("a", "query.sum_survivors", **about).error.code)
                assert "seeds" in again.ask("a", "query.sum_open", **about).content, "of the list that was signed"
            return message

        codes: list[int] = []
        shutil.rmtree(run.arm)
        again = Run(run.study, run.arm)
        again.grid.to = lambda site, message: (
            twice(site, message) if message.metadata.message_type == "query.sum_open" else message
        )
        again.go()
        assert codes == [SUM_CHANGED]
        told = [entry["detail"] for entry in again.audited("a", "Opened")]
        assert set(told) == {"shares that open the sum of 4 sites, without 0"}

    def test_opens_with_signatures_under_another_list(self, make: Callable[..., Run]) -> None:
        run = make()

        def forged(site: str, message: Message) -> Message:
            signatures = in_by_site(message.content.config_records["signatures"])
            message.content["signatures"] = by_site({**signatures, "b": signatures["a"]})
            return message

        faults, said = stopped(run, "query.sum_open", forged)
        assert set(faults) == {REFUSALS[SUM_KEYS]} and "opened shares of 0 sites" in said

    def test_replays_an_older_round_or_try_or_another_run(self, make: Callable[..., Run]) -> None:
        run = make()
        run.go()
        for about in (
            {"round": round_record(run, number=1), "sum": ConfigRecord({"attempt": 1})},
            {"round": round_record(run, number=2), "sum": ConfigRecord({"attempt": 1})},
        ):
            assert run.ask("a", "query.sum_keys", **about).error.code in (SUM_OLD, PAYLOAD_MISSING)
            sealed = by_site(dict.fromkeys(SITES, bytes(76)))
            assert run.ask("a", "query.sum_vector", **about, sealed=sealed).error.code == SUM_OLD
        shutil.rmtree(run.arm / "outgoing", ignore_errors=True)
        for place in run.arm.glob("round-*"):
            place.unlink()
        run.store.save(Checkpoint(0, 0, MODEL, {}, {"baseline": {}}))
        with pytest.raises(RoundFailed):
            run.go()
        assert {event["fault"] for event in run.events("site_refused")} == {REFUSALS[SUM_OLD]}


def test_a_site_never_hands_out_its_update_in_clear(make: Callable[..., Run]) -> None:
    """By the hash that its own log has."""
    run, codes = make(rounds={**NUMBERS, "rounds": 1}), []

    def want(site: str, message: Message) -> Message:
        if message.metadata.message_type == "query.sum_open" and site == "a":
            digest = run.audited("a", "Learned")[0]["detail"].split()[1]
            wanted = ConfigRecord({"sha256": digest, "number": 0})
            codes.append(run.ask("a", "query.shard", round=round_record(run), wanted=wanted).error.code)
        return message

    run.grid.to = want
    run.go()
    assert codes == [PAYLOAD_MISSING]


def test_a_wrong_vector_is_left_out_and_wrong_shares_stop_the_round(make: Callable[..., Run]) -> None:
    run = make(rounds={**NUMBERS, "rounds": 1})

    def wrong(site: str, reply: Message) -> Message:
        if reply.metadata.message_type == "query.sum_open" and site == "b":
            seeds = in_by_site(reply.content.config_records["seeds"])
            reply.content["seeds"] = by_site({**seeds, "c": bytes(32)})
        return reply

    run.grid.back = wrong
    with pytest.raises(RoundFailed, match="the shares of the seed of site 'c' do not fit"):
        run.go()


def test_a_real_run_needs_the_sites_keys_in_the_study(make: Callable[..., Run]) -> None:
    with pytest.raises(RoundFailed, match="names no keys of its sites"):
        identities(make().study)

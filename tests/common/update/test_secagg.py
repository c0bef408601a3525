from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.update.fixed_point import FixedPoint
from common.update.masks import add_masks
from common.update.secagg import (
    Advertised,
    Opened,
    Refused,
    Secrets,
    Session,
    Shares,
    advertise,
    check_advertised,
    check_survivors,
    deal,
    joined,
    leftover,
    masks_of,
    new_secrets,
    open_dealt,
    opened,
    public,
    sign_survivors,
    split,
)

LENGTH = 40


@cache
def identity(site: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def session_of(number: int, threshold: int | None = None, **changed: int) -> Session:
    names = tuple(f"site-{n:02}" for n in range(number))
    return Session("5" * 64, "run", 3, changed.get("attempt", 0), names, threshold or number // 2 + 1)


def identities(session: Session) -> dict[str, ec.EllipticCurvePublicKey]:
    return {site: identity(site).public_key() for site in session.sites}


@dataclass
class Begun:
    """After step 2: every site's secrets, public keys, and its shares of everybody's."""

    session: Session
    own: dict[str, Secrets]
    roster: dict[str, Advertised]
    held: dict[str, dict[str, Shares]]


def begin(session: Session, advertised_only: frozenset[str] = frozenset()) -> Begun:
    """Sites in `advertised_only` never deal shares."""
    own = {site: new_secrets() for site in session.sites}
    sent = [advertise(session, site, own[site], identity(site)) for site in session.sites]
    roster = check_advertised(session, sent, identities(session))
    sealed = {site: deal(session, site, own[site], roster) for site in roster if site not in advertised_only}
    held = {
        site: {sender: open_dealt(session, site, own[site], roster[sender], sealed[sender][site]) for sender in sealed}
        for site in roster
    }
    return Begun(session, own, {site: roster[site] for site in sealed}, held)


def masked(begun: Begun, site: str, values: np.ndarray, coding: FixedPoint) -> np.ndarray:
    sent = coding.encode(values)
    add_masks(sent, masks_of(begun.session, site, begun.own[site], begun.roster))
    return sent


def summed(begun: Begun, vectors: dict[str, np.ndarray], answering: list[str]) -> np.ndarray:
    """The coordinator's part: survivors are those with a vector; `answering` are those that open shares."""
    total = np.zeros(LENGTH, np.uint32)
    for vector in vectors.values():
        total += vector
    answers = {site: opened(begun.held[site], vectors) for site in answering}
    add_masks(total, leftover(begun.session, begun.roster, vectors, answers))
    return total


@st.composite
def consortia(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Sites, threshold, those that drop before sending a vector, and a random order of all."""
    number = draw(st.integers(3, 10))
    threshold = draw(st.integers(number // 2 + 1, number))
    gone = draw(st.integers(0, number - threshold))
    return number, threshold, gone, draw(st.permutations(range(number)))


@settings(max_examples=12, deadline=None)
@given(consortia(), st.integers(0, 2**32 - 1))
def test_the_sum_is_the_plain_sum_whoever_drops_out(consortium: tuple[int, int, int, list[int]], seed: int) -> None:
    number, threshold, gone, order = consortium
    session = session_of(number, threshold)
    begun, coding = begin(session), FixedPoint(1.0, number)
    values = dict(zip(session.sites, np.random.default_rng(seed).uniform(-1, 1, (number, LENGTH)), strict=True))
    survivors = [session.sites[n] for n in order[gone:]]
    vectors = {site: masked(begun, site, values[site], coding) for site in survivors}
    # Of the survivors, no more than the threshold answer at the end.
    total = coding.decode(summed(begun, vectors, survivors[-threshold:]))
    plain = sum(values[site] for site in survivors)
    assert np.abs(total - plain).max() <= coding.error(len(survivors))


@pytest.mark.slow
def test_thirty_two_sites_with_the_most_dropouts() -> None:
    session = session_of(32, 17)
    begun, coding = begin(session), FixedPoint(1.0, 32)
    values = np.random.default_rng(1).uniform(-1, 1, (32, LENGTH))
    survivors = session.sites[15:]
    vectors = {site: masked(begun, site, values[session.index(site) - 1], coding) for site in survivors}
    total = coding.decode(summed(begun, vectors, list(survivors)))
    assert np.abs(total - values[15:].sum(axis=0)).max() <= coding.error(17)


def test_a_site_that_never_dealt_shares_is_not_needed() -> None:
    session = session_of(5, 3)
    begun, coding = begin(session, frozenset({"site-04"})), FixedPoint(1.0, 5)
    vectors = {site: masked(begun, site, np.full(LENGTH, 0.25), coding) for site in begun.roster}
    np.testing.assert_allclose(coding.decode(summed(begun, vectors, list(vectors))), 1.0, atol=coding.error(4))


def test_below_the_threshold_nothing_is_opened() -> None:
    session = session_of(5, 4)
    begun, coding = begin(session), FixedPoint(1.0, 5)
    vectors = {site: masked(begun, site, np.zeros(LENGTH), coding) for site in session.sites}
    with pytest.raises(Refused, match="3 shares of a secret, 4 are needed"):
        summed(begun, vectors, list(session.sites[:3]))


def test_a_single_vector_looks_random_and_differs_each_time() -> None:
    session, coding = session_of(3), FixedPoint(1.0, 3)
    values = np.zeros(1 << 16)
    first, second = begin(session), begin(session)
    one, two = masked(first, "site-00", values, coding), masked(second, "site-00", values, coding)
    for vector in (one, two, one - two):
        assert chisquare(np.bincount(vector.view(np.uint8), minlength=256)).pvalue > 1e-5


def test_the_sum_of_all_but_one_still_hides_it() -> None:
    """Without opened shares even the sum of all vectors is masked by the seeds."""
    session, coding = session_of(3), FixedPoint(1.0, 3)
    begun = begin(session)
    total = sum((masked(begun, site, np.zeros(1 << 16), coding) for site in session.sites), np.zeros(1, np.uint32))
    assert chisquare(np.bincount(total.view(np.uint8), minlength=256)).pvalue > 1e-5


class TestKeysInBetween:
    def test_a_swapped_key_is_caught_by_every_site(self) -> None:
        session = session_of(3)
        sent = [advertise(session, site, new_secrets(), identity(site)) for site in session.sites]
        own = new_secrets()
        for swap in (
            replace(sent[1], share_key=public(own.share_key)),
            replace(sent[1], mask_key=public(own.mask_key)),
            replace(sent[1], seed_hash=bytes(32)),
            advertise(session, "site-01", own, identity("coordinator")),
        ):
            with pytest.raises(Refused, match="signature of site 'site-01'"):
                check_advertised(session, [sent[0], swap, sent[2]], identities(session))

    @pytest.mark.parametrize("changed", [{"attempt": 1}, {"threshold": 3}])
    def test_keys_of_another_session_are_not_taken(self, changed: dict[str, int]) -> None:
        session = session_of(3)
        old = [advertise(session_of(3, **changed), site, new_secrets(), identity(site)) for site in session.sites]
        with pytest.raises(Refused, match="signature"):
            check_advertised(session, old, identities(session))

    def test_a_stranger_a_double_and_too_few_are_refused(self) -> None:
        session = session_of(3)
        sent = [advertise(session, site, new_secrets(), identity(site)) for site in session.sites]
        stranger = advertise(session, "site-99", new_secrets(), identity("site-99"))
        for wrong, why in (([*sent, stranger], "list"), ([*sent, sent[0]], "twice"), (sent[:1], "are needed")):
            with pytest.raises(Refused, match=why):
                check_advertised(session, wrong, identities(session))

    def test_a_point_of_low_order_is_refused(self) -> None:
        session = session_of(3)
        own = new_secrets()
        bad = Advertised("site-01", bytes(32), bytes(32), bytes(32))
        with pytest.raises(Refused, match="no key can be agreed"):
            deal(session, "site-00", own, {"site-01": bad})


class TestShares:
    @settings(max_examples=20, deadline=None)
    @given(st.binary(min_size=32, max_size=32), st.data())
    def test_any_threshold_of_shares_is_enough_and_fewer_are_not(self, secret: bytes, data: st.DataObject) -> None:
        session = session_of(5, 3)
        shares = dict(zip(session.sites, split(session, secret), strict=True))
        some = data.draw(st.permutations(session.sites))
        assert joined(session, {site: shares[site] for site in some[:3]}) == secret
        with pytest.raises(Refused, match="are needed"):
            joined(session, {site: shares[site] for site in some[:2]})

    def test_shares_for_another_or_changed_on_the_way_are_refused(self) -> None:
        session = session_of(3)
        own = {site: new_secrets() for site in session.sites}
        sent = [advertise(session, site, own[site], identity(site)) for site in session.sites]
        roster = check_advertised(session, sent, identities(session))
        sealed = deal(session, "site-00", own["site-00"], roster)["site-01"]
        open_dealt(session, "site-01", own["site-01"], roster["site-00"], sealed)
        flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
        for receiver, sender, data in (
            ("site-02", "site-00", sealed),
            ("site-01", "site-02", sealed),
            ("site-01", "site-00", flipped),
            ("site-01", "site-00", b""),
        ):
            with pytest.raises(Refused, match="not sealed"):
                open_dealt(session, receiver, own[receiver], roster[sender], data)

    def test_a_wrong_share_is_found_out(self) -> None:
        session = session_of(3, 2)
        begun, coding = begin(session), FixedPoint(1.0, 3)
        vectors = {site: masked(begun, site, np.zeros(LENGTH), coding) for site in session.sites[:2]}
        answers = {site: opened(begun.held[site], vectors) for site in vectors}
        good = answers["site-00"]
        for bad, why in (
            (Opened({**good.seeds, "site-01": bytes(32)}, good.mask_keys), "seed of site 'site-01'"),
            (Opened(good.seeds, {"site-02": bytes(32)}), "mask key of site 'site-02'"),
        ):
            with pytest.raises(Refused, match=why):
                leftover(session, begun.roster, vectors, {**answers, "site-00": bad})


class TestSurvivors:
    def test_of_no_site_both_secrets_are_opened(self) -> None:
        session = session_of(5, 3)
        begun = begin(session)
        for survivors in (session.sites, session.sites[:3]):
            given = opened(begun.held["site-00"], survivors)
            assert set(given.seeds) == set(survivors)
            assert set(given.mask_keys) == set(session.sites) - set(survivors)

    def test_two_lists_cannot_both_have_enough_signatures(self) -> None:
        """Each honest site signs one list, so two lists share a threshold of signatures only beyond all sites."""
        for number in range(3, 33):
            for threshold in range(number // 2 + 1, number + 1):
                session = session_of(number, threshold)
                assert 2 * session.threshold > len(session.sites)
            with pytest.raises(ValueError, match="more than half"):
                session_of(number, number // 2)

    def test_a_list_is_believed_only_with_enough_good_signatures(self) -> None:
        session = session_of(5, 3)
        names, keys = session.sites[:4], identities(session)
        good = {site: sign_survivors(session, names, identity(site)) for site in names[:3]}
        check_survivors(session, names, good, session.sites, 3, keys)
        other = {**good, "site-02": sign_survivors(session, names[:3], identity("site-02"))}
        outside = {**good, "site-04": sign_survivors(session, names, identity("site-04"))}
        few = {site: good[site] for site in names[:2]}
        for listed, signatures, dealt, minimum, why in (
            (names, other, session.sites, 3, "signature of site 'site-02'"),
            (names, few, session.sites, 3, "too few"),
            (names, outside, session.sites, 3, "too few"),
            (names, good, session.sites[:3], 3, "dealt no shares"),
            (names, good, session.sites, 5, "5 are needed"),
            (names[:2], good, session.sites, 1, "3 are needed"),
        ):
            with pytest.raises(Refused, match=why):
                check_survivors(session, listed, signatures, dealt, minimum, keys)

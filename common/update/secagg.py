"""Secure aggregation: the coordinator learns the sum of the sites' vectors and nothing else.

Bonawitz et al. 2017 (CCS, doi 10.1145/3133956.3133982), figure 4, in the variant against an active coordinator, on a
complete graph of sites (Bell et al. 2020, IACR eprint 2020/704, thin it for thousands; a consortium has tens):

1. Every site makes two X25519 key pairs and a seed for one sum, and signs the public halves and a hash of the seed with
   its registered identity key. All sites check all signatures against the study's list: the coordinator, which carries
   the messages, cannot put keys of its own in between.
2. Each shares its private mask key and its seed among all (Shamir, threshold t), each share encrypted for its receiver.
3. Each sends its vector plus the stream of its seed plus, for each other site, a stream of the key that the two agree
   on, added by one and taken away by the other.
4. All sign the list of the sites whose vectors arrived. Who sees t signatures under one list opens, for each site on
   it, a share of its seed, and for each that dropped out after step 2 a share of its mask key: never both of one site.
5. From t shares the coordinator rebuilds what does not cancel in the sum, and takes it away.

The primitives are those of `cryptography` (X25519, HKDF-SHA-256, AES-256-GCM, ECDSA P-384) and pycryptodome's Shamir.
This module is pure: no messages, no files, no policy. What a site agrees to open, and once only, is client/'s matter.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.update.masks import Mask

Identity = ec.EllipticCurvePublicKey
SECRET = 32
"""Bytes of a private mask key and of a seed."""
NONCE = 12
HALF = SECRET // 2
"""pycryptodome shares secrets of 16 bytes."""


class Refused(Exception):
    """The protocol stops: somebody's message is not what it must be. Nothing has been opened."""


@dataclass(frozen=True)
class Session:
    """One sum. Everything signed or derived is bound to all of it."""

    study: str
    run: str
    round: int
    attempt: int
    """Counted up whenever a round's sum is begun anew, so that no key serves twice."""
    sites: tuple[str, ...]
    """The study's named list, sorted."""
    threshold: int
    """Shares that open a secret, and signatures that make a list of survivors believed."""

    def __post_init__(self) -> None:
        if list(self.sites) != sorted(set(self.sites)):
            raise ValueError("a session's sites must be sorted and different")
        if not len(self.sites) < 2 * self.threshold <= 2 * len(self.sites):
            raise ValueError(
                f"threshold {self.threshold} must be more than half of {len(self.sites)} sites and at most all: with "
                "half or fewer a coordinator could have two lists of survivors signed and open both secrets of a site"
            )

    @property
    def binding(self) -> bytes:
        fields = [self.study, self.run, self.round, self.attempt, self.sites, self.threshold]
        return hashlib.sha256(json.dumps(fields).encode()).digest()

    def index(self, site: str) -> int:
        """A site's place among the shares, from 1."""
        return self.sites.index(site) + 1


@dataclass(frozen=True)
class Secrets:
    """What a site keeps to itself for one sum: raw private keys and the seed, 32 bytes each."""

    share_key: bytes
    mask_key: bytes
    seed: bytes


@dataclass(frozen=True)
class Advertised:
    """A site's public keys for one sum, with its identity key's signature."""

    site: str
    share_key: bytes
    mask_key: bytes
    seed_hash: bytes
    signature: bytes = b""

    def signed(self, session: Session) -> bytes:
        head = json.dumps(["advertised", self.site]).encode()
        return session.binding + head + self.share_key + self.mask_key + self.seed_hash

    @property
    def packed(self) -> bytes:
        """As it travels, without the site's name."""
        return self.share_key + self.mask_key + self.seed_hash + self.signature


@dataclass(frozen=True)
class Shares:
    """One site's shares of another's two secrets."""

    mask_key: bytes
    seed: bytes


@dataclass(frozen=True)
class Opened:
    """What a site opens at the end: for each site on the list a share of its seed, for each dropped one of its key."""

    seeds: dict[str, bytes]
    mask_keys: dict[str, bytes]


def new_secrets() -> Secrets:
    return Secrets(
        X25519PrivateKey.generate().private_bytes_raw(),
        X25519PrivateKey.generate().private_bytes_raw(),
        secrets.token_bytes(SECRET),
    )


def advertise(session: Session, site: str, own: Secrets, identity: ec.EllipticCurvePrivateKey) -> Advertised:
    """Step 1 at a site."""
    bare = Advertised(site, public(own.share_key), public(own.mask_key), hashlib.sha256(own.seed).digest())
    signature = identity.sign(bare.signed(session), ec.ECDSA(hashes.SHA384()))
    return Advertised(bare.site, bare.share_key, bare.mask_key, bare.seed_hash, signature)


def unpack_advertised(site: str, data: bytes) -> Advertised:
    """What `Advertised.packed` made; whether it is one, its signature says."""
    ends = (SECRET, 2 * SECRET, 3 * SECRET)
    return Advertised(site, data[: ends[0]], data[ends[0] : ends[1]], data[ends[1] : ends[2]], data[ends[2] :])


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def check_signature(identity: Identity, signature: bytes, signed: bytes, who: str) -> None:
    """Raises: Refused: the signature is not this identity's."""
    try:
        identity.verify(signature, signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise Refused(f"the signature of site {who!r} is not that of its registered key") from None


def check_advertised(
    session: Session, advertised: Iterable[Advertised], identities: Mapping[str, Identity]
) -> dict[str, Advertised]:
    """Site -> its keys, all signatures good.

    Raises:
        Refused: a site that is not on the study's list, one twice, a bad signature, or fewer sites than the threshold.
    """
    roster: dict[str, Advertised] = {}
    for one in advertised:
        if one.site not in session.sites or one.site in roster:
            raise Refused(f"site {one.site!r} is not on the study's list, or stands there twice")
        check_signature(identities[one.site], one.signature, one.signed(session), one.site)
        roster[one.site] = one
    if len(roster) < session.threshold:
        raise Refused(f"{len(roster)} sites take part, {session.threshold} are needed")
    return dict(sorted(roster.items()))


def agreed(session: Session, private: bytes, other: bytes, purpose: str, *parties: str) -> bytes:
    """A key of 32 bytes for one purpose between two sites, from X25519 by HKDF.

    Raises:
        Refused: the other's public key is none, or a point of low order, under which everybody would know the secret.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise Refused(f"no key can be agreed on with one of {', '.join(parties)}") from None
    info = session.binding + json.dumps([purpose, *parties]).encode()
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(shared)


def split(session: Session, secret: bytes) -> list[bytes]:
    """A secret's shares, by the order of the session's sites: 32 bytes each."""
    number = len(session.sites)
    halves = [Shamir.split(session.threshold, number, part, ssss=False) for part in (secret[:HALF], secret[HALF:])]
    return [left + right for (_, left), (_, right) in zip(*halves, strict=True)]


def joined(session: Session, shares: Mapping[str, bytes]) -> bytes:
    """The secret again, from the shares of at least `threshold` sites.

    Raises:
        Refused: too few shares.
    """
    if len(shares) < session.threshold:
        raise Refused(f"{len(shares)} shares of a secret, {session.threshold} are needed")
    used = sorted(shares.items())[: session.threshold]
    return b"".join(
        Shamir.combine([(session.index(site), share[part : part + HALF]) for site, share in used], ssss=False)
        for part in (0, HALF)
    )


def deal(session: Session, site: str, own: Secrets, roster: Mapping[str, Advertised]) -> dict[str, bytes]:
    """Step 2 at a site: receiver -> this site's shares for it, encrypted (its own too: it has to be kept somewhere)."""
    keys, seeds = split(session, own.mask_key), split(session, own.seed)
    sealed = {}
    for receiver, advertised in roster.items():
        place = session.index(receiver) - 1
        key = agreed(session, own.share_key, advertised.share_key, "shares", site, receiver)
        nonce = secrets.token_bytes(NONCE)
        sealed[receiver] = nonce + AESGCM(key).encrypt(nonce, keys[place] + seeds[place], session.binding)
    return sealed


def open_dealt(session: Session, site: str, own: Secrets, sender: Advertised, sealed: bytes) -> Shares:
    """A site's shares of another's secrets.

    Raises:
        Refused: the bytes were not sealed by that sender for this site in this session.
    """
    key = agreed(session, own.share_key, sender.share_key, "shares", sender.site, site)
    try:
        plain = AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], session.binding)
    except (InvalidTag, ValueError):
        raise Refused(f"the shares of site {sender.site!r} were not sealed for this site") from None
    if len(plain) != 2 * SECRET:
        raise Refused(f"the shares of site {sender.site!r} have the wrong length")
    return Shares(plain[:SECRET], plain[SECRET:])


def pair_mask(session: Session, site: str, mask_key: bytes, other: Advertised) -> Mask:
    """The stream between two sites: the first of the two in the alphabet adds it, the other takes it away."""
    pair = sorted((site, other.site))
    key = agreed(session, mask_key, other.mask_key, "mask", *pair)
    return Mask(key, 1 if site == pair[0] else -1)


def seed_mask(session: Session, seed: bytes) -> Mask:
    return Mask(HKDF(hashes.SHA256(), 32, salt=None, info=session.binding + b"seed").derive(seed), 1)


def masks_of(session: Session, site: str, own: Secrets, dealt: Mapping[str, Advertised]) -> list[Mask]:
    """Step 3 at a site: what it adds to its vector.

    Args:
        dealt: the sites whose shares arrived, this one among them: only their secrets can be rebuilt.
    """
    others = [other for name, other in sorted(dealt.items()) if name != site]
    return [seed_mask(session, own.seed), *(pair_mask(session, site, own.mask_key, other) for other in others)]


def survivors_signed(session: Session, survivors: Iterable[str]) -> bytes:
    return session.binding + json.dumps(["survivors", sorted(survivors)]).encode()


def sign_survivors(session: Session, survivors: Iterable[str], identity: ec.EllipticCurvePrivateKey) -> bytes:
    return identity.sign(survivors_signed(session, survivors), ec.ECDSA(hashes.SHA384()))


def check_survivors(
    session: Session,
    survivors: Iterable[str],
    signatures: Mapping[str, bytes],
    dealt: Iterable[str],
    minimum: int,
    identities: Mapping[str, Identity],
) -> None:
    """Step 4 at a site, before it opens anything.

    Raises:
        Refused: fewer survivors than `minimum`, one that never dealt shares, or fewer than `threshold` good signatures
            of survivors under this very list.
    """
    listed = set(survivors)
    if len(listed) < max(minimum, session.threshold):
        raise Refused(f"{len(listed)} sites are left, {max(minimum, session.threshold)} are needed")
    if not listed <= set(dealt):
        raise Refused("the list of survivors names a site that dealt no shares")
    if not signatures.keys() <= listed or len(signatures) < session.threshold:
        raise Refused("too few survivors have signed the list")
    for site, signature in signatures.items():
        check_signature(identities[site], signature, survivors_signed(session, listed), site)


def opened(held: Mapping[str, Shares], survivors: Iterable[str]) -> Opened:
    """Step 4 at a site: of every site that dealt, one share, of its seed or of its mask key.

    Args:
        held: site -> its shares for this site.
    """
    listed = set(survivors)
    return Opened(
        {site: shares.seed for site, shares in held.items() if site in listed},
        {site: shares.mask_key for site, shares in held.items() if site not in listed},
    )


def leftover(
    session: Session, dealt: Mapping[str, Advertised], survivors: Iterable[str], answers: Mapping[str, Opened]
) -> list[Mask]:
    """Step 5 at the coordinator: what to add to the sum of the survivors' vectors so that only their values are left.

    Args:
        dealt: the sites of step 2.
        survivors: the signed list: the sites whose vectors are in the sum.
        answers: survivor -> what it opened; one that has gone silent since may be missing.

    Raises:
        Refused: too few shares, or a rebuilt secret is not the one that its site advertised.
    """
    masks: list[Mask] = []
    summed = sorted(survivors)
    for site in summed:
        seed = joined(session, {who: given.seeds[site] for who, given in answers.items() if site in given.seeds})
        if hashlib.sha256(seed).digest() != dealt[site].seed_hash:
            raise Refused(f"the shares of the seed of site {site!r} do not fit")
        masks.append(Mask(seed_mask(session, seed).key, -1))
    for site in sorted(dealt.keys() - set(summed)):
        found = {who: given.mask_keys[site] for who, given in answers.items() if site in given.mask_keys}
        mask_key = joined(session, found)
        if public(mask_key) != dealt[site].mask_key:
            raise Refused(f"the shares of the mask key of site {site!r} do not fit")
        # What the dropped site would have added, so that its partners' streams cancel.
        masks.extend(pair_mask(session, site, mask_key, dealt[other]) for other in summed)
    return masks

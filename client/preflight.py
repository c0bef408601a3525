"""`wardround-site check --connect`: could this site take part? What stands between it and the coordinator, asked of
both ends; whether the machine can carry a study is for `dry_step.py`."""

import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from client.bulk import Channel
from client.egress import greeting_of
from client.greeting import Line, greet
from client.join import Joining, check_files
from client.policy import Refusal, check_study
from client.site import Site
from common.address import Address, server_certificate
from common.bulk.check import PROBE
from common.bulk.pace import Pace
from common.certificates import Validity, validity_in, validity_of
from common.errors import UserError
from common.keys import fingerprint, read_private_key
from common.study import Study
from common.versions import versions
from common.way_out import dial, proxy_to, shown

SAME_NUMBERS = "Install what constraints.txt of the coordinator's version says: other versions may round otherwise."


@dataclass(frozen=True)
class Finding:
    """What one look found, as one sentence."""

    what: str
    said: str
    remedy: str = ""
    """Empty where nothing needs to be done."""
    stops: bool = False
    """Whether no round could work."""

    @property
    def mark(self) -> str:
        if self.stops:
            return "FAIL"
        return "look" if self.remedy else "ok"


def looked(what: str, look: Callable[[], Finding | str]) -> Finding:
    """What `look` found; a user's mistake that it raises stops a round."""
    try:
        found = look()
    except UserError as error:
        return Finding(what, error.what, error.remedy, stops=True)
    return found if isinstance(found, Finding) else Finding(what, found)


def of_key(joining: Joining) -> str:
    check_files(joining)
    return f"{joining.key}, fingerprint {fingerprint(read_private_key(joining.key).public_key())}."


def of_certificate(validity: Validity) -> Finding:
    if validity.warning is None:
        return Finding("certificate", f"{validity.told}.")
    return Finding("certificate", f"{validity.warning}.", "Ask the coordinator for a new one in time.",
                   stops=validity.days < 0)  # fmt: skip


def of_coordinator(address: Address, joining: Joining) -> Finding:
    """Reachable, by a certificate that the CA signed for this host."""
    began = time.monotonic()
    certificate = server_certificate(address, joining.ca)
    if certificate is None:
        raise UserError(
            f"{address}: nobody answers.",
            "Ask IT to let this machine reach it (docs/firewall.md), and the coordinator whether it is running.",
        )
    took = 1000 * (time.monotonic() - began)
    found = of_certificate(validity_of(f"the certificate of {address}", certificate))
    proxy = proxy_to(address.host)
    way = f" through the proxy {shown(proxy)}" if proxy is not None else ""
    return Finding("coordinator", f"{address} answers in {took:.0f} ms{way}; {found.said}", found.remedy, found.stops)


def clock_skew(address: Address, joining: Joining) -> float | None:
    """Seconds by which this clock is ahead of the coordinator's, to about one; None where it does not say its time.

    Raises:
        UserError: it does not answer, or the proxy on the way out refuses.
    """
    context = ssl.create_default_context(cafile=str(joining.ca))
    connection = http.client.HTTPConnection(address.host, address.port)
    try:
        plain = dial(address.host, address.port, 10.0)
        connection.sock = context.wrap_socket(plain, server_hostname=address.host)
        sent = time.time()
        connection.request("HEAD", "/")
        date, came = connection.getresponse().getheader("Date"), time.time()
    except (OSError, http.client.HTTPException):
        raise UserError(f"{address}: it does not answer HTTPS.", "Ask whether that is its port.") from None
    finally:
        connection.close()
    # The header has whole seconds, rounded down.
    return None if date is None else (sent + came) / 2 - parsedate_to_datetime(date).timestamp() - 0.5


def too_far(skew: float) -> bool:
    """Whether Flower refuses what is signed by such a clock."""
    return skew > SYSTEM_TIME_TOLERANCE + 1 or skew < -TIMESTAMP_TOLERANCE


def of_clock(address: Address, joining: Joining) -> Finding | str:
    skew = clock_skew(address, joining)
    if skew is None:
        return Finding("clock", "the coordinator does not say its time.", "Compare the clocks by hand.")
    told = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the coordinator's."
    remedy = "Let this machine's clock be set by NTP."
    if too_far(skew):
        return Finding("clock", f"{told} It refuses what this site signs.", remedy, stops=True)
    return told if abs(skew) < 2 else Finding("clock", told, remedy)


def of_line(joining: Joining, site: Site, probe: int = PROBE) -> Line:
    """Ask the bulk channel. Raises: UserError, as `greet`."""
    assert joining.bulk is not None
    limit = site.settings.bulk_mb_per_s
    pace = Pace(None if limit is None else limit * 1e6)
    channel = Channel(joining.bulk, joining.ca, read_private_key(joining.key), pace)
    return greet(channel, greeting_of(site.door, probe))


def of_versions(there: dict[str, str]) -> Finding | str:
    """The coordinator's against this site's."""
    here = versions()
    other = [f"{name} {here[name]} (there {there.get(name)})" for name in here if here[name] != there.get(name)]
    if not other:
        return f"wardround {here['wardround']}, flwr {here['flwr']}, torch {here['torch']}: the same at both ends."
    return Finding("versions", f"not the same at both ends: {', '.join(other)}.", SAME_NUMBERS,
                   stops=here["flwr"] != there.get("flwr"))  # fmt: skip


def of_approval(site: Site, study: Study) -> Finding | str:
    if site.name not in study.sites.train:
        return Finding("study", f"{site.name!r} is not in its sites.train.", "Use one name at both ends.", stops=True)
    try:
        check_study(site.settings.policy, study, study.hash)
    except Refusal:
        return Finding("study", "this site has not approved it, or not for today.",
                       "Read it, then: wardround-site approve STUDY --site CONFIG")  # fmt: skip
    until = site.settings.policy.until.get(study.hash)
    return f"approved here{'' if until is None else f' until {until:%Y-%m-%d}'}."


def preflight(joining: Joining, site: Site, study: Study | None) -> Iterator[Finding | Line]:
    """Every look in turn, as it is made; the line, where it could be measured."""
    key = looked("key", lambda: of_key(joining))
    yield key
    if key.stops:
        return
    yield looked("certificate", lambda: of_certificate(validity_in(f"the CA in {joining.ca.name}", joining.ca)))
    reached = looked("coordinator", lambda: of_coordinator(joining.coordinator, joining))
    yield reached
    if not reached.stops:
        yield looked("clock", lambda: of_clock(joining.coordinator, joining))
    if study is not None:
        yield looked("study", lambda: of_approval(site, study))
    if joining.bulk is None:
        yield Finding("registered", "not asked: the bulk channel answers that.", "Give --bulk HOST:PORT.")
        return
    try:
        line = of_line(joining, site)
    except UserError as error:
        yield Finding("registered", error.what, error.remedy, stops=True)
        return
    yield Finding("registered", f"the coordinator knows this key as {site.name}'s.")
    yield looked("versions", lambda: of_versions(line.versions))
    yield Finding("line", f"{line.up:.1f} MB/s up, {line.down:.1f} MB/s down, measured.")
    yield line

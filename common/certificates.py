"""Until when a certificate holds, and a warning in time."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from common.errors import UserError

WARN_DAYS = 30
"""A certificate that ends sooner is warned of: a hospital's IT may need weeks to take a new one."""


DAY_S = 86400.0


@dataclass(frozen=True)
class Validity:
    """`what` names the certificate in a sentence; `end` is in UTC."""

    what: str
    end: datetime

    @property
    def days(self) -> int:
        """Whole days left; negative once it has ended."""
        return (self.end - datetime.now(UTC)).days

    @property
    def told(self) -> str:
        return f"{self.what} is valid until {self.end:%Y-%m-%d} ({self.days} days)"

    @property
    def warning(self) -> str | None:
        """A sentence where it has ended or soon will; None where there is time."""
        if self.days < 0:
            return f"{self.what} ended on {self.end:%Y-%m-%d}: nobody can connect"
        if self.days < WARN_DAYS:
            return f"{self.what} ends on {self.end:%Y-%m-%d}, in {self.days} days: nobody can connect after that"
        return None


def validity_of(what: str, der: bytes) -> Validity:
    """Args: `der`: the certificate, as a TLS connection gives it."""
    return Validity(what, x509.load_der_x509_certificate(der).not_valid_after_utc)


def validity_in(what: str, path: Path) -> Validity:
    """Of a PEM file; with several certificates in it, of the one that ends first.

    Raises:
        UserError: it cannot be read, or holds no certificate.
    """
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        raise UserError(f"{path}: not a certificate file.", f"Give the PEM file of {what}.") from None
    return Validity(what, min(one.not_valid_after_utc for one in found))


@dataclass
class DailyLook:
    """Warns of certificates when it is first asked, and then once a day.

    Attributes:
        look: reads them anew, since they may have been replaced.
        due: when the next look is (monotonic clock).
    """

    look: Callable[[], Iterable[Validity]]
    due: float = 0.0

    def warnings(self) -> list[str]:
        if time.monotonic() < self.due:
            return []
        self.due = time.monotonic() + DAY_S
        return [validity.warning for validity in self.look() if validity.warning is not None]

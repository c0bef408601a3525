"""Who answers and who asked: what every rule of the door looks at beside the reply itself."""

from dataclasses import dataclass
from pathlib import Path

from client.policy import Policy


@dataclass(frozen=True)
class Door:
    """Where a message is answered: the site's name, policy and the folder of its logs."""

    site: str
    policy: Policy
    state: Path


@dataclass(frozen=True)
class Asked:
    """What a passage in the audit log says about the question: study hash, run, round."""

    study: str = ""
    run: str = ""
    round: int = 0

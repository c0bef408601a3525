"""A site looks whether it could take part: is its key known, what runs at the other end, how fast is the line.

One call `Check` of the bulk channel's service. It moves bytes each way that mean nothing, as many as the site says:

| | site | coordinator |
|---|---|---|
| 1 | a `Greeting` as JSON | |
| 2 | | a challenge, as in a transfer (common/bulk/opening.py) |
| 3 | the site's signature over both | |
| 4 | | a `Welcome` as JSON |
| 5 | `probe` bytes in chunks | |
| 6 | | an empty message, then `probe` bytes in chunks |
"""

from typing import Annotated

from pydantic import Field

from common.bulk.opening import CHUNK
from common.strict import Strict

METHOD = "Check"
PROBE = 16 * CHUNK
"""8 MiB, at most: about 7 s at 10 Mbit/s."""

Versions = Annotated[
    dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=40)]], Field(max_length=20)
]
"""Package -> version."""


class Greeting(Strict):
    site: str
    versions: Versions
    probe: int = Field(ge=0, le=PROBE, multiple_of=CHUNK)
    """Bytes each way; none to ask only whether the key is known."""


class Welcome(Strict):
    versions: Versions

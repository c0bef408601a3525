"""What Flower's node writes before it lives on for nothing, word for word, and what `join` makes of it."""

from pathlib import Path

import pytest

from client.join import Joining, Node
from common.address import Address

COLOURED = "\x1b[91mERROR \x1b[0m:     "
FAILED = "Server error '500 Internal Server Error' for url 'https://localhost:41695/v1/fleet/{}'\n"
LOST = "Failed to {} message 47bbbcc1: {}"
"""The node goes on after it, and the coordinator would wait for the answer until the deadline."""


@pytest.mark.parametrize("line, left", [
    (COLOURED + FAILED.format("pull-messages"), True),
    ("ERROR :     " + FAILED.format("pull-messages"), True),
    ("httpx.HTTPStatusError: " + FAILED.format("send-node-heartbeat"), True),
    (COLOURED + LOST.format("send", FAILED.format("push-messages")), True),
    (COLOURED + LOST.format("receive", FAILED.format("pull-object")), True),
    (COLOURED + LOST.format("send", "Client error '404 Not Found' for url 'https://localhost:41695/'\n"), False),
    (f"{COLOURED}SuperNode terminated gracefully\n", False),
])  # fmt: skip
def test_a_node_that_lives_on_for_nothing_is_told(tmp_path: Path, line: str, left: bool) -> None:
    missing = tmp_path / "nothing"
    node = Node(Joining(missing, tmp_path, Address("localhost", 1), missing, missing))
    node.log.parent.mkdir()
    node.log.write_text(line)
    assert node.left() is left and ("failed to answer" in node.reason()) is left

"""Why the coordinator does not let a site's node in: Flower gives one exit code for several causes."""

from client.greeting import NotKnown
from client.join import Joining
from client.preflight import clock_skew, of_line, too_far
from client.site import Site
from common.errors import UserError


def why(joining: Joining, site: Site) -> str | None:
    """For an operator; None where it cannot be told apart: without a bulk channel, or when that cannot be reached."""
    try:
        skew = clock_skew(joining.coordinator, joining)
        if skew is not None and too_far(skew):
            return f"this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}, so it is refused"
        if joining.bulk is None:
            return None
        of_line(joining, site, probe=0)
    except NotKnown:
        return f"the coordinator refused this site: its key is not registered as {site.name}'s, or was revoked"
    except UserError:
        return None
    return (
        "the coordinator knows this key, but another node with it is connected, or was until a minute ago; "
        "two nodes must not share a key"
    )

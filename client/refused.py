"""Why the coordinator does not let a site's node in: Flower gives one exit code for several causes. And what it lets in
that should not be."""

from collections.abc import Callable

from client.greeting import NotKnown
from client.join import Joining
from client.preflight import Finding, clock_skew, of_line, of_versions, too_far
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


def check_versions(joining: Joining, site: Site, say: Callable[[str], None]) -> None:
    """Compare with the coordinator before a node starts: its SuperLink takes a node of any version of Flower.

    Nothing is known without a bulk channel, nor where that does not answer or does not know this site; of the last two
    `join` says more.

    Args:
        say: is told what else differs.

    Raises:
        UserError: another version of Flower.
    """
    if joining.bulk is None:
        return
    try:
        found = of_versions(of_line(joining, site, probe=0).versions)
    except UserError:
        return
    if isinstance(found, Finding):
        if found.stops:
            raise UserError(f"{site.name} could not join: versions are {found.said}", found.remedy)
        say(f"{site.name}: versions are {found.said}")

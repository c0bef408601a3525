"""Which connected node is which site, and giving every site the study: before the first round, and while sites leave,
come back and come as other nodes between rounds."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.errors import UserError
from common.model import BUILT_IN
from common.models.transfer import folder_sha256, pack_folder
from common.questions.codebook import Codebook
from common.questions.codebook_file import to_toml
from common.study import Study
from server.exchange import Counts, figures
from server.mailbox import Mailbox, Names, nobody
from server.run_folder import EventLog

DESCRIBE_S = 120.0
"""How long connected nodes may take to say their names, and named sites to appear."""


@dataclass
class Roll:
    """The nodes that are connected and the names that they said.

    Attributes:
        names: node id -> name, the longest known first; nodes that left stay, in case they come back.
        ready: site -> the node that has accepted the study.
        away: training sites that were not connected when they were last looked for.
        doubles: nodes that were refused because another one is the site that they say they are.
        distrustful: nodes that do not run this run's code: no reviewer that they trust has signed it.
        content: what a site is sent before its first round (`study_content`).
        revoked: the sites whose keys are revoked now.
    """

    grid: Grid
    study: Study
    log: EventLog
    names: dict[int, str] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    doubles: set[int] = field(default_factory=set)
    distrustful: set[int] = field(default_factory=set)
    content: RecordDict = field(default_factory=RecordDict)
    revoked: Names = nobody

    def listen(self, wait_s: float) -> dict[str, list[int]]:
        """Ask new nodes for their names; returns name -> the connected nodes that say it."""
        connected = list(self.grid.get_node_ids())
        # A run's code does not change, so who refused it is not asked again.
        strangers = [node for node in connected if node not in self.names and node not in self.distrustful]
        unnamed = {f"node {node}": node for node in strangers}
        box = Mailbox(self.grid, unnamed, self.log)
        for node, reply in box.ask("query.describe", 0, {name: RecordDict() for name in unnamed}, wait_s):
            if reply.has_error():
                self.log.write("site_refused", site=node, round=0, fault=reply.error.reason or "")
                if reply.error.code == ErrorCode.INVALID_FAB:
                    self.distrustful.add(unnamed[node])
            else:
                self.names[unnamed[node]] = str(reply.content.config_records["site"]["name"])
        claims: dict[str, list[int]] = {}
        for node_id, name in self.names.items():
            if node_id in connected:
                claims.setdefault(name, []).append(node_id)
        return claims

    def assemble(self, needed: int, wait_s: float) -> dict[str, int]:
        """Training site -> node id at the start of a run, when all are there, or `needed` of them and time is up.

        Raises:
            UserError: fewer are there in time, or two nodes say the same name; who is revoked is not waited for.
        """
        end, train = time.monotonic() + wait_s, self.study.sites.train
        while True:
            claims = self.listen(max(1.0, end - time.monotonic()))
            for name in train:
                if len(claims.get(name, ())) > 1:
                    raise UserError(f"Two nodes say that they are site {name!r}.", "Stop one of them.")
            missing = [name for name in train if name not in claims]
            # Who is missing may well be those that refuse the code, or is revoked: waiting does not help.
            if set(missing) <= self.revoked() or len(self.distrustful) >= len(missing) or time.monotonic() >= end:
                break
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        revoked = sorted(self.revoked().intersection(missing))
        if len(train) - len(missing) < needed and revoked:
            raise UserError(
                f"The run needs {needed} of its sites, and the key of site {revoked[0]!r} was revoked.",
                "Give it another with `wardround sites add`, or make a study without it.",
            )
        if len(train) - len(missing) < needed and self.distrustful:
            raise UserError(
                f"The run needs site {missing[0]!r}, and {len(self.distrustful)} connected sites do not run this code: "
                "no reviewer whom they trust has signed it.",
                "Let one of them sign it: `wardround bundle build`, `sign`, `publish`.",
            )
        if len(train) - len(missing) < needed:
            raise UserError(
                f"The run needs site {missing[0]!r} ({len(missing)} of {len(train)} named sites are not connected).",
                "Start them with `wardround-site join`, or take them out of sites.train.",
            )
        here = sorted(set(train) - set(missing))
        self.log.write("sites_named", sites=here, others=sorted(set(claims) - set(train)))
        return {name: claims[name][0] for name in here}

    def begin(self, nodes: Mapping[str, int], content: RecordDict) -> None:
        """These sites have accepted the study; others that come are to be sent it."""
        self.ready, self.content = dict(nodes), content
        self.away = set(self.study.sites.train) - set(nodes)

    def call(self, number: int) -> dict[str, int]:
        """Training site -> node id of those that can take part now; the others are named in the log.

        A site that was away, or comes as another node, is given the study first. Of two nodes with one name the one
        that is known longer is taken.

        Args:
            number: the round.
        """
        claims = self.listen(DESCRIBE_S)
        here = {name: claims[name] for name in sorted(self.study.sites.train) if name in claims}
        for name, claimed in here.items():
            for double in set(claimed[1:]) - self.doubles:
                self.doubles.add(double)
                self.log.write("site_refused", site=name, round=number, fault="another node is this site already")
        away = set(self.study.sites.train) - set(here)
        for event, sites in (("site_away", away - self.away), ("site_back", self.away - away)):
            for site in sorted(sites):
                self.log.write(event, site=site, round=number)
        self.away = away
        nodes = {name: claimed[0] for name, claimed in here.items()}
        self.welcome({site: node for site, node in nodes.items() if self.ready.get(site) != node}, number)
        return {site: node for site, node in nodes.items() if self.ready.get(site) == node}

    def welcome(self, nodes: dict[str, int], number: int) -> None:
        """Give the study to sites that came later than the others; who does not take it is left out for now."""
        box, contents = Mailbox(self.grid, nodes, self.log), dict.fromkeys(nodes, self.content)
        for site, reply in box.ask("query.configure", number, contents, self.study.rounds.deadline_s):
            if reply.has_error():
                self.log.write("site_refused", site=site, round=number, fault=reply.error.reason or "")
                continue
            self.ready[site] = nodes[site]
            self.log.write("site_configured", site=site, **figures(reply, "counts"))


def name_sites(grid: Grid, study: Study, log: EventLog, wait_s: float = DESCRIBE_S) -> dict[str, int]:
    """Site name -> node id of all training sites of the study.

    Raises:
        UserError: a named site is not there in time, or two nodes say the same name.
    """
    return Roll(grid, study, log).assemble(len(study.sites.train), wait_s)


def study_content(study: Study, folder: Path, codebook: Codebook | None = None) -> RecordDict:
    """What a site is sent before its first round: the study, the built-in model and the codebook that sites share."""
    values: dict[str, str] = {"json": study.message, "hash": study.hash}
    content = RecordDict()
    if study.model.base == BUILT_IN:
        values["model_sha256"] = folder_sha256(folder)
        content["model"] = pack_folder(folder)
    content["study"] = ConfigRecord(dict(values))
    if codebook is not None:
        content["codebook"] = ConfigRecord({"toml": to_toml(codebook)})
    return content


def configure_sites(box: Mailbox, study: Study, content: RecordDict) -> Counts:
    """Send every site what `study_content` made; all must accept.

    Returns:
        site -> `patients`, `questions`.

    Raises:
        UserError: a site refuses or does not answer.
    """
    counts: Counts = {}
    contents = dict.fromkeys(box.nodes, content)
    for site, reply in box.ask("query.configure", 0, contents, study.rounds.deadline_s):
        if reply.has_error():
            raise UserError(
                f"Site {site!r} refuses the study: {reply.error.reason}.", "Settle it with the site, then start again."
            )
        counts[site] = figures(reply, "counts")
        box.log.write("site_configured", site=site, **counts[site])
    silent = sorted(set(box.nodes) - set(counts))
    if silent:
        raise UserError(f"Site {silent[0]!r} did not answer the study.", "See whether it is running.")
    return counts

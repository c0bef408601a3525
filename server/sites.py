"""Before the first round: which node is which site, and giving every site the study."""

import time
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from common.errors import UserError
from common.models.transfer import folder_sha256, pack_folder
from common.questions.codebook import Codebook
from common.questions.codebook_file import to_toml
from common.study import BUILT_IN, Study
from server.exchange import Counts, figures
from server.mailbox import Mailbox
from server.run_folder import EventLog

DESCRIBE_S = 60.0
"""How long connected nodes may take to say their names, and named sites to appear."""


def name_sites(grid: Grid, study: Study, log: EventLog, wait_s: float = DESCRIBE_S) -> dict[str, int]:
    """Site name -> node id of the study's training sites.

    Raises:
        UserError: a named site is not there in time, or two nodes say the same name.
    """
    end = time.monotonic() + wait_s
    names: dict[int, str] = {}
    while True:
        unnamed = {f"node {node}": node for node in grid.get_node_ids() if node not in names}
        box = Mailbox(grid, unnamed, log)
        left = max(1.0, end - time.monotonic())
        for node, reply in box.ask("query.describe", 0, {name: RecordDict() for name in unnamed}, left):
            if reply.has_error():
                log.write("site_refused", site=node, round=0, fault=reply.error.reason or "")
            else:
                names[unnamed[node]] = str(reply.content.config_records["site"]["name"])
        sites: dict[str, int] = {}
        for node_id, name in names.items():
            if name in sites and name in study.sites.train:
                raise UserError(f"Two nodes say that they are site {name!r}.", "Stop one of them.")
            sites[name] = node_id
        missing = [name for name in study.sites.train if name not in sites]
        if not missing:
            break
        if time.monotonic() >= end:
            raise UserError(
                f"The run needs site {missing[0]!r} ({len(missing)} of {len(study.sites.train)} named sites are "
                "not connected).",
                "Start them with `wardround-site join`, or take them out of sites.train.",
            )
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    log.write("sites_named", sites=sorted(study.sites.train), others=sorted(set(sites) - set(study.sites.train)))
    return {name: sites[name] for name in sorted(study.sites.train)}


def configure_sites(box: Mailbox, study: Study, folder: Path, codebook: Codebook | None = None) -> Counts:
    """Send the study, the built-in model and the codebook that sites share to every site; all must accept.

    Returns:
        site -> `patients`, `questions`.

    Raises:
        UserError: a site refuses or does not answer.
    """
    values: dict[str, str] = {"json": study.message, "hash": study.hash}
    content = RecordDict()
    if study.model.base == BUILT_IN:
        values["model_sha256"] = folder_sha256(folder)
        content["model"] = pack_folder(folder)
    content["study"] = ConfigRecord(dict(values))
    if codebook is not None:
        content["codebook"] = ConfigRecord({"toml": to_toml(codebook)})
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

"""Payloads of a run by the bulk channel: announce, tell the site by a message, take the announcement back.

The same talks as with shards (`gathering.py`, `delivery.py`), with one message a payload. A site that has no channel
says so, and is served by shards.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from common.bulk.opening import Direction, Transfer
from common.transfer.manifest import Manifest
from common.transfer.records import NO_CHANNEL
from common.update.tensors import BadUpdate
from server.bulk_settings import read_bulk_settings
from server.bulk_spool import Spool
from server.conversation import Request, Talk
from server.coordinator import Coordinator
from server.exchange import RoundContext
from server.run_folder import EventLog, write_atomic


def transfer_of(direction: Direction, site: str, context: RoundContext, manifest: Manifest) -> Transfer:
    return Transfer(
        direction=direction,
        site=site,
        study=context.study.hash,
        run=context.run,
        round=context.round,
        sha256=manifest.sha256,
    )


@dataclass(frozen=True)
class BulkRoute:
    spool: Spool
    above_bytes: int
    log: EventLog

    def takes(self, manifest: Manifest) -> bool:
        return manifest.size > self.above_bytes

    def fetch(self, site: str, context: RoundContext, manifest: Manifest, place: Path) -> Talk[Message | None]:
        """Bring a site's update to `place`; returns a refusal, if any.

        Raises:
            BadUpdate: the site says that it is uploaded, but it is not here.
        """
        transfer = transfer_of("up", site, context, manifest)
        arrived = self.spool.expect(transfer, manifest)
        try:
            wanted = ConfigRecord({"sha256": manifest.sha256})
            reply = yield Request("query.upload", RecordDict({"round": context.record(), "wanted": wanted}))
            if reply.has_error():
                return self.refused(site, context, reply)
            if not arrived.exists():
                raise BadUpdate(site, "it has not uploaded its update")
            write_atomic(place, lambda part: shutil.move(arrived, part))
        finally:
            self.spool.withdraw(transfer)
        self.log.write("bulk_received", site=site, round=context.round, bytes=manifest.size)
        return None

    def give(self, site: str, context: RoundContext, path: Path, manifest: Manifest) -> Talk[Message | None]:
        """Let a site have a file; returns a refusal, if any."""
        transfer = transfer_of("down", site, context, manifest)
        self.spool.offer(transfer, manifest, path)
        try:
            payload = ConfigRecord({**manifest.to_dict()})
            reply = yield Request("query.download", RecordDict({"round": context.record(), "payload": payload}))
        finally:
            self.spool.withdraw(transfer)
        if reply.has_error():
            return self.refused(site, context, reply)
        self.log.write("bulk_sent", site=site, round=context.round, bytes=manifest.size)
        return None

    def refused(self, site: str, context: RoundContext, reply: Message) -> Message:
        if reply.error.code == NO_CHANNEL:
            self.log.write("bulk_unavailable", site=site, round=context.round)
        return reply


def bulk_route(folder: str, log: EventLog) -> BulkRoute | None:
    """The channel of the coordinator in a folder; None where it has none, or where the run has no coordinator ("")."""
    if not folder:
        return None
    coordinator = Coordinator(Path(folder))
    settings = read_bulk_settings(coordinator)
    if settings is None:
        return None
    return BulkRoute(Spool(coordinator.bulk), int(settings.above_mb * 1e6), log)

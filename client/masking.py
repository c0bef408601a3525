"""A site's masked update: the one in clear, which stays here, as whole numbers under masks."""

from pathlib import Path

from safetensors.torch import save_file

from client.outbox import Outbox
from client.replies import Masked
from client.secure_sum import WITHHELD, SiteSum
from common.secure_sum import coding_of, weight_of
from common.update.masked import masked
from common.update.payload import read_payload


def masked_update(part: SiteSum, received: dict[str, bytes]) -> Masked:
    """What this site sends in a secure sum; the same bytes whenever it is asked.

    Args:
        received: sender -> its sealed shares for this site, as the coordinator passes them on.

    Raises:
        Refusal: see `SiteSum.masks`.
        OutOfRange: the update has a value that the encoding has no room for.
    """
    masks, trained, study = part.masks(received), part.trained(), part.study
    outbox = Outbox(part.run / "outbox")
    clear = Outbox(part.run / WITHHELD).payload(trained["manifest"]["sha256"])
    manifest = part.made()
    if manifest is None:
        weight = weight_of(study, trained["figures"])
        sent = masked(read_payload(clear, part.site.name), coding_of(study), weight, masks)

        def fill(place: Path) -> None:
            save_file(sent, place)

        manifest = outbox.put(fill, study.transfer.shard_bytes)
        part.note_made(manifest)
    return Masked(outbox, manifest, clear, study.transfer, part.task.round, trained["figures"]["patients"])

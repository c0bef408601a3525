"""The round's model at a site: what the coordinator sent last stays in the run's folder, so that the next model comes
as its difference to it, and the same model not at all.

    runs/RUN/model/SHA256.safetensors
"""

from pathlib import Path

from flwr.app import Message
from safetensors.torch import save_file

from client.disk import write
from client.inbox import inbox, payload_place
from client.messages import HASH, config, text
from client.policy import BAD_MODEL, BAD_REQUEST, Refusal
from common.transfer.manifest import BadPayload
from common.transfer.records import MODEL_MISSING, SHARD, shard_in
from common.update.payload import apply_difference, parse_payload, read_payload
from common.update.tensors import BadUpdate, State, sha256


def hash_in(message: Message, key: str) -> str:
    """Raises: Refusal(BAD_REQUEST)."""
    value = text(config(message, "model"), key)
    if value and not HASH.fullmatch(value):
        raise Refusal(BAD_REQUEST)
    return value


def kept(run: Path, digest: str) -> State | None:
    """A model in the run's folder, if its bytes are still those."""
    path = run / "model" / f"{digest}.safetensors"
    if not digest or not path.exists():
        return None
    try:
        state = read_payload(path, "the run's folder")
    except BadUpdate:
        return None  # damaged, which is as good as not there
    return state if sha256(state) == digest else None


def sent(run: Path, message: Message) -> State | None:
    """What came with the message, or in shards before it."""
    payload = hash_in(message, "payload")
    if SHARD in message.content.array_records:
        return parse_payload(shard_in(message.content), "the coordinator")
    place = payload_place(run, payload)
    return read_payload(place, "the coordinator") if payload and place.exists() else None


def round_model(run: Path, message: Message) -> State:
    """The model that a train or evaluate message names, which is then the one that the run's folder keeps.

    Raises:
        Refusal: MODEL_MISSING where it cannot be made from what is here; BAD_MODEL where what came does not make it.
    """
    digest, base = hash_in(message, "sha256"), hash_in(message, "base")
    try:
        if (here := kept(run, digest)) is not None:
            return here
        before, came = kept(run, base), sent(run, message)
        if came is None or (base and before is None):
            raise Refusal(MODEL_MISSING)
        model = came if before is None else apply_difference(before, came, "the coordinator")
        if sha256(model) != digest:
            raise Refusal(BAD_MODEL)
    except (BadUpdate, BadPayload):
        raise Refusal(BAD_MODEL) from None
    keep(run, digest, model)
    return model


def keep(run: Path, digest: str, model: State) -> None:
    place = run / "model" / f"{digest}.safetensors"
    write(place, lambda part: save_file(model, part))
    for old in (*place.parent.glob("*.safetensors"), *inbox(run).glob("*.payload"), *inbox(run).glob(".*.part")):
        if old != place:
            old.unlink()

"""Ways to carry a patient's data out of a site beside the numbers of an update: in names, shapes, types, unused bits,
hashes and sizes. Each is refused and noted, and its honest twin passes.

The numbers themselves can hold anything that the site's own code puts into them: no rule about their form sees that.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save

from client.egress import answer
from client.policy import NOT_ALLOWED, TOO_MANY_ANSWERS
from client.replies import Trained
from client.sense import MOST_ANSWERS
from common.federation import Update
from common.transfer.manifest import Manifest, Shard
from common.update.chain import chain, encode
from common.update.rice import HEAD, pack_set
from common.update.sparse_bf16 import SIZES, ZSTD
from common.update.tensors import State, byte_row, to_bytes
from tests.client.smuggling import (
    ASKED,
    BORN,
    DAY,
    NAME,
    Attempt,
    check_refused,
    door,
    model,
    question,
    trained,
    update_of,
)

DELTA, PLAIN = Update(), Update(steps=("difference",))
INT8, INT4 = Update(steps=("difference", "int8")), Update(steps=("difference", "int4"))
TOPK, SPARSE = Update(steps=("difference", "topk"), topk=0.05), Update(steps=("sparse-bf16",))
SECRET = f"{NAME}, {DAY}".encode()


def tensors(change: Callable[[State], State], steps: Update = DELTA, rule: str = "not the study's chain") -> Attempt:
    """An update whose tensors are changed before they become a file."""
    return Attempt(
        lambda folder: trained(folder, steps=steps),
        lambda folder: trained(folder, change(update_of(steps)), steps),
        NOT_ALLOWED,
        rule,
    )


def with_bits(name: str, place: int, bits: int, like: torch.dtype = torch.int32) -> Callable[[State], State]:
    """One number of a tensor becomes these bits."""

    def change(sent: State) -> State:
        flat = sent[name].clone().reshape(-1)
        flat.view(like)[place] = bits
        return sent | {name: flat.reshape(sent[name].shape)}

    return change


def beyond_int4(sent: State) -> State:
    """`v` has 3 numbers in 2 bytes: half a byte is free."""
    row = sent["v"].clone()
    row[-1] |= 0x90
    return sent | {"v": row}


def scale_of_nothing(sent: State) -> State:
    scales = sent["v/scale"].clone()
    scales[0] = 19310402.0
    return sent | {"v": torch.zeros_like(sent["v"]), "v/scale": scales}


def other_codes(sent: State) -> State:
    """The same positions under another k of Golomb and Rice: the number is free, and the bits that it leaves over."""
    size, count = 600, 30
    positions = np.arange(count) * 20
    honest = pack_set(positions, size)
    k = honest[5]
    gaps = np.diff(positions, prepend=-1) - 1
    low = np.packbits(np.unpackbits(gaps.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :1], axis=1, count=k + 1,
                                    bitorder="little")).tobytes()  # fmt: skip
    ones = np.cumsum((gaps >> (k + 1)) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1, np.uint8)
    unary[ones] = 1
    high = np.packbits(unary).tobytes()
    return sent | {"w/indices": byte_row(bytes([0]) + HEAD.pack(count, k + 1, len(high)) + high + low)}


SENT = {
    "a tensor's name": tensors(lambda sent: {NAME if name == "v" else name: value for name, value in sent.items()}),
    "one more tensor": tensors(lambda sent: sent | {NAME: torch.frombuffer(bytearray(SECRET), dtype=torch.uint8)}),
    "a tensor that is missing": tensors(lambda sent: {"w": sent["w"]}),
    "a shape": tensors(lambda sent: sent | {"w": sent["w"].reshape(30, 20)}),
    "the length of a tensor": tensors(lambda sent: sent | {"v": torch.zeros(1931, dtype=torch.int32)}),
    "a dimension of one": tensors(lambda sent: sent | {"v": sent["v"].reshape(1, 3)}),
    "a type": tensors(lambda sent: sent | {"v": sent["v"].to(torch.uint8)}),
    "a type that never travels": tensors(lambda sent: sent | {"v": sent["v"].double()}),
    "whole numbers for weights": tensors(lambda sent: sent | {"v": torch.tensor([BORN, 4, 2])}, PLAIN),
    "whole numbers of 32 bits": tensors(lambda sent: sent | {"v": torch.tensor([BORN, 4, 2]).int()}, PLAIN),
    "the bits of a NaN": tensors(with_bits("v", 0, 0x7FC00000 | 0x1931), PLAIN),
    "an infinite weight": tensors(with_bits("v", 1, 0x7F800000), PLAIN),
    "bits that make a NaN of the model": tensors(
        lambda sent: sent | {"v": 0x7FC01931 - model()["v"].view(torch.int32)}
    ),
    "a number that int8 does not use": tensors(with_bits("w", 5, -128, torch.int8), INT8),
    "a number that int4 does not use": tensors(with_bits("w", 5, 0, torch.uint8), INT4),
    "half a byte after int4's last": tensors(beyond_int4, INT4),
    "the scale of a block of zeros": tensors(scale_of_nothing, INT8),
    "the sign of a scale": tensors(lambda sent: sent | {"w/scale": -sent["w/scale"], "w": -sent["w"]}, INT8),
    "another code for the same positions": tensors(other_codes, TOPK),
    "bytes after the positions": tensors(
        lambda sent: sent | {"w/indices": byte_row(to_bytes(sent["w/indices"]) + SECRET)}, TOPK
    ),
}  # fmt: skip


@pytest.mark.parametrize("attempt", SENT.values(), ids=SENT)
def test_by_the_tensors(tmp_path: Path, attempt: Attempt) -> None:
    attempt.check(tmp_path)


def brain() -> tuple[State, State]:
    before = {"w": torch.linspace(-1, 1, 4096).to(torch.bfloat16)}
    return before, {"w": before["w"] * (1 + 0.02 * (torch.arange(4096) % 50 == 0)).to(torch.bfloat16)}


def second_frame(plain: bytes, squeezed: bytes) -> bytes:
    """Another zstd frame, of nothing."""
    return squeezed + bytes(pa.Codec("zstd").compress(b"", asbytes=True))


def frame_to_skip(plain: bytes, squeezed: bytes) -> bytes:
    """A frame that decoders are to read past (RFC 8878, 3.1.2), with any bytes."""
    return squeezed + struct.pack("<II", 0x184D2A50, len(SECRET)) + SECRET


def other_level(plain: bytes, squeezed: bytes) -> bytes:
    """The same bytes, squeezed in another way: which one is free."""
    return bytes(pa.Codec("zstd", compression_level=19).compress(plain, asbytes=True))


def after_the_end(plain: bytes, squeezed: bytes) -> bytes:
    return squeezed + SECRET


@pytest.mark.parametrize("change", [second_frame, frame_to_skip, other_level, after_the_end])
def test_by_compressed_bytes(tmp_path: Path, change: Callable[[bytes, bytes], bytes]) -> None:
    before, after = brain()
    sent = encode(chain(SPARSE), before, after, {})[0]
    data = to_bytes(sent["w"])
    length, _ = SIZES.unpack(data[: SIZES.size])
    plain = bytes(ZSTD.decompress(data[SIZES.size :], decompressed_size=length, asbytes=True))
    squeezed = change(plain, data[SIZES.size :])
    smuggled = {"w": byte_row(SIZES.pack(length, len(squeezed)) + squeezed)}
    assert to_bytes(smuggled["w"]) != data
    Attempt(
        lambda folder: trained(folder, sent, SPARSE, model=before),
        lambda folder: trained(folder, smuggled, SPARSE, model=before),
        NOT_ALLOWED,
        "not the study's chain",
    ).check(tmp_path)


def rewritten(header: Callable[[dict[str, Any]], bytes], after: bytes = b"") -> Attempt:
    """An update whose file is written in another way."""

    def smuggled(folder: Path) -> Trained:
        data = save(update_of(DELTA))
        end = 8 + int.from_bytes(data[:8], "little")
        text = header(json.loads(data[8:end]))
        written = len(text).to_bytes(8, "little") + text + data[end:] + after
        return trained(folder, fill=lambda part: part.write_bytes(written))

    return Attempt(lambda folder: trained(folder), smuggled, NOT_ALLOWED, "not the study's chain")


def compact(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


FILES = {
    "metadata of a safetensors file": rewritten(lambda header: compact({"__metadata__": {"note": NAME}, **header})),
    "blanks in a header": rewritten(lambda header: compact(header) + b" " * 8 * (BORN % 97)),
    "the order of a header": rewritten(lambda header: compact(dict(reversed(header.items())))),
    "the layout of a header": rewritten(lambda header: json.dumps(header).encode() + b" " * 8),
    "escapes in a header": rewritten(lambda header: compact(header).replace(b'"v"', b'"\\u0076"')),
    "bytes after the tensors": rewritten(compact, after=SECRET),
}


@pytest.mark.parametrize("attempt", FILES.values(), ids=FILES)
def test_by_the_file(tmp_path: Path, attempt: Attempt) -> None:
    attempt.check(tmp_path)


def test_the_header_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    """The twin of `rewritten`: what it writes with nothing changed is what safetensors writes."""
    data = save(update_of(DELTA))
    end = 8 + int.from_bytes(data[:8], "little")
    assert compact(json.loads(data[8:end])) == data[8:end]


class Talkative(Manifest):
    """A manifest that says more."""

    key: str = "note"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {self.key: DAY}


def talkative(key: str) -> type[Manifest]:
    return type("Talkative", (Talkative,), {"key": key})


def manifest(change: Callable[[Manifest], Manifest], rule: str = "not that of the update") -> Attempt:
    def smuggled(folder: Path) -> Trained:
        honest = trained(folder)
        return replace(honest, manifest=change(honest.manifest))

    return Attempt(lambda folder: trained(folder), smuggled, NOT_ALLOWED, rule)


def cut_at(whole: Manifest, path: Path, first: int) -> Manifest:
    """The same file in shards of which the first has another size."""
    data = path.read_bytes()
    parts = [data[:first], data[first:]]
    return Manifest(whole.sha256, whole.size, tuple(Shard(hashlib.sha256(p).hexdigest(), len(p)) for p in parts))


def hashed(text: str) -> str:
    return text.encode().hex().ljust(64, "0")


MANIFESTS = {
    "the hash of an update": manifest(lambda m: replace(m, sha256=hashed(NAME))),
    "a path for a hash": manifest(lambda m: replace(m, sha256=f"../{NAME}")),
    "the hash of a shard": manifest(lambda m: replace(m, shards=(Shard(hashed(DAY), m.shards[0].size), *m.shards[1:]))),
    "the size of an update": manifest(lambda m: replace(m, size=BORN)),
    "one more shard": manifest(lambda m: replace(m, shards=(*m.shards, Shard(hashed(NAME), BORN)))),
    **{
        f"one more field, {key}": manifest(lambda m, key=key: talkative(key)(m.sha256, m.size, m.shards), "")
        for key in ("note", "epsilon", "version", "r\u043eund", "size\u200b", NAME)
    },
}


@pytest.mark.parametrize("attempt", MANIFESTS.values(), ids=MANIFESTS)
def test_by_the_manifest(tmp_path: Path, attempt: Attempt) -> None:
    attempt.check(tmp_path)


def test_by_the_sizes_of_shards(tmp_path: Path) -> None:
    """Whoever chooses where a file is cut chooses numbers; the study says where."""
    honest = trained(tmp_path)
    place = honest.outbox.payload(honest.manifest.sha256)
    told = replace(honest, manifest=cut_at(honest.manifest, place, 1931))
    check_refused(tmp_path, answer(door(tmp_path), ASKED, question(), lambda: told), NOT_ALLOWED, "not that of")
    assert answer(door(tmp_path), ASKED, question(), lambda: honest).has_content()


def test_by_another_file_under_an_updates_name(tmp_path: Path) -> None:
    honest = trained(tmp_path)
    place = honest.outbox.payload(honest.manifest.sha256)
    place.write_bytes(SECRET * 100)
    check_refused(tmp_path, answer(door(tmp_path), ASKED, question(), lambda: honest), NOT_ALLOWED, "not that of")


def test_by_many_updates_of_one_round(tmp_path: Path) -> None:
    """Noise would average out, and models that the coordinator chose would ask many things about the same patients."""

    def another(number: int) -> Trained:
        return trained(tmp_path, {**update_of(DELTA), "v": torch.full((3,), number, dtype=torch.int32)})

    for number in range(MOST_ANSWERS):
        assert answer(door(tmp_path), ASKED, question(), lambda number=number: another(number)).has_content()
    assert answer(door(tmp_path), ASKED, question(), lambda: another(0)).has_content(), "the same once more"
    ninth = answer(door(tmp_path), ASKED, question(), lambda: another(MOST_ANSWERS))
    assert ninth.error.code == TOO_MANY_ANSWERS


@pytest.mark.parametrize("steps", [DELTA, PLAIN, INT8, INT4, TOPK], ids=lambda steps: "+".join(steps.steps))
def test_an_honest_update_passes_in_every_chain(tmp_path: Path, steps: Update) -> None:
    assert answer(door(tmp_path), ASKED, question(), lambda: trained(tmp_path, steps=steps)).has_content()

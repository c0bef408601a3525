"""A payload's manifest, its shards, and the file that they are put together in."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.transfer.incoming import Incoming, append_shard, part_of
from common.transfer.manifest import BadPayload, Manifest, Shard, manifest_from, manifest_of, read_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("payloads")


def payload(folder: Path, data: bytes) -> Path:
    path = folder / f"{hashlib.sha256(data).hexdigest()}.payload"
    path.write_bytes(data)
    return path


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), shard=st.integers(1, 70))
def test_shards_are_the_payload(folder: Path, data: bytes, shard: int) -> None:
    path = payload(folder, data)
    manifest = manifest_of(path, shard)
    assert (manifest.sha256, manifest.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert b"".join(read_shard(path, manifest, n) for n in range(len(manifest.shards))) == data
    assert all(part.size == shard for part in manifest.shards[:-1])
    assert manifest_from(manifest.to_dict()) == manifest


@settings(max_examples=80, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), shard=st.integers(1, 70), cuts=st.lists(st.integers(0, 200)))
def test_a_payload_goes_on_at_the_byte_where_it_ended(folder: Path, data: bytes, shard: int, cuts: list[int]) -> None:
    """Every cut stands for another process."""
    manifest = manifest_of(payload(folder, data), shard)
    place = folder / "arrived"
    place.unlink(missing_ok=True)
    for end in [*sorted(cuts), len(data)]:
        with Incoming(place, manifest) as incoming:
            incoming.add(data[incoming.held : end])
            assert incoming.held == min(len(data), max(incoming.held, end))
            if incoming.complete:
                incoming.finish()
                break
    assert place.read_bytes() == data


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_wrong_bytes_cost_their_shard_alone(tmp_path: Path) -> None:
    data = bytes(range(100))
    manifest = manifest_of(payload(tmp_path, data), 30)
    with Incoming(tmp_path / "arrived", manifest) as incoming:
        incoming.add(data[:50])
        incoming.add(damaged(data, 55)[50:])
        with pytest.raises(BadPayload, match="shard 1"):
            incoming.finish()
        assert (incoming.held, incoming.shards) == (30, 1)
        incoming.add(data[30:])
        assert incoming.finish().read_bytes() == data


@pytest.mark.parametrize(("at", "left"), [(5, 0), (45, 30), (95, 90)])
def test_a_file_that_lost_power_goes_on_at_its_last_whole_shard(tmp_path: Path, at: int, left: int) -> None:
    data = bytes(range(100))
    manifest = manifest_of(payload(tmp_path, data), 30)
    with Incoming(tmp_path / "arrived", manifest) as incoming:
        incoming.add(data)
        part = incoming.part
    part.write_bytes(damaged(data, at))
    with Incoming(tmp_path / "arrived", manifest) as incoming:
        assert incoming.held == left
        incoming.add(data[left:])
        assert incoming.finish().read_bytes() == data


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), size=st.integers(1, 70), numbers=st.lists(st.integers(0, 9)))
def test_shards_that_come_in_any_order_are_taken_in_theirs(
    folder: Path, data: bytes, size: int, numbers: list[int]
) -> None:
    manifest = manifest_of(payload(folder, data), size)
    place, here = folder / "in-shards", 0
    place.unlink(missing_ok=True)
    part_of(place, manifest).unlink(missing_ok=True)
    for number in [*numbers, *range(len(manifest.shards))]:
        if here == len(manifest.shards):
            break
        begin = size * number
        here += number == here
        assert append_shard(place, manifest, number, data[begin : begin + size]) == here
    assert place.read_bytes() == data


@pytest.mark.parametrize(("at", "left"), [(10, 3), (65, 2), (88, 2), (95, 3)])
def test_a_shard_that_lost_power_is_taken_again(tmp_path: Path, at: int, left: int) -> None:
    """The last whole shard's bytes, from 60 on, are seen at once; an earlier one's when the payload is complete."""
    data = bytes(range(100))
    manifest = manifest_of(payload(tmp_path, data), 30)
    place = tmp_path / "arrived"
    for number in range(3):
        append_shard(place, manifest, number, data[30 * number : 30 * number + 30])
    part = part_of(place, manifest)
    part.write_bytes(damaged(data, at)[:98])
    here = append_shard(place, manifest, None, b"")
    assert here == left
    for _ in range(6):
        here = append_shard(place, manifest, here, data[30 * here : 30 * here + 30])
        if here == 4:
            break
    assert place.read_bytes() == data


def read_so_far() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux alone counts what a process reads")
def test_what_is_read_to_take_shards_grows_with_the_payload_alone(tmp_path: Path) -> None:
    data = bytes(200) * 20_000
    for shards in (8, 64):
        size = len(data) // shards
        manifest = manifest_of(payload(tmp_path, data), size)
        place = tmp_path / f"in-{shards}-shards"
        before = read_so_far()
        for number in range(shards):
            append_shard(place, manifest, number, data[size * number : size * (number + 1)])
        assert place.read_bytes() == data
        assert read_so_far() - before < 4.5 * len(data), "the last shard each time, all twice in the end, and ours once"


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    data = bytes(range(100))
    manifest = manifest_of(payload(tmp_path, data), 30)
    with Incoming(tmp_path / "arrived", manifest) as incoming:
        with pytest.raises(BadPayload, match="more bytes"):
            incoming.add(data + b"x")
        incoming.add(data)
        assert incoming.finish().read_bytes() == data


def test_a_payload_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    data = bytes(range(100))
    manifest = manifest_of(payload(tmp_path, data), 30)
    with Incoming(tmp_path / "arrived", manifest) as incoming:
        incoming.add(data[:99])
        with pytest.raises(BadPayload, match="1 of 100 bytes are missing"):
            incoming.finish()
    assert not (tmp_path / "arrived").exists()


def test_shards_that_fit_under_another_whole_hash_are_no_payload(tmp_path: Path) -> None:
    data = bytes(range(100))
    true = manifest_of(payload(tmp_path, data), 30)
    with Incoming(tmp_path / "arrived", Manifest("0" * 64, true.size, true.shards)) as incoming:
        incoming.add(data)
        with pytest.raises(BadPayload, match="manifest's hash"):
            incoming.finish()
    assert [path.name for path in tmp_path.iterdir() if "arrived" in path.name] == []


def test_a_file_that_changed_is_not_handed_out(tmp_path: Path) -> None:
    path = payload(tmp_path, bytes(100))
    manifest = manifest_of(path, 30)
    path.write_bytes(damaged(bytes(100), 40))
    assert read_shard(path, manifest, 0) == bytes(30)
    with pytest.raises(BadPayload, match="shard 1"):
        read_shard(path, manifest, 1)
    with pytest.raises(BadPayload, match="has 4 shards"):
        read_shard(path, manifest, 4)


GOOD = Manifest("a" * 64, 3, (Shard("b" * 64, 2), Shard("c" * 64, 1))).to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "A" * 64}, {"sha256": "../../etc"}, {"sha256": None}, {"size": 4}, {"size": True}, {"size": -3},
        {"size": 1 << 60}, {"shard_sha256": ["b" * 64]}, {"shard_size": [3]}, {"shard_size": [3, 0]},
        {"shard_size": [4, -1]}, {"shard_sha256": ["b" * 64, "/"]}, {"shard_sha256": "b" * 64}, {"shard_size": None},
    ],
)  # fmt: skip
def test_a_manifest_from_outside_is_checked(change: dict[str, Any]) -> None:
    assert manifest_from(GOOD).shards[1] == Shard("c" * 64, 1)
    with pytest.raises(BadPayload):
        manifest_from({**GOOD, **change})

"""The bulk channel's two ends against each other, over TLS on loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from flwr.app import Message, RecordDict

from client.bulk import Channel, download, upload
from client.door import Asked, Door
from client.egress import REFUSALS, answer
from client.outbox import Outbox
from client.policy import BULK_FAILED, Policy
from client.replies import Uploaded
from common.address import Address, free_port
from common.bulk.opening import CHUNK, METHODS, SERVICE, ChannelRefused, Opening, Transfer, options, to_sign
from common.bulk.pace import Pace
from common.keys import make_site_key, read_private_key, sign
from common.transfer.manifest import Manifest, manifest_of
from common.transfer.records import PAYLOAD_MISSING
from server import bulk_service
from server.bulk_spool import Spool
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site
from server.simulation import COORDINATOR, set_identity

SITES = ("north", "south")
SIZE = 5 * CHUNK + 1234
SHARD = 2 * CHUNK


@dataclass(frozen=True)
class Ends:
    """A coordinator's folder with a service on it, and two sites' channels to it."""

    coordinator: Coordinator
    address: Address
    channels: dict[str, Channel]

    @property
    def spool(self) -> Spool:
        return Spool(self.coordinator.bulk)

    def faults(self) -> list[str]:
        text = (self.coordinator.logs / "bulk.jsonl").read_text()
        return [line for line in text.splitlines() if "bulk_refused" in line]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and keys, which take a while to make, for all tests."""
    folder = tmp_path_factory.mktemp("keys")
    make_certificates(folder / "certs", ["localhost"])
    for name in (*SITES, "stranger"):
        make_site_key(folder / name)
    return folder


@pytest.fixture
def ends(keys: Path, tmp_path: Path) -> Iterator[Ends]:
    with listening(keys, tmp_path) as made:
        yield made


class listening:
    """A service on a free port, ended with the block."""

    def __init__(self, keys: Path, folder: Path, bytes_per_s: float | None = None) -> None:
        coordinator = Coordinator(folder / "coordinator")
        coordinator.folder.mkdir()
        (coordinator.folder / "certs").symlink_to(keys / "certs")
        for name in SITES:
            add_site(coordinator, name, keys / name / "site.pub")
        address = Address("localhost", free_port())
        self.server = bulk_service.start(coordinator, Address("127.0.0.1", address.port), bytes_per_s)
        ca = coordinator.certificates.ca
        channels = {
            name: Channel(address, ca, read_private_key(keys / name / "site.key"), Pace(None)) for name in SITES
        }
        self.ends = Ends(coordinator, address, channels)

    def __enter__(self) -> Ends:
        return self.ends

    def __exit__(self, *_: object) -> None:
        self.server.stop(None).wait()


def payload_in(folder: Path, size: int = SIZE, first: int = 0) -> tuple[Path, Manifest]:
    path = folder / f"payload-{size}-{first}"
    path.write_bytes(bytes((first + n * n // 7) % 256 for n in range(size)))
    return path, manifest_of(path, SHARD)


def transfer_of(manifest: Manifest, direction: str = "up", site: str = "north", number: int = 3) -> Transfer:
    values = {"direction": direction, "site": site, "study": "5" * 64, "run": "a-run", "round": number}
    return Transfer.model_validate({**values, "sha256": manifest.sha256})


def raw_call(ends: Ends, requests: Iterator[bytes], direction: str = "up") -> Iterator[bytes]:
    """A call that does not keep to the protocol."""
    credentials = grpc.ssl_channel_credentials(ends.coordinator.certificates.ca.read_bytes())
    with grpc.secure_channel(str(ends.address), credentials, options()) as connection:
        yield from connection.stream_stream(f"/{SERVICE}/{METHODS[direction]}")(requests)


def refused_with(code: grpc.StatusCode, replies: Iterator[bytes]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(replies)
    assert caught.value.code() == code, caught.value.details()


@pytest.mark.parametrize("size", [1, CHUNK, SIZE])
def test_a_payload_arrives_bit_for_bit_both_ways(ends: Ends, tmp_path: Path, size: int) -> None:
    payload, manifest = payload_in(tmp_path, size)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    assert not place.exists()
    upload(ends.channels["north"], transfer_of(manifest), payload)
    assert place.read_bytes() == payload.read_bytes()
    down = transfer_of(manifest, "down", "south")
    ends.spool.offer(down, manifest, place)
    download(ends.channels["south"], down, manifest, tmp_path / "arrived")
    assert (tmp_path / "arrived").read_bytes() == payload.read_bytes()


def test_an_announcement_takes_away_what_is_left_over_and_nothing_that_another_run_writes(tmp_path: Path) -> None:
    _, manifest = payload_in(tmp_path)
    place = Spool(tmp_path / "bulk").received(transfer_of(manifest))
    place.parent.mkdir(parents=True)
    other = "up-" + "0" * 64
    left_over = place.with_name(f".{other}.payload.{'0' * 64}.part")
    note = place.with_name(f".{other}.json.4711.part")  # as server/run_folder.py writes it, before it has its name
    for file in (left_over, note):
        file.write_text("{")
    Spool(tmp_path / "bulk").expect(transfer_of(manifest), manifest)
    assert note.exists() and not left_over.exists()


@pytest.mark.parametrize("held", [1, SHARD, SHARD + 77, SIZE - 1, SIZE])
def test_an_upload_goes_on_at_the_byte_where_it_ended(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    payload, manifest = payload_in(tmp_path)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    place.with_name(f".{place.name}.{manifest.sha256}.part").write_bytes(payload.read_bytes()[:held])
    sent: list[int] = []
    monkeypatch.setattr(ends.channels["north"].pace, "wait", sent.append)
    upload(ends.channels["north"], transfer_of(manifest), payload)
    assert place.read_bytes() == payload.read_bytes() and sum(sent) == SIZE - held


def test_a_download_goes_on_at_the_byte_where_it_ended(ends: Ends, tmp_path: Path, monkeypatch) -> None:
    payload, manifest = payload_in(tmp_path)
    down = transfer_of(manifest, "down")
    ends.spool.offer(down, manifest, payload)
    (tmp_path / f".arrived.{manifest.sha256}.part").write_bytes(payload.read_bytes()[: CHUNK + 5])
    came: list[int] = []
    monkeypatch.setattr(ends.channels["north"].pace, "wait", came.append)
    download(ends.channels["north"], down, manifest, tmp_path / "arrived")
    assert (tmp_path / "arrived").read_bytes() == payload.read_bytes() and sum(came) == SIZE - CHUNK - 5


def test_what_is_not_announced_to_this_site_for_this_round_is_refused(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    announced = transfer_of(manifest)
    ends.spool.expect(announced, manifest)
    others = [
        ("south", transfer_of(manifest, site="south")),
        ("north", transfer_of(manifest, number=2)),
        ("north", announced.model_copy(update={"run": "another-run"})),
        ("north", announced.model_copy(update={"sha256": "0" * 64})),
    ]
    for site, transfer in others:
        with pytest.raises(ChannelRefused, match="PERMISSION_DENIED: this payload is not announced"):
            upload(ends.channels[site], transfer, payload)
    with pytest.raises(ChannelRefused, match="not announced"):
        down = transfer_of(manifest, "down")
        download(ends.channels["north"], down, manifest, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert sorted(path.name for path in ends.coordinator.bulk.rglob("*.*")) == [f"up-{manifest.sha256}.json"]


def test_an_update_of_a_round_that_is_over_is_refused(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    ends.spool.expect(transfer_of(manifest), manifest)
    upload(ends.channels["north"], transfer_of(manifest), payload)
    ends.spool.withdraw(transfer_of(manifest))
    with pytest.raises(ChannelRefused, match="not announced"):
        upload(ends.channels["north"], transfer_of(manifest), payload)
    assert not list(ends.coordinator.bulk.rglob("*.payload*"))


def test_a_round_that_ends_during_an_upload_takes_nothing_more(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, manifest = payload_in(tmp_path)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    monkeypatch.setattr(ends.channels["north"].pace, "wait", lambda count: ends.spool.withdraw(transfer_of(manifest)))
    with pytest.raises(ChannelRefused, match="not announced any more"):
        upload(ends.channels["north"], transfer_of(manifest), payload)
    assert not place.exists()


def test_announced_twice_is_announced_once(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    for _ in range(2):
        place = ends.spool.expect(transfer_of(manifest), manifest)
        upload(ends.channels["north"], transfer_of(manifest), payload)
    assert place.read_bytes() == payload.read_bytes()


def test_another_sites_key_and_an_unknown_name_are_refused_alike(ends: Ends, keys: Path, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    ends.spool.expect(transfer_of(manifest), manifest)
    stranger = replace(ends.channels["north"], key=read_private_key(keys / "stranger" / "site.key"))
    said = set()
    south = ends.channels["south"]
    for channel, site in ((south, "north"), (stranger, "north"), (stranger, "nobody"), (stranger, "..")):
        with pytest.raises(ChannelRefused, match="^UNAUTHENTICATED") as refused:
            upload(channel, transfer_of(manifest, site=site), payload)
        said.add(refused.value.sentence)
    assert len(said) == 1 and len(ends.faults()) == 4


def test_a_signature_says_nothing_in_another_call(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    opening = Opening(transfer=transfer_of(manifest))
    ends.spool.expect(opening.transfer, manifest)
    challenges: list[bytes] = []
    signed = threading.Event()

    def honest() -> Iterator[bytes]:
        yield opening.model_dump_json().encode()
        assert signed.wait(10)
        yield sign(ends.channels["north"].key, to_sign(opening, challenges[0]))

    replies = raw_call(ends, honest())
    challenges.append(next(replies))
    signed.set()
    assert next(replies) == b"0"
    signature = sign(ends.channels["north"].key, to_sign(opening, challenges[0]))
    replayed = [opening.model_dump_json().encode(), signature]
    refused_with(grpc.StatusCode.UNAUTHENTICATED, raw_call(ends, iter(replayed)))


A_HASH = "a" * 64
AN_OPENING = Opening(transfer=transfer_of(Manifest(A_HASH, 1, ()))).model_dump_json()


@pytest.mark.parametrize("first", ["", "{}", '{"transfer": {}}', AN_OPENING.replace(A_HASH, "../../certs/ca")])
def test_what_is_no_opening_is_refused(ends: Ends, first: str) -> None:
    refused_with(grpc.StatusCode.INVALID_ARGUMENT, raw_call(ends, iter([first.encode(), b"signature"])))


def test_a_call_that_does_not_prove_itself_is_ended(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_service, "OPENING_S", 0.2)
    waiting = threading.Event()

    def silent() -> Iterator[bytes]:
        yield AN_OPENING.encode()
        waiting.wait(30)

    refused_with(grpc.StatusCode.CANCELLED, raw_call(ends, silent()))
    waiting.set()


def changed(data: bytes) -> bytes:
    return data[: SHARD + 9] + bytes([data[SHARD + 9] ^ 1]) + data[SHARD + 10 :]


@pytest.mark.parametrize("damage", [changed, lambda data: data + b"x"])
def test_other_bytes_than_announced_are_refused(ends: Ends, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    payload, manifest = payload_in(tmp_path)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    good = payload.read_bytes()
    payload.write_bytes(damage(good))
    with pytest.raises(ChannelRefused, match="^DATA_LOSS"):
        upload(ends.channels["north"], transfer_of(manifest), payload)
    assert not place.exists()
    payload.write_bytes(good)
    upload(ends.channels["north"], transfer_of(manifest), payload)
    assert place.read_bytes() == good


def test_a_site_with_less_than_it_announced_is_asked_again_and_gives_up(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.raises(ChannelRefused, match="^ABORTED: the call ended before"):
        upload(ends.channels["north"], transfer_of(manifest), payload, tries=2)
    assert not place.exists()


def test_a_second_call_for_a_transfer_waits_for_the_first(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    slow = replace(ends.channels["north"], pace=Pace(SIZE / 0.5))
    both = [threading.Thread(target=upload, args=(slow, transfer_of(manifest), payload)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(30)
    assert place.read_bytes() == payload.read_bytes()
    assert any("under way" in fault for fault in ends.faults())


def test_each_site_has_a_bandwidth_of_its_own(keys: Path, tmp_path: Path) -> None:
    """Two payloads of one site share its rate, another site's goes beside them."""
    with listening(keys, tmp_path, bytes_per_s=SIZE / 0.6) as ends:
        jobs = []
        for n, site in enumerate(("north", "north", "south")):
            payload, manifest = payload_in(tmp_path, first=n)
            transfer = transfer_of(manifest, site=site)
            ends.spool.expect(transfer, manifest)
            jobs.append((ends.channels[site], transfer, payload))
        seconds: dict[str, float] = {}

        def move(channel: Channel, transfer: Transfer, payload: Path) -> None:
            upload(channel, transfer, payload)
            seconds[transfer.site] = time.monotonic() - began

        began = time.monotonic()
        threads = [threading.Thread(target=move, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert seconds["north"] >= 1.2 and 0.6 <= seconds["south"] < seconds["north"]


def test_only_what_passed_the_door_is_uploaded(ends: Ends, tmp_path: Path) -> None:
    outbox, door = Outbox(tmp_path / "outbox"), Door("north", Policy(approve_all=True), tmp_path / "state")
    manifest = outbox.put(lambda part: part.write_bytes(b"x" * SIZE), SHARD)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    set_identity(COORDINATOR)

    def uploaded() -> Message:
        asked = Message(RecordDict(), 2, "query.upload")
        reply = Uploaded(outbox, transfer_of(manifest), ends.channels["north"])
        moved = transfer_of(manifest)
        return answer(door, Asked(moved.study, moved.run, moved.round), asked, lambda: reply)

    assert uploaded().error.code == PAYLOAD_MISSING, "the door has not seen it"
    outbox.approve(manifest, 3)
    good = outbox.payload(manifest.sha256).read_bytes()
    outbox.payload(manifest.sha256).write_bytes(changed(good))
    assert uploaded().error.code == PAYLOAD_MISSING and not place.exists(), "the file is another than was approved"
    outbox.put(lambda part: part.write_bytes(good), SHARD)
    outbox.approve(manifest, 3)
    assert uploaded().has_content() and place.read_bytes() == good
    ends.spool.withdraw(transfer_of(manifest))
    refused = uploaded().error
    assert (refused.code, refused.reason) == (BULK_FAILED, REFUSALS[BULK_FAILED])
    told = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    # What is tried is logged before it leaves, so the last try stands there twice.
    assert [line["kind"] for line in told] == ["Refused", "Uploaded", "Refused", "Uploaded", "Uploaded", "Refused"]
    assert told[3]["detail"] == f"update {manifest.sha256}, {SIZE} bytes by the bulk channel"


def test_a_coordinator_of_another_authority_is_not_talked_to(ends: Ends, tmp_path: Path) -> None:
    payload, manifest = payload_in(tmp_path)
    place = ends.spool.expect(transfer_of(manifest), manifest)
    other = make_certificates(tmp_path / "other", ["localhost"])
    with pytest.raises(ChannelRefused, match="^UNAVAILABLE"):
        upload(replace(ends.channels["north"], ca=other.ca), transfer_of(manifest), payload, tries=1)
    assert not place.exists()

"""Serving blobs: bounded queues, fair turns, and a retained cache that is always cleared in the end."""

from __future__ import annotations

from typing import Any

from coordinator.downloads import IN_FLIGHT_MAX, QUEUED_PER_DEVICE_MAX, RETAINED_PIECE_BYTES, Downloads
from coordinator.events import Effect, Publish
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.messages import BlobGone, Message, RangeData, RangeRequest, short
from edge_sdk.wire.packing import unpack
from edge_sdk.wire.topics import Topics

TOPICS = Topics("garden")
BLOB, DIGEST = bytes(range(256)) * 200, b"d" * 32


class Shop:
    def __init__(self, blob: bytes = BLOB, chunk_bytes_max: int = 1024) -> None:
        self.journal: set[str] = set()
        self.retained: dict[str, bytes] = {}
        self.blobs: dict[bytes, bytes] = {}
        self.downloads = Downloads(
            TOPICS,
            self.blobs.get,
            chunk_bytes_max=chunk_bytes_max,
            retained_add=lambda *topics: self.journal.update(topics),
            retained_remove=lambda *topics: self.journal.difference_update(topics),
        )
        self.serve({DIGEST: blob})

    def serve(self, blobs: dict[bytes, bytes]) -> None:
        self.blobs.clear()
        self.blobs.update(blobs)
        self.downloads.serve("default", blobs)

    def want(self, device: str, wanted: RangeRequest) -> list[Effect]:
        return self.downloads.on_want(device, wanted, lambda message: encode_message(Envelope(), message))

    def up(self) -> list[Publish]:
        return self.broker(self.downloads.on_broker_up())

    def broker(self, effects: list[Effect], answer: bool = True) -> list[Publish]:
        """The broker takes what is published, acknowledges it, and takes what that brings."""
        todo, done = list(effects), []
        while todo:
            publish = todo.pop(0)
            assert isinstance(publish, Publish)
            done.append(publish)
            if publish.retain:
                assert not publish.payload or publish.topic in self.journal, "journalled before it is published"
                self.retained[publish.topic] = publish.payload
                if not publish.payload:
                    del self.retained[publish.topic]
            if answer and publish.token:
                todo += self.downloads.on_published(publish.token)
        return done


def message(publish: Publish) -> Message:
    return decode_message(publish.payload, publish.topic.rsplit("/", 1)[1], peer="coordinator")[1]


def assembled(published: list[Publish]) -> bytes:
    found = bytearray(len(BLOB))
    for publish in published:
        piece = message(publish)
        assert isinstance(piece, RangeData)
        found[piece.offset : piece.offset + len(piece.data)] = piece.data
    return bytes(found)


def test_a_packed_blob_is_served_and_retained_under_its_own_digest_while_the_plain_one_is() -> None:
    shop, words = Shop(), b"many words, " * 3000
    shop.serve({DIGEST: BLOB, digest_of(words): words})
    shop.up()
    found = shop.downloads.packed(digest_of(words))
    assert found is not None and found[1] < len(words) / 10
    (publish,) = shop.broker(shop.want("a", want((0, found[1]), digest=found[0])))
    piece = message(publish)
    assert isinstance(piece, RangeData) and unpack(piece.data, len(words)) == words
    shop.broker(shop.downloads.retain(found[0]))
    assert list(shop.retained) == [TOPICS.blob(found[0], 0)]
    shop.broker(shop.downloads.clear_retained(list(shop.journal)))
    assert shop.retained, "it is still served"
    shop.serve({DIGEST: BLOB})
    (publish,) = shop.broker(shop.want("a", want((0, found[1]), digest=found[0])))
    assert isinstance(message(publish), BlobGone)
    shop.broker(shop.downloads.clear_retained(list(shop.journal)))
    assert not shop.retained


def want(*ranges: tuple[int, int], digest: bytes = DIGEST) -> RangeRequest:
    return RangeRequest(digest=short(digest), ranges=ranges)


def test_ranges_are_served_in_messages_of_the_largest_size_at_most() -> None:
    shop = Shop()
    shop.up()
    served = shop.broker(shop.want("a", want((0, len(BLOB)))))
    assert assembled(served) == BLOB
    assert all(len(publish.payload) < 1024 + 600 for publish in served)
    assert {publish.topic for publish in served} == {"fl/v1/garden/to/a/bytes"}


def test_ranges_beyond_the_end_are_cut_and_others_are_empty() -> None:
    shop = Shop()
    shop.up()
    (publish,) = shop.broker(shop.want("a", want((len(BLOB) - 10, len(BLOB) + 5000), (1 << 30, 1 << 31))))
    piece = message(publish)
    assert isinstance(piece, RangeData) and piece.data == BLOB[-10:]


def test_a_blob_that_is_not_served_is_gone() -> None:
    shop = Shop()
    shop.up()
    (publish,) = shop.broker(shop.want("a", want((0, 10), digest=b"x" * 32)))
    assert message(publish) == BlobGone(digest=b"x" * 8)


def test_only_a_few_messages_are_in_flight_and_the_rest_follow_their_acknowledgements() -> None:
    shop = Shop()
    shop.up()
    first = shop.want("a", want((0, len(BLOB))))
    assert len(first) == IN_FLIGHT_MAX
    assert len(shop.broker(first)) == len(BLOB) // 1024
    assert shop.downloads.on_published(12345) == []


def test_one_device_cannot_fill_the_queue_for_the_others() -> None:
    shop = Shop(blob=bytes(8 << 20), chunk_bytes_max=1024)
    shop.up()
    waiting: list[Effect] = []
    for _ in range(10):
        waiting += shop.want("greedy", want((0, 8 << 20)))
    waiting += shop.want("modest", want((0, 100)))
    served = [publish.topic for publish in shop.broker(waiting)]
    assert served.count("fl/v1/garden/to/greedy/bytes") <= QUEUED_PER_DEVICE_MAX + IN_FLIGHT_MAX
    assert served.count("fl/v1/garden/to/modest/bytes") == 1


def test_what_was_asked_for_in_a_lost_connection_is_forgotten() -> None:
    shop = Shop()
    shop.up()
    shop.want("a", want((0, len(BLOB))))
    shop.downloads.on_broker_down()
    assert shop.want("b", want((0, 10))) == [], "asked on the other connection: it waits for this one"
    assert [publish.topic for publish in shop.up()] == ["fl/v1/garden/to/b/bytes"]


def test_a_retained_blob_is_published_in_pieces_once() -> None:
    shop = Shop()
    shop.up()
    shop.broker(shop.downloads.retain(DIGEST))
    assert b"".join(shop.retained[TOPICS.blob(DIGEST, at)] for at in range(0, len(BLOB), RETAINED_PIECE_BYTES)) == BLOB
    assert shop.journal == set(shop.retained)
    assert shop.downloads.retain(DIGEST) == []


def test_a_large_blob_does_not_flood_the_connection_and_requests_take_turns_with_it() -> None:
    shop = Shop(blob=bytes(4 << 20), chunk_bytes_max=16_384)
    shop.up()
    first = shop.downloads.retain(DIGEST)
    assert len(first) == IN_FLIGHT_MAX
    waiting = first + shop.want("a", want((0, 4 << 20)))
    served = shop.broker(waiting)
    assert len(served) == 512
    middle = served[IN_FLIGHT_MAX : IN_FLIGHT_MAX + 100]
    assert 40 <= sum(publish.retain for publish in middle) <= 60


def test_a_broker_that_came_back_empty_gets_the_pieces_again() -> None:
    shop = Shop()
    shop.up()
    shop.broker(shop.downloads.retain(DIGEST))
    before = dict(shop.retained)
    shop.downloads.on_broker_down()
    shop.retained.clear()
    shop.up()
    assert shop.retained == before


def test_pieces_of_what_is_not_served_any_more_are_cleared_and_leave_the_journal_only_then() -> None:
    shop = Shop()
    shop.up()
    shop.broker(shop.downloads.retain(DIGEST))
    shop.serve({})
    clearing = shop.downloads.clear_retained(sorted(shop.journal))
    assert shop.journal, "the broker has not taken it yet"
    shop.broker(clearing)
    assert not shop.journal and not shop.retained


def test_a_clearing_that_was_lost_with_the_connection_is_done_again() -> None:
    shop = Shop()
    shop.up()
    shop.broker(shop.downloads.retain(DIGEST))
    shop.serve({})
    shop.downloads.clear_retained(sorted(shop.journal))  # published, and the connection dies
    shop.downloads.on_broker_down()
    shop.up()
    assert not shop.journal and not shop.retained


def test_a_restarted_coordinator_clears_what_an_earlier_one_left() -> None:
    before = Shop()
    before.up()
    before.broker(before.downloads.retain(DIGEST))
    after = Shop(blob=b"another")
    after.journal, after.retained = set(before.journal), dict(before.retained)
    after.serve({b"n" * 32: b"another"})
    assert after.downloads.clear_retained(sorted(after.journal)) == [], "nothing is said before the broker is there"
    after.up()
    assert not after.journal and not after.retained


def test_what_is_still_served_is_kept() -> None:
    shop = Shop()
    shop.up()
    shop.broker(shop.downloads.retain(DIGEST))
    assert shop.downloads.clear_retained(sorted(shop.journal)) == []
    assert shop.retained


def test_a_blob_that_is_retained_again_while_it_is_cleared_stays() -> None:
    shop = Shop()
    shop.up()
    shop.broker(shop.downloads.retain(DIGEST))
    shop.serve({})
    clearing = shop.downloads.clear_retained(sorted(shop.journal))
    shop.serve({DIGEST: BLOB})
    again = shop.downloads.retain(DIGEST)
    shop.broker([*clearing, *again])
    assert len(shop.retained) == len(shop.journal) == 4


def test_a_topic_that_is_not_a_blob_is_cleared_too() -> None:
    shop = Shop()
    shop.journal = {"fl/v1/garden/blobs/zz/0", "nonsense"}
    shop.up()
    shop.retained = dict.fromkeys(shop.journal, b"x")
    shop.broker(shop.downloads.clear_retained(sorted(shop.journal)))
    assert not shop.journal


def test_a_small_broker_gets_small_messages() -> None:
    shop = Shop(chunk_bytes_max=58 * 1024)
    shop.downloads.limit_chunk(5_000, 600)
    shop.up()
    served: list[Any] = shop.broker(shop.want("a", want((0, len(BLOB)))))
    assert all(len(publish.payload) < 5_000 for publish in served) and assembled(served) == BLOB

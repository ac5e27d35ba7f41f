"""Which range is asked for next."""

from __future__ import annotations

from tasks.models.part_file import BLOCK
from tasks.models.ranges import LONGEST, SECONDS, SHORTEST, Ranges, piece_size

GB = 10**9


def drain(ranges: Ranges, connections: int = 1, rate: float = 0) -> list[tuple[int, int]]:
    taken = []
    while piece := ranges.take(connections, rate):
        taken.append((piece.at, piece.stop))
    return taken


def test_pieces_cover_what_is_missing_in_order_and_nothing_twice() -> None:
    size = 300 * BLOCK + 17
    missing = [(0, 40 * BLOCK), (100 * BLOCK, size)]
    taken = drain(Ranges(missing), connections=4)
    assert taken == sorted(taken)
    assert sum(stop - start for start, stop in taken) == 40 * BLOCK + size - 100 * BLOCK
    ends = {0: 40 * BLOCK, 100 * BLOCK: size}
    joined: dict[int, int] = {}
    for start, stop in taken:
        begin = next((b for b, e in joined.items() if e == start), start)
        joined[begin] = stop
    assert joined == ends


def test_every_piece_begins_at_a_block() -> None:
    assert all(start % BLOCK == 0 for start, _ in drain(Ranges([(0, GB)]), 8, 12_345_678))


def test_a_piece_takes_some_seconds() -> None:
    size = piece_size(100 * GB, 8, 2e6)
    assert 2e6 * SECONDS <= size < 2e6 * SECONDS + BLOCK


def test_a_piece_is_never_larger_than_the_longest() -> None:
    assert piece_size(100 * GB, 8, 1e12) == LONGEST
    assert piece_size(100 * GB, 1, 0) <= LONGEST


def test_at_the_end_pieces_shrink_so_that_all_connections_end_together() -> None:
    sizes = [stop - start for start, stop in drain(Ranges([(0, GB)]), 8, 50e6)]
    assert sizes[0] == LONGEST - LONGEST % BLOCK or sizes[0] <= LONGEST
    assert sizes[-2] <= SHORTEST + BLOCK
    assert sizes == sorted(sizes[:-1], reverse=True) + sizes[-1:]


def test_what_is_given_back_is_taken_first_when_it_is_lowest() -> None:
    ranges = Ranges([(0, 100 * SHORTEST)])
    piece = ranges.take(1, 0)
    assert piece
    ranges.give_back(piece.at, piece.stop)
    again = ranges.take(1, 0)
    assert again
    assert again.at == piece.at
    assert ranges.remaining == 100 * SHORTEST - (again.stop - again.at)


def test_nothing_is_left_when_all_is_taken() -> None:
    ranges = Ranges([])
    assert ranges.take(8, 0) is None
    assert ranges.remaining == 0

"""What a block holds is known until something is written to it."""

from services.engine.backend import SequenceStep
from services.engine.core.contents import Contents


def test_a_block_holds_what_was_said_last_until_it_is_written_to() -> None:
    contents = Contents()
    contents.note([(b"a", 3), (b"b", 1)])
    assert (b"a", 3) in contents
    assert (b"a", 1) not in contents
    contents.note([(b"c", 3)])
    assert (b"a", 3) not in contents
    assert contents.places == {b"c": 3, b"b": 1}
    contents.written([3, 7])
    assert (b"c", 3) not in contents
    assert len(contents) == 1
    contents.written([1])
    assert not contents


def test_a_step_writes_its_rows_alone() -> None:
    """It reads what lies before them, and writes to a block of which it has one row, too."""
    for start, count, written in ((0, 1, [0]), (16, 16, [1]), (31, 2, [1, 2]), (40, 0, [2])):
        contents = Contents()
        contents.note([(b"%d" % block, block) for block in range(4)])
        contents.stepped([SequenceStep(0, start, count, (0, 1, 2), True)])
        left = [block for block in range(4) if (b"%d" % block, block) not in contents]
        assert left == ([] if not count and start % 16 == 0 else written)


def test_what_came_rounded_is_told_apart_until_it_is_written_to() -> None:
    contents = Contents()
    contents.note([(b"a", 3), (b"b", 1)])
    contents.note_rounded([3])
    contents.note([(b"a", 3)])
    assert [contents.is_rounded(named) for named in ((b"a", 3), (b"b", 1), (b"c", 3))] == [
        True,
        False,
        False,
    ]
    contents.stepped([SequenceStep(0, 0, 1, (3,), True)])
    contents.note([(b"a", 3)])
    assert not contents.is_rounded((b"a", 3))

"""Calls are done in their order, behind the caller's back, and none is lost without a word."""

import time
from collections.abc import Callable

import pytest

from pipelines.engine.behind import Behind


def test_calls_are_done_in_their_order_and_all_before_the_block_ends():
    done: list[int] = []

    def slowly(number: int) -> None:
        time.sleep(0.002 * (number % 3))
        done.append(number)

    with Behind(4) as behind:
        for number in range(30):
            behind.do(slowly, number)

    assert done == list(range(30))


def test_no_more_wait_than_may():
    begun: list[int] = []

    def slowly(number: int) -> None:
        begun.append(number)
        time.sleep(0.005)

    with Behind(3) as behind:
        for number in range(12):
            behind.do(slowly, number)
            assert number - len(begun) <= 3


def failing(at: int, done: list[int]) -> Callable[[int], None]:
    def call(number: int) -> None:
        time.sleep(0.005)
        if number == at:
            raise OSError("the disk is full")
        done.append(number)

    return call


def in_turn(most: int, count: int, call: Callable[[int], None], *, pause_s: float = 0.0, interrupted: bool = False) -> None:
    """Make so many calls."""
    with Behind(most) as behind:
        for number in range(count):
            behind.do(call, number)
            time.sleep(pause_s)
        if interrupted:
            raise KeyboardInterrupt


def test_the_error_of_a_call_comes_to_the_caller():
    done: list[int] = []
    with pytest.raises(OSError, match="disk is full"):
        in_turn(2, 100, failing(3, done), pause_s=0.001)

    assert done == [0, 1, 2]


def test_the_error_of_the_last_call_comes_too():
    with pytest.raises(OSError, match="disk is full"):
        in_turn(50, 10, failing(9, []))


def test_no_call_is_begun_after_one_that_failed():
    done: list[int] = []
    with pytest.raises(OSError, match="disk is full"):
        in_turn(50, 10, failing(3, done))

    assert done == [0, 1, 2]


def test_an_error_of_the_block_drops_what_waits():
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        in_turn(50, 20, failing(-1, done), interrupted=True)

    assert len(done) < 20

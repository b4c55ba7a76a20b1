"""The price with the real vLLM: its figures, intervals and verdicts, and the end of a stream."""

import random
import re
import socket
import time
from itertools import pairwise

import pytest

from scripts.maintain.price import real
from scripts.maintain.price.gateways import DIRECT, OURS
from scripts.maintain.price.real import A_SECOND, ARRIVALS, BUSY_PROCESSES, PROMISED_STOP_SECONDS, Load


def loads(ratio: float, later_ms: float, *, pairs: int = 40) -> dict[str, Load]:
    """Blocks of both ways: ours has `ratio` of the throughput, and every first token `later_ms` later."""
    chance = random.Random(1)  # noqa: S311
    speeds = [chance.uniform(2000, 3000) for _ in range(pairs)]  # the machine's own variation
    blocks = [[chance.uniform(0.005, 0.02) for _ in range(300)] for _ in range(5)]
    return {
        DIRECT: Load(speeds, blocks),
        OURS: Load([ratio * each for each in speeds], [[each + later_ms / 1000 for each in block] for block in blocks]),
    }


def verdicts(text: str) -> list[str]:
    return re.findall(r"\*\*((?:not )?kept)\*\*", text)


@pytest.mark.parametrize(
    ("ratio", "later_ms", "expected"),
    [(1.0, 0.5, ["kept", "kept"]), (0.98, 0.5, ["not kept", "kept"]), (1.0, 2.5, ["kept", "not kept"])],
)
def test_pairs_show_what_the_machines_variation_would_hide(ratio: float, later_ms: float, expected: list[str]) -> None:
    text = real.load_table(loads(ratio, later_ms))
    assert verdicts(text) == expected
    assert f"measured {ratio:.3f} ({ratio:.3f} to {ratio:.3f})" in text
    assert f"measured {later_ms:.1f} ms (" in text


def test_an_interval_holds_most_of_what_is_drawn() -> None:
    chance = random.Random(1)  # noqa: S311
    pairs = [(chance.gauss(1.0, 0.1), 1.0) for _ in range(200)]
    middle, low, high = real.with_interval(pairs, lambda drawn: sum(ours for ours, _ in drawn) / len(drawn))
    # 0.1 / sqrt(200) = 0.007: 1.96 times that on either side.
    assert middle == pytest.approx(1.0, abs=0.03)
    assert middle - low == pytest.approx(0.0139, rel=0.25)
    assert high - middle == pytest.approx(0.0139, rel=0.25)


def test_moments_are_random_the_same_for_both_ways_and_as_many_as_the_rate_says() -> None:
    moments = real.random_moments(1)
    assert moments == real.random_moments(1) != real.random_moments(2)
    assert len(moments) == ARRIVALS
    assert moments[-1] == pytest.approx(ARRIVALS / A_SECOND, rel=0.2)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert min(gaps) >= 0
    assert max(gaps) > 3 / A_SECOND


def test_the_longest_stop_through_ours_decides_not_the_median() -> None:
    quick = {(name, processes): [0.02, 0.03] for processes in (0, BUSY_PROCESSES) for name in (DIRECT, OURS)}
    assert verdicts(real.stop_table(quick)) == ["kept"]
    slow = quick | {(OURS, 0): [0.02, 0.02, PROMISED_STOP_SECONDS + 0.1]}
    assert verdicts(real.stop_table(slow)) == ["not kept"]


ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
TOKEN = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'


def test_the_first_token_is_the_second_event_and_a_stream_ends_with_its_last_chunk() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        stream = real.Stream(time.monotonic())
        theirs.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + ROLE)
        assert not stream.over(ours)
        assert stream.first == 0
        time.sleep(0.05)
        theirs.sendall(TOKEN)
        assert not stream.over(ours)
        assert 0.05 <= stream.first < 5
        theirs.sendall(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert stream.over(ours)


def test_a_stream_that_is_cut_off_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(ROLE)
        theirs.close()
        with pytest.raises(RuntimeError, match="cut off"):
            real.Stream(time.monotonic()).over(ours)

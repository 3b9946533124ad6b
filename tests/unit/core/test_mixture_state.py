"""The state of a mixture: what it holds besides lanes and turns."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from laneway.core.mixture_state import decode_mixture, encode_mixture
from laneway.core.progress import CutStart, EarlierCut, Group, Progress, Rest, SourceStart, fresh_cut
from laneway.errors import StateFormatError

PROGRESS = Progress(0, cut=fresh_cut(3, 2), earlier=(EarlierCut(4, 2, next_turn=9),))
BEFORE = CutStart(
    (SourceStart("", 1), SourceStart("code", 0.3, 1, (Rest(0, 5, files="code0"),), "code0")), batches_before=-2
)
CURRENT = CutStart(
    (
        SourceStart("web", 0.7, 2, (Rest(0, 2, files="web00"), Rest(1, 7, files="web01")), "web01"),
        SourceStart("code", 0.3, 1, (Rest(0, 5, 1, "code0"),), "code0", 12),
    ),
    6,
    2,
    rows_before=9,
)
MIXTURE = replace(PROGRESS, starts=(BEFORE, CURRENT), carried=(Group(0, 3, 12, 1), Group(-1, 0, 6, 4)))


def test_a_mixture_is_saved_as_plain_values() -> None:
    assert encode_mixture(MIXTURE) == [
        ["web", "code"],
        "web01code0web00",
        [
            [2, 1, 0, 0, [-1, 1], None, [1, 0.3], [0, 1], [[1], [0], [5], [2], [1]], -2],
            [
                *(2, 6, 2, 9, None, None, [0.7, 0.3], [2, 1]),
                [[0, 0, 1], [0, 1, 0], [2, 7, 5], [2, 2, 1], [2, 0, 1]],
                [0, 12],
            ],
        ],
        [[0, -1], [3, 0], [12, 6], [1, 4]],
    ]


def test_what_was_saved_is_loaded() -> None:
    assert decode_mixture(json.loads(json.dumps(encode_mixture(MIXTURE))), PROGRESS) == MIXTURE


def test_a_mixture_of_many_sources_takes_under_thirty_bytes_for_each() -> None:
    weights = np.random.default_rng(0).lognormal(size=200)
    sources = tuple(SourceStart(f"s{i}", float(weight), 12) for i, weight in enumerate(weights))
    encoded = encode_mixture(Progress(0, cut=fresh_cut(8, 4), starts=(CutStart(sources),)))
    names = len(json.dumps(encoded[0]))
    assert len(json.dumps(encoded)) - names < 30 * 200


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), {}),
        ((), []),
        ((0,), ["web", "web"]),
        ((0,), ["", "code"]),
        ((0, 0), 3),
        ((1,), "web01"),
        ((1,), []),
        ((2, 1, 5), [0, 9]),
        ((2,), []),
        ((2, 0), None),
        ((2, 1, 0), 99),
        ((2, 1, 1), 0),
        ((2, 1, 2), 1),
        ((2, 1, 2), True),
        ((2, 1, 3), -1),
        ((2, 1, 4), [0, 2]),
        ((2, 1, 4), [0, 0]),
        ((2, 1, 4), [0, -1]),
        ((2, 1, 4), [0]),
        ((2, 1, 6), [0.7]),
        ((2, 1, 6), [0, 0]),
        ((2, 1, 6, 0), -1),
        ((2, 1, 6, 0), float("nan")),
        ((2, 1, 6, 0), 10**400),
        ((2, 1, 6, 0), "1"),
        ((2, 1, 7, 0), -1),
        ((2, 1, 7, 0), 0.5),
        ((2, 1, 8, 0), [0, 0, 2]),
        ((2, 1, 8, 1), [0, 2, 0]),
        ((2, 1, 8, 1), [1, 0, 0]),
        ((2, 1, 8, 2), [0, 7, 5]),
        ((2, 1, 8, 3), [2, 2, 9]),
        ((2, 1, 8), [[0], [0], [2]]),
        ((2, 0, 9), 0),
        ((2, 0, 9), 10**400),
        ((2, 0, 9), None),
        ((3,), []),
        ((3, 0), [1, -1]),
        ((3, 0), [-2, -1]),
        ((3, 1), [4, 0]),
        ((3, 2), [-1, 0]),
        ((3, 3), [1]),
    ],
)
def test_a_damaged_mixture_is_refused(path: tuple[int, ...], value: object) -> None:
    encoded: Any = deepcopy(encode_mixture(MIXTURE))
    if path:
        at = encoded
        for index in path[:-1]:
            at = at[index]
        at[path[-1]] = value
    else:
        encoded = value
    with pytest.raises(StateFormatError, match="this state is damaged"):
        decode_mixture(encoded, PROGRESS)


def test_a_group_in_which_its_lane_ended_keeps_its_rows() -> None:
    short = replace(MIXTURE, carried=(Group(0, 3, 12, 1, num_rows=5), Group(-1, 0, 6, 4)))
    encoded = json.loads(json.dumps(encode_mixture(short)))
    assert encoded[3] == [[0, -1], [3, 0], [12, 6], [1, 4], [5, 0]]
    assert decode_mixture(encoded, PROGRESS) == short
    encoded[3][4] = [6, 0]
    with pytest.raises(StateFormatError, match="a group has 6 rows"):
        decode_mixture(encoded, PROGRESS)

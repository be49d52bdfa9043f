"""The figure of detectors' utility and fairness."""

import itertools

import numpy as np
from matplotlib.text import Text

from reports.figures.tradeoff import tradeoff


def test_the_numbers_of_many_similar_detectors_stay_apart_and_inside():
    rng = np.random.default_rng(0)
    rows = [
        {"detector": f"d{i}", "utility": 0.999 - 1e-4 * i, "fairness": 0.002 * rng.random(), "front": i}
        | dict.fromkeys(("utility_low", "utility_high", "fairness_low", "fairness_high"))
        for i in range(1, 21)
    ]
    rows.append(rows[0] | {"detector": "(majority)", "utility": 0.5, "fairness": 0.0})
    figure = tradeoff(rows, title="x")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
    assert [text.get_text() for text in axes.texts] == [str(i) for i in range(1, 22)]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 for box in boxes)

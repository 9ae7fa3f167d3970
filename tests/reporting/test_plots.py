"""The PNG figures: what they show, that any name can be drawn, that they are reproducible."""

import math
import re

import matplotlib
import numpy as np
import PIL.Image
import pytest
from fakerun import HOSTILE, make_history, predict
from matplotlib.figure import Figure
from matplotlib.text import Text

from fmnist_tf.reporting.curves import plot_curves, write_curves, write_lr_finder
from fmnist_tf.reporting.plots import write_confusion, write_mistakes
from fmnist_tf.reporting.style import Heading
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.history import HistoryRow

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ("T-shirt/top", "Trouser", "Pullover")
HEADING = Heading("my run", "built-in SAMPLE")


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Collect each figure that is saved."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    return figures


def texts(figure: Figure) -> list[str]:
    shown = (text.get_text() for text in figure.findobj(Text) if text.get_visible())
    return [text for text in shown if text]


def random_pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 784), dtype=np.uint8)


def test_curves_show_both_splits_and_mark_the_selected_epoch(tmp_path, drawn):
    path = tmp_path / "curves.png"
    write_curves(path, HEADING, make_history("frozen", range(1, 4)), 2)
    (figure,) = drawn
    assert {"built-in SAMPLE", "my run", "train", "val", "accuracy"} <= set(texts(figure))
    assert any("0.5200" in text and "0.6667" in text for text in texts(figure))
    for axes, selected in zip(figure.axes, (0.52, 2 / 3), strict=True):
        train, val, ring = axes.lines
        assert (train.get_linestyle(), val.get_linestyle()) == ("--", "-")
        assert train.get_color() != val.get_color()
        assert ring.get_xydata().tolist() == [[2, selected]]
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n_epochs", [1, 2, 30])
def test_epochs_are_whole_numbers_on_the_axis(n_epochs):
    figure = Figure()
    rows = make_history("frozen", range(1, n_epochs + 1))
    plot_curves(figure, rows, rows[0])
    low, high = figure.axes[1].get_xlim()
    ticks = [tick for tick in figure.axes[1].get_xticks() if low <= tick <= high]
    assert ticks == [int(tick) for tick in ticks] != []


@pytest.mark.parametrize(
    ("second", "places"),
    [
        (range(1, 3), [4, 5]),  # counts from the start again
        (range(0, 3), [3, 4, 5]),  # its starting point is where the first phase ended
    ],
)
def test_a_second_phase_continues_the_first(second, places):
    figure = Figure()
    rows = make_history("frozen", range(1, 4)) + make_history("finetune", second, 0.7)
    plot_curves(figure, rows, rows[-1])
    upper = figure.axes[0]
    assert [list(line.get_xdata()) for line in upper.lines[:2]] == [[1, 2, 3], places]
    assert upper.lines[4].get_xydata().tolist() == [[5, 0.7 + second[-1] / 100]]  # the ring
    assert {"frozen", "finetune"} <= set(texts(figure))


def test_the_lr_finder_marks_its_suggestion(tmp_path, drawn):
    rates, losses = [1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.0, 9.0]
    for suggestion in (1e-3, None):
        write_lr_finder(tmp_path / "l.png", HEADING, rates, losses, losses, suggestion)
    found, nothing = (figure.axes[0] for figure in drawn)
    assert found.lines[0].get_xdata().tolist() == rates[:3]
    assert found.lines[-1].get_xdata() == [1e-3, 1e-3]
    assert len(nothing.lines) == len(found.lines) - 1


def test_confusion_shows_counts_and_fractions_by_row(tmp_path, drawn):
    confusion = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    write_confusion(tmp_path / "c.png", HEADING, Evaluation(confusion, 1.0), NAMES)
    axes = drawn[0].axes[0]
    red, _, blue = np.moveaxis(np.asarray(axes.images[0].get_array()), 2, 0)
    assert (np.diagonal(blue - red) > 0)[[0, 2]].all()  # correct ones are blue, mistakes are not
    assert red[0, 1] - blue[0, 1] < red[2, 0] - blue[2, 0]  # the darker, the larger the fraction
    assert red[0, 2] == red[1, 1] == red[1, 2]  # nothing
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"}
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(NAMES)
    assert any("0.7857" in text and "0.5241 to 0.9243" in text for text in texts(drawn[0]))
    write_confusion(
        tmp_path / "c.png", HEADING, Evaluation(np.full((12, 12), 10**11), 0.0), NAMES * 4
    )
    axes = drawn[1].axes[0]
    cell = axes.get_window_extent().width / 12  # a count fits into it
    assert max(text.get_window_extent().width for text in axes.texts) < cell


@pytest.mark.parametrize(("k", "has_counts", "has_names"), [(30, 1, 1), (60, 0, 1), (1000, 0, 0)])
def test_confusion_of_many_classes_stays_bounded(tmp_path, drawn, k, has_counts, has_names):
    evaluation = Evaluation(np.eye(k, dtype=np.int64) * 12345, 0.0)
    write_confusion(tmp_path / "c.png", HEADING, evaluation, [f"name {i}" for i in range(k)])
    axes = drawn[0].axes[0]
    assert len(axes.texts) == (k if has_counts else 0)
    assert ("name 3" in texts(drawn[0])) == has_names
    assert len(axes.get_xticks()) <= (k if has_names else 15)
    with PIL.Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 1700


def test_mistakes_come_worst_first_with_labels_and_probabilities(tmp_path, drawn):
    pixels = np.stack([np.full(784, value, np.uint8) for value in (10, 20, 30, 40)])
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array(
        [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.001, 0.998, 0.001], [0.3, 0.4, 0.3]], np.float32
    )
    write_mistakes(tmp_path / "m.png", HEADING, pixels, labels, probabilities, NAMES)
    tiles = [axes for axes in drawn[0].axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0]) for axes in tiles] == [30, 40, 20]
    worst = ["true Pullover", "0.1%", "pred Trouser", "99.8%"]
    assert [text.get_text() for text in tiles[0].texts] == worst


def test_at_most_36_mistakes_are_drawn(tmp_path, drawn):
    labels, probabilities = predict(3, 60, 0)
    arrays = random_pixels(60), (labels + 1) % 3, probabilities
    write_mistakes(tmp_path / "m.png", HEADING, *arrays, NAMES)
    write_mistakes(tmp_path / "m.png", HEADING, arrays[0], labels, np.eye(3)[labels], NAMES)
    assert [sum(bool(axes.images) for axes in figure.axes) for figure in drawn] == [36, 0]


def test_any_name_can_be_drawn_within_the_figure(tmp_path, drawn, caplog):
    names = [*HOSTILE, "Wide name " * 9]
    k = len(names)
    heading = Heading("$t_{" + "x" * 999, "\x07ドレス" + "B" * 999)
    write_confusion(tmp_path / "c.png", heading, Evaluation(np.ones((k, k), np.int64), 1.0), names)
    labels, probabilities = predict(k, 60, 0)
    write_mistakes(tmp_path / "m.png", heading, random_pixels(60), labels, probabilities, names)
    ticks = {tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()}
    assert {"$\\frac{a}$ & 'x' \"y\"", "\\u202egnp.exe\\u202d", "class 6", "class 8"} <= ticks
    assert not caplog.records
    for figure in drawn:
        width, height = figure.canvas.get_width_height()
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                assert text.get_text().isprintable()
                box = text.get_window_extent()
                assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text


def test_the_same_input_gives_the_same_bytes_whatever_the_users_style(tmp_path):
    start = HistoryRow(0, "frozen", math.nan, math.nan, 0.4, 0.9, 1e-4, 1.0)
    rows = [start, *make_history("frozen", range(1, 4))]
    write_curves(tmp_path / "a.png", HEADING, rows, 1)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 10}):
        write_curves(tmp_path / "b.png", HEADING, rows, 1)
        assert matplotlib.rcParams["font.size"] == 30
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert not re.search(rb"Software|matplotlib|[Dd]ate", content)

"""The figures: what they say, that they take hostile names, and that they leave nothing behind."""

import itertools
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fmnist_tf.reporting.figures import write_confusion, write_curves, write_mistakes
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.rundir import HistoryRow

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ("T-shirt/top", "Trouser", "Pullover")
HOSTILE = ("$\\frac{a}$", "\u202egnp.exe", "\x1b[31mred\n", "ドレス", " ", "long " * 100)
BANNER = "built-in SAMPLE, not real data"


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


def make_history(phase: str, epochs: range, accuracy: float = 0.5) -> list[HistoryRow]:
    return [
        HistoryRow(e, phase, 1 / (e + 1), accuracy + e / 100, 2 / (e + 1), accuracy, 0.1, 1.0)
        for e in epochs
    ]


def make_mistakes(k: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(k), n).astype(np.float32)
    pixels = random.integers(0, 256, (n, 784), dtype=np.uint8)
    return pixels, random.integers(0, k, n), probabilities


def test_curves_name_both_lines_and_mark_the_epoch_kept(tmp_path, drawn):
    rows = make_history("frozen", range(1, 4))
    path = tmp_path / "curves.png"
    write_curves(path, rows, "my run", chosen_epoch=2, banner=BANNER)
    (figure,) = drawn
    said = texts(figure)
    assert {BANNER, "my run", "accuracy", "loss (nats)", "epoch"} <= set(said)
    assert {"train 0.5300", "val 0.5000", "train 0.2500"} <= set(said)
    assert "ring: the weights kept, frozen epoch 2, val accuracy 0.5000, val loss 0.6667" in said
    for axes, values in zip(figure.axes, (0.5, 2 / 3), strict=True):
        rings = [line for line in axes.lines if line.get_markersize() == 11]
        assert [line.get_xydata().tolist() for line in rings] == [[[2, values]]]
        dashes = {line.get_color(): line.get_linestyle() for line in axes.lines[:2]}
        assert set(dashes.values()) == {"--", "-"}
        assert len(dashes) == 2
    assert path.read_bytes().startswith(b"\x89PNG")


def test_curves_have_whole_epochs_on_the_axis(tmp_path, drawn):
    for n_epochs in (1, 2, 3, 30):
        write_curves(tmp_path / "c.png", make_history("frozen", range(1, n_epochs + 1)), "t")
        axis = drawn[-1].axes[1]
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("second", "places"),
    [
        (range(1, 3), [4, 5]),  # counts from the start again
        (range(0, 3), [3, 4, 5]),  # its starting point stands where the first phase ended
        (range(4, 6), [4, 5]),  # counts on
    ],
)
def test_a_second_phase_continues_the_first(tmp_path, drawn, second, places):
    rows = make_history("frozen", range(1, 4)) + make_history("finetune", second, 0.7)
    write_curves(tmp_path / "c.png", rows, "t", chosen_epoch=second[-1])
    upper = drawn[0].axes[0]
    assert [list(line.get_xdata()) for line in upper.lines[:2]] == [[1, 2, 3], places]
    assert upper.lines[4].get_xydata().tolist() == [[5, 0.7]]  # the ring
    assert {"frozen", "finetune"} <= set(texts(drawn[0]))


def test_a_starting_point_without_training_numbers_is_drawn(tmp_path, drawn):
    start = HistoryRow(0, "finetune", math.nan, math.nan, 0.4, 0.9, 1e-4, 1.0)
    write_curves(tmp_path / "c.png", [start], "t", chosen_epoch=0)
    said = texts(drawn[0])
    assert "val 0.9000" in said
    assert not any(text.startswith("train") for text in said)


def test_curves_refuse_no_epoch_and_a_foreign_choice(tmp_path):
    with pytest.raises(ValueError, match="at least one epoch"):
        write_curves(tmp_path / "c.png", [], "t")
    with pytest.raises(ValueError, match="7 is no epoch of frozen"):
        write_curves(tmp_path / "c.png", make_history("frozen", range(1, 3)), "t", chosen_epoch=7)
    assert list(tmp_path.iterdir()) == []


def test_close_labels_are_kept_apart(tmp_path, drawn):
    rows = [HistoryRow(e, "frozen", 1.0, 0.5 + e / 9, 1.0, 0.5 + e / 9, 0.1, 1.0) for e in (1, 2)]
    write_curves(tmp_path / "c.png", rows, "t")
    axes = drawn[0].axes[0]
    labels = [
        text.get_window_extent() for text in axes.texts if text.get_text()[:2] in ("tr", "va")
    ]
    assert len(labels) == 2
    assert not labels[0].overlaps(labels[1])


def test_confusion_shows_counts_and_shares_by_row(tmp_path, drawn):
    confusion = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    write_confusion(tmp_path / "c.png", Evaluation(confusion, 1.0), NAMES, "t", banner=BANNER)
    axes = drawn[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(NAMES)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(NAMES)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("truth", "guess")
    said = texts(drawn[0])
    assert BANNER in said
    assert "accuracy 0.7857 (11 of 14), 95 % interval 0.5241 to 0.9243" in said


@pytest.mark.parametrize(("k", "has_counts", "has_names"), [(30, 1, 1), (60, 0, 1), (1000, 0, 0)])
def test_confusion_of_many_classes_stays_readable_and_bounded(
    tmp_path, drawn, k, has_counts, has_names
):
    evaluation = Evaluation(np.eye(k, dtype=np.int64) * 12345, 0.0)
    write_confusion(tmp_path / "c.png", evaluation, [f"name {i}" for i in range(k)], "t")
    axes = drawn[0].axes[0]
    assert len(axes.texts) == (k if has_counts else 0)
    assert ("name 3" in texts(drawn[0])) == has_names
    assert len(axes.get_xticks()) <= (k if has_names else 15)
    with PIL.Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 1700


def test_a_count_fits_into_its_cell(tmp_path, drawn):
    evaluation = Evaluation(np.full((12, 12), 10**11), 0.0)
    write_confusion(tmp_path / "c.png", evaluation, [str(i) for i in range(12)], "t")
    axes = drawn[0].axes[0]
    cell = axes.get_window_extent().width / 12
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_mistakes_come_worst_first_with_truth_guess_and_probability(tmp_path, drawn):
    pixels = np.stack([np.full(784, value, np.uint8) for value in (10, 20, 30, 40)])
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array(
        [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.001, 0.998, 0.001], [0.3, 0.4, 0.3]], np.float32
    )
    write_mistakes(tmp_path / "m.png", pixels, labels, probabilities, NAMES, "t", banner=BANNER)
    tiles = [axes for axes in drawn[0].axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0]) for axes in tiles] == [30, 40, 20]
    worst = ["truth Pullover", "0.1%", "guess Trouser", "99.8%"]
    assert [text.get_text() for text in tiles[0].texts] == worst
    assert {BANNER, "3 of 4 images are guessed wrong"} <= set(texts(drawn[0]))


def test_mistakes_are_limited_and_the_rest_is_counted(tmp_path, drawn):
    pixels, labels, probabilities = make_mistakes(3)
    n_mistakes = int((probabilities.argmax(1) != labels).sum())
    write_mistakes(tmp_path / "m.png", pixels, labels, probabilities, NAMES, "t", count=7)
    assert sum(bool(axes.images) for axes in drawn[0].axes) == 7
    expected = f"{n_mistakes} of 60 images are guessed wrong; these are the 7 worst"
    assert expected in texts(drawn[0])


def test_no_mistakes_is_said(tmp_path, drawn):
    pixels, labels, _ = make_mistakes(3)
    write_mistakes(tmp_path / "m.png", pixels, labels, np.eye(3)[labels], NAMES, "t")
    assert "no mistakes" in texts(drawn[0])


def test_mistakes_refuse_arrays_that_do_not_fit(tmp_path):
    pixels, labels, probabilities = make_mistakes(3)
    with pytest.raises(ValueError, match=r"expected shape \(60, 784\), found \(59, 784\)"):
        write_mistakes(tmp_path / "m.png", pixels[:59], labels, probabilities, NAMES, "t")
    with pytest.raises(ValueError, match="expected 3 names, found 2"):
        write_mistakes(tmp_path / "m.png", pixels, labels, probabilities, NAMES[:2], "t")


def test_hostile_names_are_shown_as_text_and_undrawable_ones_by_number(tmp_path, drawn, caplog):
    k = len(HOSTILE)
    evaluation = Evaluation(np.ones((k, k), np.int64), 1.0)
    write_confusion(
        tmp_path / "c.png", evaluation, HOSTILE, "$t_{" + "x" * 999, banner="\x07ドレス"
    )
    pixels, labels, probabilities = make_mistakes(k)
    write_mistakes(tmp_path / "m.png", pixels, labels, probabilities, HOSTILE, "$t_{", count=3)
    ticks = [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()]
    assert ticks[:5] == ["$\\frac{a}$", "\\u202egnp.exe", "\\x1b[31mred", "class 3", "class 4"]
    assert len(ticks[5]) == 20
    for text in itertools.chain.from_iterable(map(texts, drawn)):
        assert text.isprintable()
        assert len(text) < 100
    assert not caplog.records


def test_texts_stay_within_the_figure(tmp_path, drawn):
    long_names = ["Wide name " * 9] * 10
    evaluation = Evaluation(np.full((10, 10), 100), 1.0)
    write_confusion(tmp_path / "c.png", evaluation, long_names, "T" * 500, banner=BANNER * 9)
    pixels, labels, probabilities = make_mistakes(10)
    write_mistakes(tmp_path / "m.png", pixels, labels, probabilities, long_names, "t", count=7)
    write_curves(tmp_path / "l.png", make_history("frozen", range(1, 9)), "t", chosen_epoch=3)
    for figure in drawn:
        width, height = figure.canvas.get_width_height()
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert box.x0 >= 0, text
                assert box.y0 >= 0, text
                assert box.x1 <= width, text
                assert box.y1 <= height, text


def test_the_same_input_gives_the_same_bytes_whatever_the_persons_style(tmp_path):
    rows = make_history("frozen", range(1, 4))
    write_curves(tmp_path / "a.png", rows, "t", chosen_epoch=1)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 10}):
        write_curves(tmp_path / "b.png", rows, "t", chosen_epoch=1)
        assert matplotlib.rcParams["font.size"] == 30
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert not re.search(rb"Software|matplotlib|[Dd]ate", content)


def test_importing_costs_nothing_and_drawing_touches_no_global_figure(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from fmnist_tf.reporting import figures, tracking
        from fmnist_tf.results import evaluation, rundir
        for heavy in ("matplotlib", "wandb", "tensorflow", "keras", "PIL"):
            assert heavy not in sys.modules, heavy
        row = rundir.HistoryRow(1, "frozen", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0)
        figures.write_curves(Path(sys.argv[1]), [row], "t")
        assert "matplotlib.pyplot" not in sys.modules
        """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "c.png")], check=True
    )
    assert Path(tmp_path / "c.png").exists()

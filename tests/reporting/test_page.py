"""The pages: true figures, nothing active, nothing from outside, whatever the names are."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fakerun import HOSTILE, NAMES, change_json, make_arrays, make_run, make_summary, predict

from fmnist_tf.errors import UsageError
from fmnist_tf.reporting import charts, sections
from fmnist_tf.reporting.page import (
    describe_run,
    show_names,
    write_comparison,
    write_data_page,
    write_report,
)
from fmnist_tf.results.analysis import LABEL_ISSUES, find_label_issues
from fmnist_tf.results.evaluation import Evaluation
from fmnist_tf.results.rundir import RunDir

pytestmark = pytest.mark.filterwarnings("error")

FACTS = {
    "name": "letters", "kind": "csv", "decisions": ["line 1 is the header"],
    "files": [{"path": "train.csv", "sha256": "a" * 64, "rows": 300}],
    "warnings": ["W040 two images are one"], "background": 0,
}  # fmt: skip


class Page(HTMLParser):
    """A page taken apart: tags with attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report_of(run: RunDir) -> Page:
    path = run.path.parent / f"{run.path.name}.html"
    write_report(run, path)
    return Page(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[RunDir, Page]:
    """A plain run and its page, to be looked at only."""
    run = make_run(tmp_path_factory.mktemp("plain") / "a")
    return run, report_of(run)


def decode(uri: str | None) -> np.ndarray:
    assert uri is not None
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(content))))


def check_harmless_and_accessible(page: Page) -> None:
    names = {name for name, _ in page.tags}
    assert not names & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignobject",
    }
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/png;base64,", "#")), (tag, value)
    assert not re.search(r"url\((?!#)|@import", page.source)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in page.of("meta")
    assert page.of("html") == [{"lang": "en"}]
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert Counter(ids).most_common(1)[0][1] == 1
    assert {str(link["href"])[1:] for link in page.of("a")} <= set(ids)
    assert all(image.get("alt") for image in page.of("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert len(page.of("caption")) == len(page.of("table"))
    assert all(header.get("scope") in ("col", "row") for header in page.of("th"))
    regions = [d for d in page.of("div") if d.get("class") == "scroll"]
    assert all((d["tabindex"], d["role"]) == ("0", "region") and d["aria-label"] for d in regions)
    assert len(regions) == len(page.of("table"))


@pytest.mark.parametrize("names", [NAMES, HOSTILE], ids=["plain", "hostile"])
def test_every_page_is_harmless_and_accessible(tmp_path, names):
    runs = [make_run(tmp_path / name, names=names, seed=s) for s, name in enumerate("ab")]
    write_comparison(runs, tmp_path / "c.html")
    write_data_page(FACTS, make_summary(10), names, tmp_path / "d.html")
    for page in (report_of(runs[0]), Page(tmp_path / "c.html"), Page(tmp_path / "d.html")):
        check_harmless_and_accessible(page)
        assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069]", page.source)
        assert "W" * 33 not in page.source
        shown = ("<script>", "\\u202egnp.exe", "a\\nb\\x00c", "ドレス", "class 8", "{{ 7 * 7 }}")
        if names is HOSTILE:
            assert all(name in page.text for name in shown)


def test_the_verdict_says_accuracy_interval_and_sources(plain):
    run, page = plain
    test = run.read_json("evaluation.json")["test"]
    low, high = test["interval_95"]
    text = page.text
    verdict = f"{test['accuracy']:.2%} of the test images are recognised: {test['correct']} of 60"
    assert f"{verdict}, 95% interval {low:.2%} to {high:.2%}." in text
    assert "w.h5 (eeeeeeee)" in text
    assert "my|data, 60 val, 60 test (CSV)" in text
    assert "tested 2026-11-22 18:30 UTC" in text


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, [], ["SAMPLE", "RANDOM"]),
        ({"data__kind": "sample"}, ["Built-in SAMPLE"], ["RANDOM"]),
        ({"weights__kind": "random"}, ["RANDOM backbone weights"], ["SAMPLE"]),
    ],
)
def test_what_is_not_real_is_said_loudly(tmp_path, changes, said, unsaid):
    run = make_run(tmp_path / "a", **changes)
    for page in (
        report_of(run),
        (write_comparison([run], tmp_path / "c"), Page(tmp_path / "c"))[1],
    ):
        assert len([p for p in page.of("p") if p.get("class") == "banner"]) == len(said)
        assert all(word in page.text for word in said)
        assert not any(word in page.text for word in unsaid)


def test_random_weights_are_what_scratch_is_about(tmp_path):
    run = make_run(tmp_path / "a", weights__kind="random")
    change_json(run.file("config.json"), phase="scratch")
    assert "RANDOM" not in report_of(run).text


def test_the_same_run_gives_the_same_bytes(plain):
    run, page = plain
    assert report_of(run).source == page.source


def test_scores_and_matrix_say_the_counts(plain):
    run, page = plain
    confusion = np.array(run.read_json("evaluation.json")["test"]["confusion"])
    cells = re.findall(r'<td class="(hit|miss|none)"[^>]*>(\d+)</td>', page.source)
    assert [int(count) for _, count in cells] == confusion.ravel().tolist()
    kinds = np.where(np.eye(10, dtype=bool), "hit", np.where(confusion, "miss", "none"))
    assert [kind for kind, _ in cells] == kinds.ravel().tolist()
    hits, guessed = confusion[3, 3], confusion[:, 3].sum()
    row = f"garment d {hits / 6:.1%} {hits} of 6 {hits / guessed:.1%} {hits} of {guessed}"
    assert row in page.text
    most = confusion.copy()
    np.fill_diagonal(most, 0)
    truth, guess = np.unravel_index(most.argmax(), most.shape)
    frequent = f"{NAMES[truth]} taken for {NAMES[guess]} {most.max()} of 6, {most.max() / 6:.1%}"
    assert frequent in page.text


def test_a_mistake_is_shown_with_its_own_pixels_probabilities_and_line(plain):
    run, page = plain
    labels, probabilities = run.read_predictions()
    guesses = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[probabilities[wrong, labels[wrong]].argmin()]
    grid = page.source[page.source.index("The worst") :]
    tile = re.search(r'<li class="tile">.*?</li>', grid, re.DOTALL)
    assert tile
    (source,) = re.findall(r'src="([^"]+)"', tile[0])
    assert (decode(source) == worst).all()  # the pixels of a fabricated image are its index
    p_truth, p_guess = (
        sections.say_probability(probabilities[worst, k]) for k in (labels[worst], guesses[worst])
    )
    text = " ".join(re.sub("<[^>]+>", " ", tile[0]).split())
    assert text == (
        f"truth {NAMES[labels[worst]]} {p_truth.replace('<', '&lt;')} "
        f"guess → {NAMES[guesses[worst]]} {p_guess} line {worst + 2}"
    )


def test_suspected_labels_carry_the_line_of_their_file(plain):
    _, page = plain
    issues = page.source[page.source.index("Validation rows") :]
    part, _, rest = issues.partition("Test images")
    lines = [int(line) for line in re.findall(r"line (\d+)", part)]
    labels, probabilities = predict(10, 60, 9)
    guesses = probabilities.argmax(axis=1)
    assert lines
    assert all(guesses[line - 70_002] != labels[line - 70_002] for line in lines)
    assert "train &lt;b&gt;.csv" in part
    assert "test.csv" in rest


def test_heat_is_bright_where_the_map_is_and_grey_elsewhere():
    heat = np.zeros((28, 28), np.uint8)
    heat[:14] = 255
    picture = decode(charts.draw_heat(np.full(784, 100, np.uint8), heat)).astype(int)
    assert (picture[14:] == 85).all()
    assert (picture[:14, :, 0] - picture[:14, :, 2] > 60).all()


def test_heat_maps_say_how_coarse_they_are(plain):
    assert "A map has 7 by 5 cells" in plain[1].text


def test_both_phases_are_in_the_curves_and_the_seconds(tmp_path):
    page = report_of(make_run(tmp_path / "a", finetune=True))
    label = next(svg["aria-label"] for svg in page.of("svg") if "curves" in str(svg["class"]))
    assert label == (
        "Frozen and finetune: validation accuracy went from 51.00% in the first epoch shown to "
        "72.00% in the one kept, finetune epoch 2 (ring)."
    )
    assert "data 4.0 s 1.0 s features 3.3 min training 90.0 s" in page.text
    assert "After the run first , which this one continues" in page.text
    assert "head 3,456 78 0" in page.text


def test_charts_follow_the_theme(plain):
    _, page = plain
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert drawn.count("var(--ink)") > 20
    assert not re.search(r"#(222222|0072b2|d55e00|8a8a8a|e6e6e6|000000)", drawn)
    assert "DejaVu" not in drawn


def test_a_run_before_report_npz_gets_a_page_that_says_what_it_lacks(tmp_path):
    run = make_run(tmp_path / "a", with_arrays=False)
    provenance = run.read_json("provenance.json")
    del provenance["trained"], provenance["data"]["background"]
    provenance["precision"] = "auto"
    run.write_json("provenance.json", provenance)
    page = report_of(run)
    check_harmless_and_accessible(page)
    assert page.of("img") == []
    assert page.text.count("not kept by this run") == 7
    assert "garment a" in page.text


def test_a_page_can_be_written_before_the_run_is_done(tmp_path):
    assert "garment a" in report_of(make_run(tmp_path / "a", done=False)).text


def test_a_class_without_test_images_has_no_scores(tmp_path):
    run = make_run(tmp_path / "a")
    labels, probabilities = run.read_predictions()
    labels[labels == 4] = 3  # nobody of class 4 is left
    run.write_predictions(labels, probabilities)
    evaluation = run.read_json("evaluation.json")
    evaluation["test"] |= Evaluation.from_probabilities(labels, probabilities).to_json()
    run.write_json("evaluation.json", evaluation)
    run.file("report.npz").unlink()
    text = report_of(run).text
    assert "– – – 0" in " ".join(text.split())
    assert "0 of 0" not in text
    assert f"least {NAMES[4]}" not in text


def test_all_suspected_labels_are_counted(tmp_path):
    run = make_run(tmp_path / "a", n=600)
    labels, probabilities = run.read_predictions()
    total = len(find_label_issues(labels, probabilities, 600))
    assert total > LABEL_ISSUES
    assert f"{total} of 600; the {LABEL_ISSUES} surest" in report_of(run).text


def test_the_data_say_how_many_were_used(plain):
    assert "trained on 540 images, chose its epoch on 60 and was tested on 60" in plain[1].text


def test_many_classes_are_capped_with_a_sentence(tmp_path):
    names = [f"letter {k}" for k in range(40)]
    page = report_of(make_run(tmp_path / "a", names=names, n=400))
    check_harmless_and_accessible(page)
    assert "The 20 of 40 classes with the lowest F1" in page.text
    assert ": 20 of 40 classes; “other” counts" in page.text
    assert "Only the 20 classes with the most images on the map" in page.text
    assert "of the 40 classes the 10 largest and the 10 smallest" in page.text
    matrix = page.source[page.source.index('class="matrix"') :]
    assert len(re.findall(r'<td class="(?:hit|miss|none)"', matrix)) == 400
    assert "All 40 classes" in page.text


def test_a_run_without_a_mistake(tmp_path):
    run = make_run(tmp_path / "a")
    labels, _ = run.read_predictions()
    right = np.eye(10, dtype=np.float32)[labels]
    run.write_predictions(labels, right)
    run.write_arrays("report.npz", make_arrays(labels, right, labels))
    evaluation = run.read_json("evaluation.json")
    evaluation["test"] |= {"correct": 60, "accuracy": 1.0, "confusion": (np.eye(10) * 6).tolist()}
    run.write_json("evaluation.json", evaluation)
    page = report_of(run)
    assert "100.00% of the test images" in page.text
    assert page.text.count("No test image was guessed wrong.") == 2
    assert "None among 60." in page.text


def test_bright_backgrounds_are_not_inverted(tmp_path, plain):
    assert plain[1].of("body") == [{"class": "invert"}]
    assert report_of(make_run(tmp_path / "a", data__background=255)).of("body") == [{}]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("evaluation.json", {"test": {}}),
        ("evaluation.json", {"chosen_epoch": 99}),
        ("provenance.json", {"machine": {}}),
        ("provenance.json", {"weights": None}),
        ("labels.json", {"3": None}),
    ],
)
def test_a_damaged_run_is_bad_input_and_leaves_the_old_page(tmp_path, name, changes):
    run = make_run(tmp_path / "a")
    change_json(run.file(name), **changes)
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UsageError, match="damaged, or of another version"):
        write_report(run, path)
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "page.html"]


@pytest.mark.parametrize("what", ["probabilities", "split"])
def test_damage_is_bad_input_in_a_comparison_too(tmp_path, what):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    if what == "split":
        provenance = runs[1].read_json("provenance.json")
        del provenance["data"]["split_sha256"]
        runs[1].write_json("provenance.json", provenance)
    else:
        labels, probabilities = runs[1].read_predictions()
        runs[1].write_predictions(labels, probabilities * np.nan)
    with pytest.raises(UsageError, match=r"b: .*damaged, or of another version"):
        write_comparison(runs, tmp_path / "c.html")


def test_runs_are_compared_on_the_same_test_images_alone(tmp_path):
    runs = [make_run(tmp_path / name, seed=s) for s, name in enumerate("ab")]
    other_file = make_run(tmp_path / "c")
    files = other_file.read_json("provenance.json")["data"]["files"]
    files[1]["sha256"] = "f" * 64
    provenance = other_file.read_json("provenance.json")
    provenance["data"]["files"] = files
    other_file.write_json("provenance.json", provenance)
    other_labels = make_run(tmp_path / "d")
    labels, probabilities = other_labels.read_predictions()
    other_labels.write_predictions(labels[::-1], probabilities)
    other_names = make_run(tmp_path / "e", names=NAMES[::-1])

    said = write_comparison([*runs, other_file, other_labels, other_names], tmp_path / "c.html")
    assert len(said) == 10
    (labels, first), (_, second) = (run.read_predictions() for run in runs)
    a, b = (p.argmax(axis=1) == labels for p in (first, second))
    counts = f"{(a & ~b).sum()} are right in A alone and {(b & ~a).sum()} in B alone"
    assert counts in said[0]
    assert "McNemar p = " in said[0]
    assert said[1] == "A a and C c: not compared, the recorded test data differ (SHA-256)"
    assert said[2] == "A a and D d: not compared, the test labels differ"
    assert said[3] == "A a and E e: not compared, the classes differ"
    page = Page(tmp_path / "c.html")
    check_harmless_and_accessible(page)
    assert all(sentence in page.text for sentence in said[1:4])
    assert "The runs do not have the same classes" in page.text


def test_a_test_set_cut_from_the_train_file_is_no_test_file_of_the_same_bytes(tmp_path):
    cut = [{"path": "t.csv", "sha256": "b" * 64, "rows": 300}]
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", data__files=cut)]
    (said,) = write_comparison(runs, tmp_path / "c.html")
    assert "the recorded test data differ" in said


def test_recalls_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name, seed=s) for s, name in enumerate("ab")]
    write_comparison(runs, tmp_path / "c.html")
    text = Page(tmp_path / "c.html").text
    confusions = [np.array(r.read_json("evaluation.json")["test"]["confusion"]) for r in runs]
    hits = [confusion[4, 4] for confusion in confusions]
    assert f"garment e {hits[0] / 6:.1%} {hits[0]} of 6 {hits[1] / 6:.1%} {hits[1]} of 6" in text


def test_the_data_page_says_counts_balance_duplicates_and_decisions(tmp_path):
    summary = make_summary(10)
    write_data_page(FACTS, summary, NAMES, tmp_path / "d.html")
    page = Page(tmp_path / "d.html")
    assert "300 training and 60 test images in 10 classes" in page.text
    assert "balanced: 30 of each class" in page.text
    assert "3 of the training images repeat an earlier one" in page.text
    assert "2 of the test images (3.33%) are training images too: what is right" in page.text
    assert "60% are below 32 and 0% are 224 or more" in page.text
    assert {"line 1 is the header", "W040 two images are one"} <= {t.strip() for t in page.texts}
    mean, strip = (decode(image["src"]) for image in page.of("img")[:2])
    assert (mean.ravel() == summary.mean_images[0]).all()
    assert strip.shape == (28, 6 * 28)
    assert (strip[:, 28:56].ravel() == summary.examples[0, 1]).all()

    summary.train_counts[2], summary.train_counts[7] = 99, 0
    write_data_page(FACTS, summary, NAMES, tmp_path / "d.html")
    text = Page(tmp_path / "d.html").text
    assert (
        "The largest class, garment c , has 99 training images, the smallest, garment h , 0."
        in text
    )


def test_the_table_row_is_of_complete_runs(tmp_path):
    run = make_run(tmp_path / "a", done=False)
    for ask in (describe_run, lambda run: write_comparison([run], tmp_path / "c.html")):
        with pytest.raises(UsageError, match="incomplete"):
            ask(run)


def test_a_run_that_averages_over_mirror_images_is_told_so(tmp_path):
    run = make_run(tmp_path / "a")
    assert describe_run(run)[0] == "frozen toy at 16, gap"
    change_json(run.file("config.json"), test_time_flip=True)
    assert describe_run(run)[0] == "frozen toy at 16, gap, test-time flip"
    assert "frozen toy at 16, gap, test-time flip on my|data" in report_of(run).text


def test_names_fit_to_be_shown_are_short_full_and_unlike():
    shown = show_names(["a" * 50, "a" * 60, " ", "x\ny", "x"])
    assert shown == ("a" * 29 + "... [0]", "a" * 29 + "... [1]", "class 2", "x\\ny", "x")


def test_a_squeezed_name_keeps_both_its_ends():
    assert sections.squeeze("class with a name 123", 14) == "class w…me 123"
    assert sections.squeeze("short", 14) == "short"


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "0%"), (0.001, "<1%"), (0.5, "50%"), (0.994, "99%"), (0.999, ">99%"), (1.0, "100%")],
)
def test_a_rough_probability_is_never_falsely_certain(share, said):
    assert sections.say_probability(share) == said


def test_a_chart_carries_any_label_as_text(tmp_path):
    (tmp_path / "chart").write_text(charts.chart_histogram(np.ones(256), '"><b onclick="x">'))
    page = Page(tmp_path / "chart")
    assert page.of("svg")[0]["aria-label"] == '"><b onclick="x">'
    assert page.of("b") == []


def test_names_on_a_map_are_apart():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.add_axes((0, 0, 1, 1))
    points = np.array([[0.5, 0.5], [0.5, 0.501], [0.52, 0.49], [0.0, 0.0]])
    spots = charts._part(figure, axes, points, ["name"] * 4, dots=8, shift=(0, 12))
    upper = np.sort(spots[:3, 1])
    assert (np.diff(upper) > 12).all()
    assert spots[3, 0] > 10  # moved in from the edge


def test_importing_costs_nothing():
    script = "import sys, fmnist_tf.reporting.page\nprint([m for m in %r if m in sys.modules])"
    heavy = ("matplotlib", "jinja2", "PIL", "sklearn", "tensorflow")
    answer = subprocess.run(
        [sys.executable, "-c", script % (heavy,)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"

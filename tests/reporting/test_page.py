"""The pages: correct numbers, no script, nothing from outside, whatever the names are."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fakerun import HOSTILE, NAMES, change_json, make_run, make_summary, predict, write_test

from fmnist_tf.errors import UsageError
from fmnist_tf.reporting.comparison import write_comparison
from fmnist_tf.reporting.page import write_data_page, write_report
from fmnist_tf.reporting.record import read_complete
from fmnist_tf.reporting.render import (
    blend_heat_map,
    display_names,
    format_probability,
    squeeze,
)
from fmnist_tf.reporting.style import draw_chart
from fmnist_tf.results.analysis import LABEL_ISSUES, compare_runs, find_label_issues
from fmnist_tf.results.rundir import RunDir
from fmnist_tf.results.temperature import measure_scaling

pytestmark = pytest.mark.filterwarnings("error")

FACTS = {
    "name": "letters", "kind": "csv", "decisions": ["line 1 is the header"],
    "files": [{"path": "train.csv", "sha256": "a" * 64, "rows": 300}],
    "warnings": ["W040 two images are one"], "background": 0,
}  # fmt: skip


class Page(HTMLParser):
    """A page: its tags with attributes, and its visible text."""

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

    def section(self, name: str) -> str:
        """Return the source of a section."""
        return self.source.split(f'<section id="{name}">')[1].split("</section>")[0]


def report_of(run: RunDir) -> Page:
    path = run.path.parent / f"{run.path.name}.html"
    write_report(run, path)
    return Page(path)


def comparison_of(*runs: RunDir) -> tuple[Page, list[str]]:
    path = runs[0].path.parent / "comparison.html"
    sentences = write_comparison([*map(read_complete, runs)], path)
    return Page(path), sentences


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[RunDir, Page]:
    """A plain run and its page, not to be changed."""
    run = make_run(tmp_path_factory.mktemp("plain") / "a")
    return run, report_of(run)


def decode(uri: str | None) -> np.ndarray:
    head, _, content = str(uri).partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(content))))


def check_harmless(page: Page) -> None:
    forbidden = {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject"}
    assert not forbidden & {name for name, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/png;base64,", "#")), (tag, value)
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069]", page.source)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in page.of("meta")


def check_accessible(page: Page) -> None:
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
    write_data_page(FACTS, make_summary(10), names, tmp_path / "d.html")
    for page in (report_of(runs[0]), comparison_of(*runs)[0], Page(tmp_path / "d.html")):
        check_harmless(page)
        check_accessible(page)
        assert "W" * 33 not in page.source
        shown = ("<script>", "\\u202egnp.exe", "a\\nb\\x00c", "ドレス", "class 8", "{{ 7 * 7 }}")
        if names is HOSTILE:
            assert all(name in page.text for name in shown)


def test_hostile_files_settings_and_commands_are_shown_as_text(tmp_path):
    script = "<script>document.title='pwned'</script>"
    run = make_run(
        tmp_path / "a", weights__path=script * 40, data__warnings=["\x00" + "W" * 9000],
        command=f"{script} \u202e" + "x" * 9000, data__decisions=[script],
    )  # fmt: skip
    change_json(run.file("config.json"), backbone=script, optimizer="\x1b[31m")
    page = report_of(run)
    check_harmless(page)
    assert page.text.count(script) > 4
    assert not re.search("x{4000}|W{400}", page.source)
    attack = '"><b onclick="x">'
    chart = draw_chart("name", 2, lambda figure: figure.text(0, 0, attack).get_text())
    (tmp_path / "chart").write_text(chart["svg"])
    page = Page(tmp_path / "chart")
    assert page.of("svg")[0]["aria-label"] == attack
    assert attack in page.text
    assert page.of("b") == []


def test_the_result_is_accuracy_interval_and_sources(plain):
    run, page = plain
    assert report_of(run).source == page.source
    assert page.of("body") == [{"class": "invert"}]
    test = run.read_json("evaluation.json")["test"]
    low, high = test["interval_95"]
    for text in (
        *(f"{x:.2%}" for x in (test["accuracy"], low, high)),
        *(f"{test['correct']} of 60", "my|data", "w.h5 (eeeeeeee)", "2026-11-22 18:30 UTC"),
    ):
        assert text in page.text
    assert read_complete(run).cells["test"] == f"{test['accuracy']:.4f} ({test['correct']}/60)"


def test_caveats_are_banners(tmp_path):
    changes = {"data__kind": "sample", "data__warnings": ["WARNING: the sample"]}
    run = make_run(tmp_path / "a", weights__kind="random", **changes)
    for page in (report_of(run), comparison_of(run)[0]):
        assert len([p for p in page.of("p") if p.get("class") == "banner"]) == 2
        assert "SAMPLE" in page.text
        assert "RANDOM" in page.text
        assert "WARNING" not in page.text


def test_scores_and_matrix_are_the_counts(plain):
    run, page = plain
    confusion = np.array(run.read_json("evaluation.json")["test"]["confusion"])
    cells = re.findall(
        r'<td class="(hit|miss|none)"[^>]*>(?:<a [^>]*>)?(\d+)(?:</a>)?</td>', page.source
    )
    assert [int(count) for _, count in cells] == confusion.ravel().tolist()
    kinds = np.where(np.eye(10, dtype=bool), "hit", np.where(confusion, "miss", "none"))
    assert [kind for kind, _ in cells] == kinds.ravel().tolist()
    correct, predicted = confusion[3, 3], confusion[:, 3].sum()
    f1 = 2 * confusion.diagonal() / (confusion.sum(axis=0) + 6)
    row = f"garment d {f1[3]:.1%} {correct / 6:.1%} {correct / predicted:.1%} 6"
    assert row in page.text
    table = page.section("classes").split("<tbody>")[1]
    assert [NAMES.index(f"garment {k}") for k in re.findall("garment ([a-j])<", table)][:10] == (
        np.argsort(f1, kind="stable").tolist()
    )
    assert table.index('class="worst"') < table.index("<th")  # the first row alone
    assert table.count('class="worst"') == 1


def test_a_number_of_the_matrix_leads_to_its_images(plain):
    run, page = plain
    labels, probabilities = run.read_predictions()
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    cells = page.section("matrix").split('<div class="cell" id="cell-')[1:]
    assert len(cells) == len(set(zip(labels.tolist(), predictions.tolist(), strict=True)))
    counts = []
    for cell in cells:
        k, j = map(int, cell.split('"')[0].split("-"))
        inside = np.flatnonzero((labels == k) & (predictions == j))
        counts.append((k == j, -len(inside)))
        shown = [int(decode(source)[0, 0]) for source in re.findall(r'src="([^"]+)"', cell)]
        surest_first = sorted(inside.tolist(), key=lambda index: -confidence[index])
        assert shown == surest_first[:6]
        assert f'href="#cell-{k}-{j}"' in page.section("matrix")
    assert counts == sorted(counts)  # without a choice, the most frequent mistake is shown


def test_charts_have_tooltips_and_augmented_images_are_shown(plain):
    run, page = plain
    titles = re.findall("<title>([^<]*)</title>", page.section("training"))
    assert "frozen epoch 2\ntraining loss 0.3333, accuracy 70.00%" in "".join(titles)
    assert len(titles) == 3 * 3  # three epochs in the axes of accuracy, loss and learning rate
    tips = re.findall("<title>(garment .): average precision", page.section("classes"))
    assert sorted(tips) == sorted(NAMES)
    assert "<title>confidence " in page.section("calibration")
    sources = re.findall(r'src="([^"]+)"', page.section("augmented"))
    for source, views in zip(sources, run.read_arrays("report.npz")["augmented"], strict=True):
        assert (np.hstack(list(views.reshape(-1, 28, 28))) == decode(source)).all()


def test_a_mistake_has_its_own_pixels_probabilities_and_line(plain):
    run, page = plain
    labels, probabilities = run.read_predictions()
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[probabilities[wrong, labels[wrong]].argmin()]
    tile = page.section("mistakes").split('<li class="tile">')[1].split("</li>")[0]
    (source,) = re.findall(r'src="([^"]+)"', tile)
    assert (decode(source) == worst).all()  # the pixels of a made-up image are its index
    text = re.sub("<[^>]+>", " ", tile).replace("&lt;", "<").split()
    for k in (labels[worst], predictions[worst]):
        assert NAMES[k].split()[1] in text
        assert format_probability(probabilities[worst, k]) in text
    assert text[-1] == str(worst + 2)


def test_label_issues_have_the_lines_of_their_file(tmp_path):
    run = make_run(tmp_path / "a", n=600)
    part = report_of(run).section("labels")
    val, test = (
        find_label_issues(labels, probabilities, 600)
        for labels, probabilities in (predict(10, 600, 9), run.read_predictions())
    )
    assert len(val) > LABEL_ISSUES
    lines = [int(line) - 70_002 for line in re.findall(r"line (\d+)", part)]
    assert lines == val[:LABEL_ISSUES].tolist()
    assert all(f"{len(suspects)} of 600" in part for suspects in (val, test))
    assert "train &lt;b&gt;.csv" in part


def test_heat_is_bright_where_the_map_is_and_grey_elsewhere():
    heat = np.repeat([255, 0], 14).astype(np.uint8)[:, None].repeat(28, axis=1)
    picture = blend_heat_map(np.full(784, 100, np.uint8), heat).astype(int)
    assert (picture[14:] == 85).all()
    assert (picture[:14, :, 0] - picture[:14, :, 2] > 60).all()


def test_a_finetune_run_shows_both_phases_and_its_calibration(tmp_path):
    run = make_run(tmp_path / "a", finetune=True)
    scaling = measure_scaling(*run.read_predictions(), 0.5)
    change_json(run.file("evaluation.json"), calibration=scaling)
    page = report_of(run)
    assert "0.500, fitted on the validation images" in page.text
    assert all(f"{scaling[when]['ece']:.1%}" in page.text for when in ("before", "after"))
    label = next(svg["aria-label"] for svg in page.of("svg") if "curves" in str(svg["class"]))
    assert "51.00%" in str(label)
    assert "72.00%" in str(label)
    assert "data 4.0 s 1.0 s features 3.3 min training 90.0 s" in page.text
    assert "head 3,456 78 0" in page.text
    # 40 of 60 before, 52 now.
    for text in ("▲ +20.00 points", "first", "66.67%", "17 more", "5 no longer", "p = 0.017"):
        assert text in page.text


def test_many_classes_are_limited(tmp_path):
    names = [f"letter {k}" for k in range(40)]
    page = report_of(make_run(tmp_path / "a", names=names, n=400))
    check_accessible(page)
    assert len(re.findall(r'<td class="(?:hit|miss|none)"', page.source)) == 20 * 20
    assert page.source.count('class="px plain"') < 1000
    assert page.section("data").count('alt="mean image') == 20
    few, _, all_of_them = page.section("classes").partition("<details>")
    assert (few.count('<th scope="row"'), all_of_them.count('<th scope="row"')) == (20, 40)
    assert page.section("projection").count("letter") == 2 * 20


def test_a_run_without_mistakes_and_a_class_without_test_images(tmp_path):
    run = make_run(tmp_path / "a", done=False, data__background=255)  # not complete yet
    labels, _ = run.read_predictions()
    labels[labels == 4] = 3
    perfect = np.eye(10, dtype=np.float32)[labels]
    write_test(run, labels, perfect, labels, perfect)
    page = report_of(run)
    check_accessible(page)
    assert "100.00%" in page.text
    assert page.section("labels").count("<li") == page.section("classes").count("worst") == 0
    assert f"{NAMES[4]} – – – 0" in page.text  # no scores
    assert page.of("body") == [{}]  # images on white are not inverted


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
    with pytest.raises(UsageError):
        write_report(run, path)
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "page.html"]


def test_a_comparison_names_the_damaged_or_incomplete_run(tmp_path):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    provenance = runs[1].read_json("provenance.json")
    del provenance["data"]["split_sha256"]
    runs[1].write_json("provenance.json", provenance)
    labels, probabilities = runs[2].read_predictions()
    runs[2].write_predictions(labels, probabilities * np.nan)
    for run in runs[1:]:
        run.write_done()
        with pytest.raises(UsageError, match=f"^{run.path}"):
            comparison_of(runs[0], run)
    runs[0].file("DONE.json").unlink()
    for ask in (read_complete, comparison_of):
        with pytest.raises(UsageError, match="DONE"):
            ask(runs[0])


def test_runs_are_compared_only_on_the_same_test_images(tmp_path):
    runs = [make_run(tmp_path / name, seed=s) for s, name in enumerate("ab")]
    files = runs[0].read_json("provenance.json")["data"]["files"]
    other_file = make_run(tmp_path / "c", data__files=[files[0], files[1] | {"sha256": "f" * 64}])
    # Held out of a training file that has the bytes of the others' test file.
    held_out = make_run(tmp_path / "d", data__files=files[1:])
    other_labels = make_run(tmp_path / "e")
    labels, probabilities = other_labels.read_predictions()
    other_labels.write_predictions(labels[::-1], probabilities)
    other_labels.write_done()
    other_names = make_run(tmp_path / "f", names=NAMES[::-1])

    page, said = comparison_of(*runs, other_file, held_out, other_labels, other_names)
    assert ["not compared" in sentence for sentence in said] == [False] + [True] * 14
    check_accessible(page)

    page, _ = comparison_of(*runs)
    test = compare_runs(labels, *(run.read_predictions()[1] for run in runs))
    counts = f"{test.both} {test.only_first} {test.only_second} {test.neither} {test.p_value:.2g}"
    assert f"A and B {counts}" in page.text
    confusions = [np.array(r.read_json("evaluation.json")["test"]["confusion"]) for r in runs]
    a, b = (confusion[4, 4] for confusion in confusions)
    change = f" {'▲ +' if b > a else '▼ −'}{100 * abs(b - a) / 6:.2f}" if a != b else ""
    assert f"garment e {a / 6:.1%} {b / 6:.1%}{change} 6" in page.text
    assert "▼ −" in page.text
    predictions = [run.read_predictions()[1].argmax(axis=1) for run in runs]
    titles = "A is correct and B wrong", "B is correct and A wrong"
    parts = page.section("images").split("<h3>")[1:]
    for title, (correct, wrong), part in zip(
        titles, (predictions, predictions[::-1]), parts, strict=True
    ):
        assert part.startswith(title)
        shown = [int(decode(source)[0, 0]) for source in re.findall(r'src="([^"]+)"', part)]
        # The pages show all mistakes of these small runs.
        assert set(shown) <= set(np.flatnonzero((correct == labels) & (wrong != labels)).tolist())
        assert len(shown) == min(12, ((correct == labels) & (wrong != labels)).sum())


def test_a_comparison_begins_with_the_settings_that_differ(tmp_path):
    other = {"weights__path": "/a/v.h5", "data__name": "other"}
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, **other)]
    for run, units in zip(runs, (8, 16), strict=True):
        change_json(run.file("config.json"), units=units, data="auto")  # also a setting
    page, _ = comparison_of(*runs)
    table = page.section("runs").split("</table>")[0]
    rows = re.findall('<th scope="row">([^<]*)</th>', table)
    assert rows == ["data", "backbone weights", "units", "val", "test", "95 % interval", "time"]
    assert "units 8 16" in page.text


def test_a_significantly_better_run_is_named(tmp_path):
    names = [f"letter {k}" for k in range(40)]
    worse, better = (make_run(tmp_path / name, names=names, n=400) for name in "ab")
    labels, probabilities = worse.read_predictions()
    write_test(worse, labels, np.roll(probabilities, 1, axis=1), labels, probabilities)
    page, (said,) = comparison_of(worse, better)
    assert "B is" in said
    assert page.section("classes").count('<th scope="row"') == 20


def test_the_data_page_has_counts_duplicates_images_and_decisions(tmp_path):
    summary = make_summary(10)
    write_data_page(FACTS, summary, NAMES, tmp_path / "d.html")
    page = Page(tmp_path / "d.html")
    for text in ("300 training and 60 test", "3.33%", "60% are below 32 and 0% are 224"):
        assert text in page.text
    assert all(any(fact in text for text in page.texts) for fact in ("line 1 is", "W040 two"))
    mean, strip = (decode(image["src"]) for image in page.of("img")[:2])
    assert (mean.ravel() == summary.mean_images[0]).all()
    assert strip.shape == (28, 6 * 28)
    assert (strip[:, 28:56].ravel() == summary.examples[0, 1]).all()

    summary.train_counts[2], summary.train_counts[7] = 99, 0
    write_data_page(FACTS, summary, NAMES, tmp_path / "d.html")
    assert re.search(r"garment c , has 99 .* garment h , 0\.", Page(tmp_path / "d.html").text)


def test_names_and_probabilities_are_short_and_not_misleading():
    shown = display_names(["a" * 50, "a" * 60, " ", "x\ny", "x"])
    assert shown == ("a" * 29 + "... [0]", "a" * 29 + "... [1]", "class 2", "x\\ny", "x")
    assert display_names(["a", "a", "a [0]"]) == ("a [0]", "a [1]", "a [0] [2]")
    assert squeeze("class with a name 123", 14) == "class w…me 123"
    assert squeeze("short", 14) == "short"
    probabilities = (0.0, 0.001, 0.5, 0.994, 0.999, 1.0)
    said = [format_probability(probability) for probability in probabilities]
    assert said == ["0%", "<1%", "50%", "99%", ">99%", "100%"]

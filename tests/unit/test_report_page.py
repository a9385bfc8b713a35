"""The report page: complete for every kind of run, safe, self-contained."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlhpc.cli.report import report
from dlhpc.errors import StorageError, UserError
from dlhpc.files import append_lines
from dlhpc.report import page
from dlhpc.report.attempts import attempt_rows, resumptions
from dlhpc.report.classes import class_rows, heat_labels, most_confused, unseen_rows
from dlhpc.report.collect import Evaluation, NamedPicture, Unseen, collect
from dlhpc.report.figures import Figure, figures
from dlhpc.report.page import curve_table, write_report
from dlhpc.runs.curves import Point, write_points
from dlhpc.runs.journal import read_journal
from dlhpc.runs.state import RunState
from tests.unit.report_runs import evaluate, journal, make_run, predict_unseen, train_some

PEOPLE = ["anna", "björn & co", "<script>alert(1)</script>", "田中", "dieter"]
RIGHT = [[4 if row == column else 0 for column in range(5)] for row in range(5)]


class Outline(HTMLParser):
    """Tags, visible text and balance of a page."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(path: Path) -> tuple[str, Outline]:
    text = path.read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.stack == []
    return text, outline


def test_a_finished_run_has_everything(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 20)
    journal(run, 240, "finished", attempt=1, code=0)
    evaluate(run, RIGHT, PEOPLE)
    predict_unseen(run, [(f"/new/{name}/1.png", name, [(name, 0.9), ("anna", 0.1)]) for name in PEOPLE])
    path = write_report(run)
    assert path == run.path / "report" / "report.html"
    text, outline = read(path)
    for words in (
        "The network learns", "finished", "guessing gives 20.0", "5 of 5 named right", "horovod-mpi", "torch 2.4.1",
        "node07", "3 min 51 s", "812.4", "64 pictures a step (32 × 2 ranks)", "name: faces # <our people>",
        "dlhpc submit", "horizontal flips, shifts up to 4 px",
    ):  # fmt: skip
        assert words in outline.text, words
    assert outline.tags[0] == ("html", {"lang": "en"})
    assert sum(tag == "svg" and "marks" in (given.get("class") or "") for tag, given in outline.tags) == 3
    assert len(re.findall(r"<h1", text)) == 1


def test_the_page_loads_nothing_and_names_cannot_break_out_of_it(tmp_path: Path) -> None:
    evil = ["</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "\"'><b>", "-->", "plain"]
    run = make_run(tmp_path, evil, spec={"notes": "<iframe src='https://example.org'></iframe>"})
    train_some(run, 5)
    journal(run, 60, "failed", attempt=1, code=1, reason="<img src=x onerror=alert(2)>")
    journal(run, 61, "warning", attempt=1, message="</li><script>alert(3)</script>")
    evaluate(run, [[2, 1, 0, 0, 0], *RIGHT[1:]], evil)
    predict_unseen(run, [("/p/<i>.png", evil[0], [(evil[2], 0.5), (evil[1], 0.4)])])
    _, outline = read(write_report(run))
    kinds = {tag for tag, _ in outline.tags}
    assert not kinds & {"img", "iframe", "b", "link", "i"}
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    for _, given in outline.tags:
        assert not any(name.startswith("on") for name in given)
        for name in ("src", "href"):
            assert name not in given or (given[name] or "").startswith(("data:text/csv", "#"))
    policies = [given.get("content") or "" for _, given in outline.tags if "http-equiv" in given]
    assert "default-src 'none'" in policies[0]
    assert evil[0] in outline.text


def test_a_run_that_was_just_submitted_has_a_page_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)  # and does not need the packages that draw
    path = write_report(make_run(tmp_path, PEOPLE), state=RunState.QUEUED, reason="waiting for 2 of 2 cores")
    text, outline = read(path)
    assert "Nothing was measured yet" in outline.text
    assert "no validation result yet" in outline.text
    assert "waiting for 2 of 2 cores" in outline.text
    assert "vega" not in text.split("</style>")[1].lower().replace("window.vegaembed", "")


def test_a_failed_run_says_why_and_where_it_diverged(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 3)
    write_points(run.curves, [Point(4.0, 16, "train", "loss", math.nan, 0.0)])
    journal(run, 50, "failed", attempt=1, code=78, reason="the loss is not finite at epoch 4")
    text, outline = read(write_report(run))
    assert "failed with code 78: the loss is not finite at epoch 4" in outline.text
    assert "diverges from epoch 4" in outline.text
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert "NaN" not in json.dumps(charts)


def test_a_run_that_goes_on_is_judged_so_far(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 8)
    _, outline = read(write_report(run))
    assert "not finished" in outline.text
    assert "So far (epoch 8 of 20)" in outline.text


def test_damaged_files_are_named_and_do_not_stop_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 5)
    append_lines(run.curves, ['{"epoch": 6.0, "st'])
    run.evaluation.write_text('{"classes": ["a"], "confusion": [[1, 2]], "split": "val"}')
    run.predictions.mkdir()
    (run.predictions / "unseen.json").write_text("{")
    run.spec.unlink()
    _, outline = read(write_report(run))
    assert "curves.jsonl: 1 damaged line was skipped" in outline.text
    assert "evaluation.json does not hold what it should" in outline.text
    assert "unseen.json: is damaged" in outline.text
    assert "spec.yaml cannot be read" in outline.text


def test_without_a_plan_it_is_a_kind_error(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    run.plan.unlink()
    with pytest.raises(StorageError, match=r"plan\.json"):
        write_report(run)
    assert not run.report.exists()


def test_missing_drawing_packages_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 5)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match=r"dlhpc\[report\]"):
        write_report(run)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    path = write_report(run)
    before = path.read_text()
    run.plan.unlink()
    with pytest.raises(StorageError):
        write_report(run)
    assert path.read_text() == before
    assert [file.name for file in run.report.iterdir()] == ["report.html"]


def test_it_can_be_written_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    assert write_report(run, tmp_path / "new" / "page.html").name == "page.html"
    assert write_report(run, tmp_path / "new") == tmp_path / "new" / f"{run.name}.html"


def test_many_classes_get_a_drawing_and_a_list_of_confusions(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(1, 41)]
    run = make_run(tmp_path, names)
    confusion = [[2 if row == column else 0 for column in range(40)] for row in range(40)]
    confusion[3] = [0] * 40
    confusion[3][8] = 2
    evaluate(run, confusion, names)
    text, outline = read(write_report(run))
    assert "Most frequent confusions" in outline.text
    assert text.count('<rect class="hit"') == 39
    assert text.count('<rect class="miss"') == 1
    assert "s4 named s9: 2" in outline.text


def test_hundreds_of_unseen_pictures_are_listed_by_their_misses(tmp_path: Path) -> None:
    run = make_run(tmp_path, ["cat", "dog"])
    rows = [(f"/new/{n}.png", "cat", [("dog" if n == 77 else "cat", 0.8), ("dog", 0.2)]) for n in range(300)]
    predict_unseen(run, rows)
    text, outline = read(write_report(run))
    assert "299 of 300" in outline.text
    assert "77.png" in text
    assert "78.png" not in text


def test_the_numbers_can_be_taken_along(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 4)
    evaluate(run, RIGHT, PEOPLE)
    _, outline = read(write_report(run))
    files = {given["download"]: given["href"] for tag, given in outline.tags if tag == "a" and "download" in given}
    tables = {}
    for name, uri in files.items():
        content = base64.b64decode((uri or "").split(",", 1)[1]).decode("utf-8-sig")
        tables[name] = list(csv.reader(io.StringIO(content)))
    curves = tables[f"{run.name}-curves.csv"]
    assert curves[0] == [
        "epoch", "step", "train loss", "train accuracy", "train learning_rate", "val loss", "val accuracy",
    ]  # fmt: skip
    assert [float(row[1]) for row in curves[1:]] == [4, 8, 12, 16]
    assert [float(cell) for row in curves[1:] for cell in row[2:]] == [point.value for point in collect(run).points]
    assert tables[f"{run.name}-confusion.csv"][3] == [PEOPLE[2], "0", "0", "4", "0", "0"]


def test_a_spreadsheet_runs_nothing_in_a_table_and_knows_it_for_unicode(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "@sum(1)", "-2+3", "田中", "-5"]
    run = make_run(tmp_path, names)
    evaluate(run, RIGHT, names)
    _, outline = read(write_report(run))
    (uri,) = (given["href"] or "" for tag, given in outline.tags if tag == "a")
    content = base64.b64decode(uri.split(",", 1)[1])
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    assert [row[0] for row in rows[1:]] == rows[0][1:] == [f"'{name}" for name in names[:3]] + names[3:]


def test_curves_that_were_measured_at_different_steps_leave_gaps_in_the_table() -> None:
    points = [Point(0.5, 2, "val", "loss", 3.0, 0.0), Point(1, 4, "train", "loss", 2.0, 0.0)]
    assert curve_table(points) == [["epoch", "step", "val loss", "train loss"], [0.5, 2, 3.0, ""], [1, 4, "", 2.0]]


def test_every_point_is_drawn(tmp_path: Path) -> None:
    points = [Point(n / 100, n, "val", "loss", math.sin(n) + 2, 0.0) for n in range(1, 3001)]
    (figure,) = figures(points, best=3.0)
    values = [row for data in figure.spec["datasets"].values() for row in data] if "datasets" in figure.spec else []
    if not values:
        values = [row for layer in figure.spec["layer"] for row in layer["data"]["values"] if "curve" in row]
    assert {row["epoch"] for row in values if "curve" in row} == {point.epoch for point in points}
    line = max(re.findall(r' d="([^"]*)"', figure.svg), key=len)
    assert line.count("L") == 2999


def chart(points: list[Point]) -> Figure:
    (figure,) = figures(points, best=3.0)
    return figure


def test_the_chart_can_be_read_closely() -> None:
    """What a browser showed: `curve undefined`, ticks at half epochs, a legend that did nothing."""
    import vl_convert

    figure = chart([Point(float(e), e, split, "loss", 1 / e, 0.0) for e in (1, 2, 3) for split in ("train", "val")])
    vega = vl_convert.vegalite_to_vega(figure.spec)
    (cells,) = (mark for mark in vega["marks"] if mark["name"].endswith("voronoi"))
    assert 'datum.datum["curve"]' in cells["encode"]["update"]["tooltip"]["signal"]
    assert {axis["tickMinStep"] for axis in vega["axes"] if axis.get("title") == "Epoch"} == {1}
    assert vega["legends"][0]["encode"]["labels"]["interactive"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 12, 400])
def test_epochs_on_the_axis_are_written_as_people_write_them(epochs: int) -> None:
    figure = chart([Point(float(e), e, "train", "loss", 1 / e, 0.0) for e in range(1, epochs + 1)])
    axis = figure.svg.split("X-axis")[1].split("Y-axis")[0]
    labels = [text for text in re.findall(r">([^<>]+)</text>", axis) if text != "Epoch"]
    assert labels[-1] == str(epochs)
    assert all(label.isdigit() for label in labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(("lowest", "logarithmic"), [(1e-3, True), (0.0, False)])
def test_the_loss_can_be_put_on_a_logarithmic_axis_if_none_is_zero(lowest: float, logarithmic: bool) -> None:
    figure = chart([Point(float(e), e, "train", "loss", value, 0.0) for e, value in enumerate((2.0, 0.1, lowest), 1)])
    assert ("usermeta" in figure.spec) == logarithmic
    if logarithmic:
        low, high = figure.spec["usermeta"]["log"]["domain"]
        assert low < lowest
        assert high > 2.0


def test_names_beside_a_large_matrix_are_short_and_few() -> None:
    labels = heat_labels([f"{'体心立方格子の試料' if n == 3 else 's'}{n:04}" for n in range(300)])
    assert len(labels.marks) <= 40
    assert labels.marks[1] == (8, "s0008")
    assert heat_labels(["体心立方格子の試料0003"] * 21).marks[0] == (0, "体心立方格子の試料…")
    assert heat_labels(["田中"]).margin > heat_labels(["ab"]).margin


def test_attempts_tell_waiting_running_and_how_they_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 6)
    journal(run, 75, "stopped", attempt=1, reason="walltime is near")
    journal(run, 78, "submitted", submission=2, attempt=2, job_ids=["18"])
    journal(run, 79, "concluded", attempt=1, job_id="17", next="submitted")
    journal(run, 100, "resumed", attempt=2, epoch=6, step=26, checkpoint="step-000000026")
    train_some(run, 12, first=10, attempt=2)
    entries, _ = read_journal(run)
    first, second = attempt_rows(entries, {})
    assert (first.job_id, first.hosts, first.ranks) == ("17", ("node07",), 2)
    assert (first.waited_seconds, first.ran_seconds) == (8, 70)
    assert first.outcome == "saved its state and left: walltime is near"
    assert (second.job_id, second.waited_seconds, second.outcome) == ("18", 20, "no end on record yet")
    assert resumptions(entries, 4)[0].epoch == 6.5
    _, outline = read(write_report(run))
    assert "#2 is attempt 2" in outline.text


def test_a_requeued_attempt_has_waited_since_the_end_of_the_one_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 6)
    journal(run, 79, "concluded", attempt=1, job_id="17", next="requeued")
    journal(run, 379, "begun", attempt=2, job_id="17", host="node03")
    second = attempt_rows(read_journal(run)[0], {})[1]
    assert (second.job_id, second.waited_seconds) == ("17", 300)


def test_an_attempt_queued_ahead_has_not_waited_while_the_one_before_ran(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    for number in (2, 3):
        journal(run, 2, "submitting", submission=number, attempt=number, ahead=True)
        journal(run, 2, "submitted", submission=number, attempt=number, ahead=True, job_ids=[str(16 + number)])
    train_some(run, 6)
    journal(run, 79, "concluded", attempt=1, job_id="17", next="waiting")
    first, second = attempt_rows(read_journal(run)[0], {})
    assert (second.job_id, second.queued) == ("18", first.ended)
    assert second.outcome == "waits in the queue, or was not started"
    journal(run, 109, "begun", attempt=2, job_id="18", host="node03")
    journal(run, 200, "finished", attempt=2, code=0)
    journal(run, 201, "concluded", attempt=2, job_id="18", next="over")
    rows = attempt_rows(read_journal(run)[0], {})
    assert [(row.waited_seconds, row.ran_seconds) for row in rows] == [(8, 70), (30, 92)]  # and no third that waits


def test_a_lost_attempt_ran_until_it_was_last_heard_of(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 6)  # the last epoch ends at 69
    journal(run, 900, "failed", attempt=1, code=None, reason="attempt 1 was cut off", retried=True, tail=[])
    journal(run, 900, "begun", attempt=2, job_id="17", host="node03")
    first, second = attempt_rows(read_journal(run)[0], {})
    assert (first.ran_seconds, first.outcome) == (60, "failed: attempt 1 was cut off")
    assert second.waited_seconds == 831


def test_a_submission_that_was_refused_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 6)
    journal(run, 79, "concluded", attempt=1, job_id="17", next="stuck")
    journal(run, 90, "submitting", submission=2, attempt=2)
    journal(run, 90, "submit_failed", submission=2, attempt=2, reason="the queue is closed")
    assert [row.outcome for row in attempt_rows(read_journal(run)[0], {})][1] == "not submitted: the queue is closed"


def test_a_class_is_judged_by_its_own_pictures() -> None:
    evaluation = Evaluation("val", 1, ("cat", "dog", "owl"), ((1, 3, 0), (0, 2, 0), (0, 0, 0)), None, 0.5)
    rows = {row.name: row for row in class_rows(evaluation)}
    assert [row.name for row in class_rows(evaluation)] == ["cat", "dog", "owl"]
    assert (rows["cat"].accuracy, rows["cat"].precision, rows["cat"].taken_for) == (0.25, 1.0, "dog")
    assert (rows["dog"].accuracy, rows["dog"].precision, rows["dog"].taken_for) == (1.0, 0.4, "")
    assert (rows["owl"].accuracy, rows["owl"].precision) == (None, None)
    (only,) = most_confused(evaluation)
    assert (only.truth, only.named, only.count, only.share) == ("cat", "dog", 3, 0.75)


def test_people_and_pictures_come_in_natural_order() -> None:
    pictures = tuple(
        NamedPicture(f"/{name}/{number}.png", name, ((name, 1.0),)) for name in ("s10", "s2") for number in (11, 9)
    )
    rows = unseen_rows(Unseen(1.0, 4, pictures))
    assert [(row.truth, [picture.path for picture in row.pictures]) for row in rows] == [
        ("s2", ["/s2/9.png", "/s2/11.png"]),
        ("s10", ["/s10/9.png", "/s10/11.png"]),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (7.6, "8 s"), (192, "3 min 12 s"), (18240, "5 h 04 min"), (3599.7, "1 h 00 min")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert page.duration(seconds) == text


def test_the_command_prints_where_the_page_lies(tmp_path: Path) -> None:
    run = make_run(tmp_path, PEOPLE)
    train_some(run, 3)
    journal(run, 50, "finished", attempt=1, code=0)
    answer = CliRunner().invoke(report, [str(run.path)], catch_exceptions=False)
    assert answer.output == f"Report: {run.report / 'report.html'}\n"
    answer = CliRunner().invoke(report, [run.name[:8], "--runs", str(tmp_path), "--out", str(tmp_path / "a.html")])
    assert answer.output == f"Report: {tmp_path / 'a.html'}\n"

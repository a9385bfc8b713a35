"""`dlhpc plan` compares what else could be asked of the batch system, recommends one, and writes it into the spec."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.cli.candidates import short, write_choice
from dlhpc.cli.plan import plan as plan_command
from dlhpc.errors import CommandError, UserError
from dlhpc.jobs import candidates
from dlhpc.jobs.candidates import MOST, Candidate, Choice, choices, starts, tabulate
from dlhpc.jobs.compare import compare, in_words, notes_on, recommend
from dlhpc.jobs.estimate import Prediction
from dlhpc.jobs.experience import Experience
from dlhpc.jobs.plan import Planned, kinds_of_nodes
from dlhpc.jobs.trial import end_trial, trial_settings
from dlhpc.runs.journal import read_journal
from dlhpc.schedulers.base import JobRequest, StartEstimate
from dlhpc.sites.models import Site
from dlhpc.spec.load import load_spec, parse_document
from dlhpc.spec.models import Spec
from tests.unit import job_runs
from tests.unit.conftest import MakeRun
from tests.unit.job_runs import ALL_ABLE, CLUSTER, SITE, FakeScheduler, changed
from tests.unit.measured_runs import ran

pytestmark = pytest.mark.usefixtures("any_machine")
NOW = 1_800_000_000.0
HOUR = 3600.0

TWO_QUEUES = changed(
    CLUSTER,
    nodes={"gpu": {"cores": 32, "gpus": 4, "count": 10, "off": 4, "power": {"idle": 500, "busy": 2000}}},
    queues=[{"name": "gpu", "max_walltime": "24h"}, {"name": "short", "max_walltime": "1h", "max_nodes": 2}],
    prices={"node_hour": 400, "kwh": 27},
)


def planned(folder: Path, site: Site = TWO_QUEUES, **changes: object) -> Planned:
    made = job_runs.plan(folder, site, **changes)
    document = parse_document("name: cars\ndata: {folder: /photos}\n", folder / "cars.yaml")
    return Planned(made, job_runs.spec(**changes), job_runs.catalog(folder), document)


def found(folder: Path, site: Site = TWO_QUEUES, **changes: object) -> tuple[list[Choice], list[str]]:
    known = Experience(folder / "runs", kinds_of_nodes(site))
    return choices(planned(folder, site, **changes), site, folder / "runs", known)


def layouts(chosen: list[Choice]) -> set[tuple[str | None, int]]:
    return {(choice.plan.queue, choice.plan.nodes) for choice in chosen}


# --- Which candidates there are -----------------------------------------------------------------------------------


def test_queues_nodes_and_lengths_that_the_site_allows(tmp_path: Path) -> None:
    chosen, notes = found(tmp_path, job={"walltime": "2h"})
    assert len(chosen) <= MOST
    assert [choice.number for choice in chosen] == list(range(1, len(chosen) + 1))
    assert {("gpu", 1), ("gpu", 2), ("gpu", 4), ("short", 1), ("short", 2)} <= layouts(chosen)
    assert all(choice.plan.nodes <= 6 for choice in chosen)
    assert all(choice.plan.walltime_seconds <= HOUR for choice in chosen if choice.plan.queue == "short")
    (own,) = [choice for choice in chosen if choice.as_spec]
    assert (own.plan.queue, own.plan.nodes, own.plan.walltime_seconds) == ("gpu", 1, 2 * HOUR)
    assert notes == ["Of the 10 nodes, 4 are switched off."]


def test_the_numbers_do_not_depend_on_what_the_scheduler_says(tmp_path: Path) -> None:
    first, second = found(tmp_path)[0], found(tmp_path)[0]
    assert [(c.number, c.plan.queue, c.plan.nodes, c.plan.walltime_seconds) for c in first] == [
        (c.number, c.plan.queue, c.plan.nodes, c.plan.walltime_seconds) for c in second
    ]


def test_known_training_times_leave_no_attempts_longer_than_needed(tmp_path: Path) -> None:
    ran(tmp_path, TWO_QUEUES, step=60.0, training={"batch_size": 25})
    chosen, _ = found(tmp_path, training={"batch_size": 25, "epochs": 30}, job={"walltime": "24h"})
    of_one_node = {c.plan.walltime_seconds for c in chosen if (c.plan.queue, c.plan.nodes) == ("gpu", 1)}
    assert of_one_node <= {86400, 9300, 7200, 3600, 1800}  # 9300 s is what is needed
    assert {86400, 9300} <= of_one_node


def test_a_queue_without_gpus_is_left_out_for_a_training_on_gpus_and_said(tmp_path: Path) -> None:
    site = changed(
        CLUSTER,
        nodes={"gpu": {"cores": 32, "gpus": 4}, "cpu": {"cores": 64, "gpus": 0}},
        queues=[{"name": "gpu", "node": "gpu"}, {"name": "cpu", "node": "cpu"}],
    )
    chosen, notes = found(tmp_path, site)
    assert {queue for queue, _ in layouts(chosen)} == {"gpu"}
    assert notes == ["Queue cpu is left out: its nodes have no GPU for each rank."]


def test_this_machine_has_only_the_job_of_the_spec(tmp_path: Path) -> None:
    chosen, notes = found(tmp_path, SITE)
    assert len(chosen) == 1
    assert chosen[0].as_spec
    assert notes == []


def test_a_chain_of_very_many_pieces_is_offered_only_where_nothing_else_is(tmp_path: Path) -> None:
    ran(tmp_path, TWO_QUEUES, step=600.0, training={"batch_size": 25})
    long = {"batch_size": 25, "epochs": 30}  # 20 hours
    assert {queue for queue, _ in layouts(found(tmp_path, training=long)[0])} == {"gpu"}
    only_short = changed(TWO_QUEUES, queues=[{"name": "short", "max_walltime": "1h", "max_nodes": 1}])
    assert layouts(found(tmp_path, only_short, training=long)[0]) == {("short", 1)}


# --- When they would start ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[JobRequest], StartEstimate]], None]:
    """Put an answer to `when would it start?` in the place of the scheduler's."""

    def put(answer: Callable[[JobRequest], StartEstimate]) -> None:
        fake = FakeScheduler()
        fake.abilities = ALL_ABLE
        monkeypatch.setattr(fake, "estimate_start", answer)
        for module in ("candidates", "render", "plan"):
            monkeypatch.setattr(f"dlhpc.jobs.{module}.get_scheduler", lambda _name, _dialect=None: fake)

    return put


def test_each_question_has_a_script_that_asks_for_just_that(
    tmp_path: Path, asked: Callable[[Callable[[JobRequest], StartEstimate]], None]
) -> None:
    seen: list[tuple[int, int, bool]] = []

    def answer(request: JobRequest) -> StartEstimate:
        seen.append((request.header.nodes, request.header.walltime_seconds, request.script.is_file()))
        return StartEstimate(NOW, "a plan")

    asked(answer)
    chosen, _ = found(tmp_path)
    known = starts(chosen, tmp_path / "runs")
    assert sorted(seen) == sorted((c.plan.nodes, c.plan.walltime_seconds, True) for c in chosen)
    assert {one.how for one in known.values()} == {"a plan"}
    assert not (tmp_path / "runs").exists()


def test_outside_slurm_one_question_answers_for_all_lengths(
    tmp_path: Path, asked: Callable[[Callable[[JobRequest], StartEstimate]], None]
) -> None:
    seen: list[int] = []
    asked(lambda request: seen.append(request.header.nodes) or StartEstimate(NOW, "waits"))  # type: ignore[func-returns-value]
    chosen, _ = found(tmp_path, changed(TWO_QUEUES, scheduler="pbs"))
    known = starts(chosen, tmp_path / "runs")
    assert len(seen) == len(layouts(chosen)) < len(chosen)
    assert set(known) == {choice.number for choice in chosen}


def test_a_scheduler_that_fails_or_hangs_leaves_figures_unknown_with_the_reason(
    tmp_path: Path, asked: Callable[[Callable[[JobRequest], StartEstimate]], None]
) -> None:
    over = threading.Event()

    def answer(request: JobRequest) -> StartEstimate:
        if request.header.nodes == 1:
            raise CommandError("the partition is closed")
        if request.header.nodes == 2:
            raise RuntimeError("a fault of the adapter")
        if request.header.nodes == 4:
            over.wait(30)
        return StartEstimate(NOW, "late")

    asked(answer)
    chosen, _ = found(tmp_path)
    began = time.monotonic()
    known = starts(chosen, tmp_path / "runs", budget=0.5)
    over.set()
    assert time.monotonic() - began < 20
    hows = {choice.plan.nodes: known[choice.number].how for choice in chosen}
    assert hows[1] == "the partition is closed"
    assert hows[2] == "a fault of the adapter"
    assert hows[4] == "the scheduler did not answer within 0.5 s"
    assert {choice.plan.nodes for choice in chosen if known[choice.number].start is not None} == {6}


# --- The table ----------------------------------------------------------------------------------------------------


def choice(
    folder: Path, number: int = 1, *, walltime: int = 3600, training: float | None = 7200.0, **changes: object
) -> Choice:
    made = dataclasses.replace(planned(folder, **changes).plan, walltime_seconds=walltime)
    expected = None if training is None else Prediction(training, 60.0, 5.0, 0.5, 0.1, 0.9, "2 runs")
    return Choice(number, made, number == 1, expected)


def test_a_chain_waits_and_starts_up_for_each_attempt(tmp_path: Path) -> None:
    known = {1: StartEstimate(NOW + 600, "Slurm's own plan")}
    (line,) = tabulate([choice(tmp_path)], known, TWO_QUEUES, NOW)
    assert line.attempts == 3  # of 3600 − 120 − 60 − 0.5 s
    assert line.waiting == 3 * 600
    busy = 3 * 60 + 7200 + 2 * 5
    assert line.finish == NOW + 1800 + busy
    assert line.node_hours == pytest.approx(busy / 3600)
    assert line.energy_kwh == pytest.approx(busy / 3600 * 2.0)
    assert line.price == pytest.approx(busy / 3600 * (400 + 2.0 * 27))


def test_a_job_that_goes_back_into_slurms_queue_waits_two_minutes_at_least(tmp_path: Path) -> None:
    (line,) = tabulate([choice(tmp_path)], {1: StartEstimate(NOW, "now")}, TWO_QUEUES, NOW)
    assert line.waiting == 2 * 121


def test_what_is_not_known_is_none_and_sorted_last(tmp_path: Path) -> None:
    known = {n: StartEstimate(start, "?") for n, start in {1: None, 2: NOW + 99, 3: NOW + 50, 4: NOW + 10}.items()}
    lines = tabulate(
        [
            choice(tmp_path),
            choice(tmp_path, 2, training=None),
            choice(tmp_path, 3, training=None),
            choice(tmp_path, 4),
        ],
        known,
        TWO_QUEUES,
        NOW,
    )
    assert [line.number for line in lines] == [4, 3, 2, 1]
    assert (lines[1].finish, lines[1].node_hours, lines[1].price) == (None, None, None)
    assert lines[3].finish is None
    assert lines[3].node_hours is not None  # it costs the same whenever it starts


def test_without_power_or_prices_these_are_unknown_and_said(tmp_path: Path) -> None:
    bare = changed(CLUSTER, prices={"kwh": 27})
    made = dataclasses.replace(choice(tmp_path).plan, node_watts=None)
    lines = tabulate([dataclasses.replace(choice(tmp_path), plan=made)], {1: StartEstimate(NOW, "now")}, bare, NOW)
    assert lines[0].price is None
    assert any("energy (`power` of the nodes)" in note for note in notes_on(lines, 1, bare, NOW))
    unpriced = changed(TWO_QUEUES, prices={})
    lines = tabulate([choice(tmp_path)], {1: StartEstimate(NOW, "now")}, unpriced, NOW)
    assert any("price (`prices`)" in note for note in notes_on(lines, 1, unpriced, NOW))


# --- What is recommended ------------------------------------------------------------------------------------------


def line(number: int, *, nodes: int = 1, wait: float = 0.0, training: float = HOUR, **changes: object) -> Candidate:
    values: dict[str, object] = {
        "number": number, "as_spec": number == 1, "queue": "gpu", "nodes": nodes, "ranks": nodes,
        "global_batch": 32 * nodes, "steps_per_epoch": 10, "walltime": 7200, "start": NOW + wait, "start_how": "plan",
        "training": training, "training_how": "runs", "attempts": 1, "waiting": wait, "finish": NOW + wait + training,
        "efficiency": 0.9, "exchange_share": 0.1, "node_hours": nodes * training / HOUR, "energy_kwh": 1.0,
        "price": 1.0,
    }  # fmt: skip
    return Candidate(**{**values, **changes})  # type: ignore[arg-type]


def test_what_is_done_first_is_recommended_with_the_gain() -> None:
    number, why = recommend([line(1, wait=5 * HOUR), line(2, wait=600)], NOW)
    assert number == 2
    assert why == "Number 2: it would be done in 70 min, 4 h 50 min before number 1, the job as the spec has it."


def test_a_few_minutes_do_not_buy_twice_the_node_hours() -> None:
    slow, fast = line(1, training=10 * HOUR), line(2, nodes=4, training=9.8 * HOUR)
    number, why = recommend([slow, fast], NOW)
    assert number == 1
    assert "12 min after number 2, with 10 instead of 39.2 node-hours" in why
    notes = notes_on([slow, fast], number, TWO_QUEUES, NOW)
    assert "More nodes will not help: 4 nodes would be done only 12 min sooner." in notes


def test_that_more_nodes_only_wait_longer_is_said() -> None:
    lines = [line(1, training=HOUR), line(2, nodes=4, training=HOUR / 3, wait=5 * HOUR)]
    assert recommend(lines, NOW)[0] == 1
    notes = notes_on(lines, 1, TWO_QUEUES, NOW)
    assert "More nodes will not help: 4 nodes would train 40 min less and wait 5 h more." in notes


def test_that_gradients_eat_the_gain_is_said() -> None:
    lines = [line(1), line(2, nodes=2, training=HOUR, exchange_share=0.6)]
    notes = notes_on(lines, 1, TWO_QUEUES, NOW)
    assert "More nodes will not help: on 2 nodes, 60% of each step would go to exchanging gradients." in notes


def test_where_more_nodes_help_nothing_of_the_kind_is_said() -> None:
    lines = [line(1, training=10 * HOUR), line(2, nodes=2, training=5 * HOUR)]
    number, _ = recommend(lines, NOW)
    assert number == 2
    notes = notes_on(lines, number, TWO_QUEUES, NOW)
    assert not any("will not help" in note for note in notes)
    assert any("global batch is 64 instead of 32" in note for note in notes)


def test_a_chain_says_what_it_counts_on() -> None:
    _, why = recommend([line(1, wait=5 * HOUR), line(2, attempts=3)], NOW)
    assert why.endswith("if every attempt waits about as long as the first.")


def test_nothing_is_recommended_on_nothing() -> None:
    untimed = dataclasses.replace(line(1), training=None, finish=None)
    assert recommend([untimed], NOW) == (
        None, "How long the training takes is not known: no earlier run tells. Add `--trial` to measure it."
    )  # fmt: skip
    assert recommend([line(1, start=None, finish=None)], NOW)[0] is None


DURATIONS = st.floats(1, 1e6)


@given(st.lists(st.tuples(st.integers(1, 64), DURATIONS, DURATIONS), min_size=1, max_size=12))
def test_the_recommended_one_is_never_much_later_than_the_first(rows: list[tuple[int, float, float]]) -> None:
    lines = [line(n, nodes=nodes, wait=wait, training=t) for n, (nodes, wait, t) in enumerate(rows, 1)]
    number, why = recommend(lines, NOW)
    best = next(one for one in lines if one.number == number)
    first = min(one.finish for one in lines if one.finish is not None)
    assert best.finish is not None
    assert best.finish - NOW <= (first - NOW) * 1.05 + 60.1
    assert why
    notes_on(lines, number, TWO_QUEUES, NOW)


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (40, 720, 7800, 7200, 200_000)] == [
        "40 s",
        "12 min",
        "2 h 10 min",
        "2 h",
        "2 days 7 h",
    ]
    assert [short(s) for s in (40, 1800, 3600, 7800)] == ["40 s", "30 min", "1 h", "2:10 h"]


def test_everything_together(tmp_path: Path, asked: Callable[[Callable[[JobRequest], StartEstimate]], None]) -> None:
    ran(tmp_path, TWO_QUEUES, step=60.0, training={"batch_size": 25})
    busy = {"gpu": 6 * HOUR, "short": 60.0}
    asked(lambda request: StartEstimate(time.time() + busy[str(request.header.queue)], "a plan"))
    known = Experience(tmp_path / "runs", kinds_of_nodes(TWO_QUEUES))
    spec = planned(tmp_path, training={"batch_size": 25, "epochs": 10})
    result = compare(spec, TWO_QUEUES, tmp_path / "runs", known)
    best = next(one for one in result.candidates if one.number == result.recommended)
    assert best.queue == "short"
    assert result.candidates[0].finish == min(one.finish for one in result.candidates if one.finish is not None)
    json.dumps(dataclasses.asdict(result), allow_nan=False)


# --- The chosen one goes into the spec ----------------------------------------------------------------------------

SPEC = """\
name: cars  # mine
data:
  folder: photos   # all of them
job:
  # what we may ask for
  walltime: 24:00:00  # too much
  ranks_per_node: 2
"""


def test_a_pick_is_written_with_everything_else_kept(tmp_path: Path) -> None:
    file = tmp_path / "cars.yaml"
    file.write_text(SPEC)
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    said = write_choice(link, choice(tmp_path, walltime=5400, job={"queue": "short", "nodes": 2}))
    assert said == ["job.queue: short", "job.nodes: 2", "job.walltime: 1:30:00"]
    text = file.read_text()
    assert [word in text for word in ("# mine", "# all of them", "# what we may ask for", "# too much")] == [True] * 4
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    job = load_spec(file)[0].job
    assert (job.queue, job.nodes, job.ranks_per_node) == ("short", 2, 2)
    assert job.walltime is not None
    assert job.walltime.total_seconds() == 5400


def test_a_pick_into_a_spec_without_a_job_and_with_dos_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "cars.yaml"
    file.write_bytes(b"name: cars\r\ndata: {folder: photos}\r\n")
    write_choice(file, choice(tmp_path))
    content = file.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n") == 6
    assert load_spec(file)[0].job.queue == "gpu"


def test_a_spec_that_cannot_be_written_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cars.yaml"
    file.write_text(SPEC)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlhpc.files.os.replace", full)
    with pytest.raises(Exception, match="No space left"):
        write_choice(file, choice(tmp_path))
    assert file.read_text() == SPEC
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_job_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cars.yaml"
    file.write_text("name: cars\ndata: {folder: photos}\njob: soon\n")
    with pytest.raises(UserError, match="`job` must hold"):
        write_choice(file, choice(tmp_path))


# --- The command --------------------------------------------------------------------------------------------------


@pytest.fixture
def at_the_centre(tmp_path: Path, asked: Callable[[Callable[[JobRequest], StartEstimate]], None]) -> list[str]:
    """Photographs, a spec and a profile; gives the command's arguments."""
    for person in ("anna", "bert"):
        for n in range(8):
            path = tmp_path / "photos" / person / f"{n}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 1 1 255\n\x00")
    (tmp_path / "cars.yaml").write_text(SPEC)
    site = tmp_path / "centre.yaml"
    site.write_text(
        "name: centre\nscheduler: slurm\nnodes:\n  gpu: {cores: 32, gpus: 4, count: 4}\n"
        "queues:\n  - {name: gpu, max_walltime: 24h}\n  - {name: '[red]', max_walltime: 1h}\n".replace("'[red]'", "red")
    )
    asked(lambda request: StartEstimate(time.time() + 60 * request.header.nodes, "Slurm's own plan"))
    return [str(tmp_path / "cars.yaml"), "--site", str(site), "--runs", str(tmp_path / "runs")]


def test_plan_prints_the_comparison_after_the_script(at_the_centre: list[str]) -> None:
    said = CliRunner().invoke(plan_command, at_the_centre, catch_exceptions=False).output
    script, _, table = said.partition("Candidates, those that are done first")
    assert "#SBATCH" in script or "#FAKE" in script
    assert "Slurm's own plan" in table
    assert "--trial" in table


def test_plan_without_candidates_asks_nobody(at_the_centre: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "starts", None)
    said = CliRunner().invoke(plan_command, [*at_the_centre, "--no-candidates"], catch_exceptions=False).output
    assert "Candidates" not in said


def test_plan_as_json_has_the_plan_and_the_comparison(at_the_centre: list[str]) -> None:
    said = json.loads(CliRunner().invoke(plan_command, [*at_the_centre, "--json"], catch_exceptions=False).output)
    assert said["queue"] == "gpu"
    assert said["estimate"] is None
    assert {one["start_how"] for one in said["comparison"]["candidates"]} == {"Slurm's own plan"}


def test_plan_writes_the_number_that_it_printed(at_the_centre: list[str]) -> None:
    shown = json.loads(CliRunner().invoke(plan_command, [*at_the_centre, "--json"]).output)["comparison"]
    wanted = next(one for one in shown["candidates"] if one["queue"] == "red" and one["nodes"] == 2)
    done = CliRunner().invoke(plan_command, [*at_the_centre, "--pick", str(wanted["number"])], catch_exceptions=False)
    assert "job.queue: red" in done.output
    job = load_spec(Path(at_the_centre[0]))[0].job
    assert job.walltime is not None
    assert (job.queue, job.nodes, job.walltime.total_seconds()) == ("red", 2, wanted["walltime"])


def test_a_number_that_is_not_there_is_refused(at_the_centre: list[str]) -> None:
    with pytest.raises(UserError, match="there is no candidate 99"):
        CliRunner().invoke(plan_command, [*at_the_centre, "--pick", "99"], catch_exceptions=False)


# --- The trial ----------------------------------------------------------------------------------------------------


def test_a_trial_is_short_alone_and_in_nobodys_mail(tmp_path: Path) -> None:
    asked = {"hold": True, "mail": "anna@example.org", "walltime": "24h"}
    made = planned(tmp_path, name="c" * 40, job=asked)
    document = parse_document("name: cars\ndata: {folder: /photos}\njob: {hold: true}\n", tmp_path / "cars.yaml")
    from dlhpc.spec.load import override, validate

    override(document, trial_settings(made, TWO_QUEUES))
    spec = validate(document, Spec)
    assert spec.name == "c" * 34 + "-trial"
    assert (spec.training.epochs, spec.job.hold, spec.job.mail, spec.job.max_attempts) == (2, False, None, 1)
    assert spec.job.walltime is not None
    assert spec.job.walltime.total_seconds() == 900


def test_a_trial_that_has_trained_enough_saves_leaves_and_is_not_continued(
    make_run: MakeRun, scheduler: FakeScheduler
) -> None:
    from dlhpc.jobs.submit import submit_attempt

    run = make_run(max_attempts=1)
    job = submit_attempt(run, 1)
    assert job is not None
    attempt = scheduler.start(run, job)
    assert attempt == 1

    def trainer() -> None:
        while not run.stop_file(1).exists():
            time.sleep(0.01)
        scheduler.end(run, job, 1, 75, saved=True)

    thread = threading.Thread(target=trainer)
    thread.start()
    end_trial(run)
    thread.join()
    assert scheduler.alive() == []
    assert len(scheduler.requests) == 1
    assert "failed" not in [entry.event for entry in read_journal(run)[0]]

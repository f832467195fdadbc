"""What a soak calls a failure."""

from dataclasses import replace

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed: make setup')
pytest.importorskip('p2d_msgs', reason='ros2_ws is not built or not sourced: make test does both')

from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.cli.node_process import open_log
from p2d_node.soak.observer import SeenAnswer, SeenReport
from p2d_node.soak.process_figures import ProcessFigures, read_figures
from p2d_node.soak.report import SoakResult, write_timeline
from p2d_node.soak.schedule import FaultResult, Sample

ANSWER = SeenAnswer(
    time_s=1.0, captured_ns=1, age_ms=200.0, num_cameras=6, late=False, mixed=False
)
FAULT = FaultResult(
    kind='camera silent',
    camera='CAM_BACK',
    begun_s=10.0,
    ended_s=15.0,
    shown_after_s=2.5,
    expected=True,
    recovered_after_s=0.4,
    gone_after_s=1.0,
)


def samples(last_mib: float, threads: int = 30) -> list[Sample]:
    """Memory that grows from 700 MiB in the last fifth of a run of 100 s."""
    return [
        Sample(s, ProcessFigures(memory_mib=last_mib if s >= 80 else 700.0, threads=n, files=20))
        for s, n in ((s, threads if s >= 80 else 30) for s in range(100))
    ]


GOOD = SoakResult(
    seconds=100.0,
    seed=0,
    exit_code=None,
    num_sweeps=1200,
    answers=[ANSWER],
    faults=[FAULT],
    samples=samples(705.0),
    callers={'asked': 9, 'answered': 8, 'told': 1, 'lost': 0},
    max_answer_age_ms=2000.0,
)


def test_a_good_soak_holds_and_is_drawn(tmp_path):
    assert all(criterion.holds for criterion in GOOD.criteria)
    assert GOOD.to_json()['recovery (s)'] == {'median': 0.4, 'p95': 0.4}
    write_timeline(GOOD, 0.0, tmp_path / 'soak.png')
    assert (tmp_path / 'soak.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        ({'exit_code': -11}, 'node ended'),
        ({'answers': []}, 'answers'),
        ({'answers': [replace(ANSWER, mixed=True)]}, 'answers that mix sweeps'),
        ({'answers': [replace(ANSWER, age_ms=2300.0)]}, 'answers older than 2250 ms'),
        ({'callers': {**GOOD.callers, 'lost': 1}}, 'callers of ~/ask without a reply'),
        ({'faults': [replace(FAULT, shown_after_s=None)]}, 'faults that diagnostics did not show'),
        ({'faults': [replace(FAULT, gone_after_s=11.0)]}, 'faults still shown 10 s after'),
        ({'faults': [replace(FAULT, gone_after_s=None)]}, 'faults still shown 10 s after'),
        ({'faults': [replace(FAULT, recovered_after_s=3.5)]}, 'recovery, 95th percentile'),
        ({'faults': [replace(FAULT, recovered_after_s=None)]}, 'recovery, 95th percentile'),
        ({'samples': samples(721.0)}, 'memory growth after warm-up'),
        ({'samples': samples(700.0, threads=35)}, 'more threads after warm-up'),
    ],
)
def test_each_criterion_fails_where_it_does_not_hold(change, what):
    failed = [c for c in replace(GOOD, **change).criteria if not c.holds]
    assert len(failed) == 1
    assert failed[0].what.startswith(what)


def test_an_old_answer_that_is_marked_is_no_failure():
    result = replace(GOOD, answers=[replace(ANSWER, age_ms=9000.0, late=True)])
    assert all(criterion.holds for criterion in result.criteria)


def test_a_fault_is_shown_by_a_component_that_is_not_ok_and_names_it():
    report = SeenReport(1.0, {'CAM_BACK': (2, 'no frame for 3 s'), 'CAM_FRONT': (0, '12.0 Hz')})
    assert report.problem('CAM_BACK', 'no frame')
    assert report.problem('synchroniser|CAM_BACK', 'no frame')
    assert not report.problem('CAM_FRONT', '')
    assert not report.problem('CAM_BACK', 'truncated')
    assert not report.problem('CAM', 'no frame')
    assert not report.all_ok


def test_figures_of_this_process_are_read_and_those_of_no_process_are_none():
    import os

    figures = read_figures(os.getpid())
    assert figures.memory_mib > 10
    assert figures.threads >= 1
    assert figures.files >= 3
    assert read_figures(2**22 + 1) is None


@pytest.mark.attack(
    'links in the output folder of a soak, named like its log and its picture',
    'the links are replaced; their targets stay as they were',
)
@pytest.mark.parametrize(
    'write',
    [lambda path: open_log(path).close(), lambda path: write_timeline(GOOD, 0.0, path)],
    ids=['log', 'picture'],
)
def test_a_link_in_place_of_a_file_of_a_soak_is_replaced(tmp_path, write):
    victim, link = tmp_path / 'victim', tmp_path / 'link'
    for content in (None, 'precious'):
        if content is not None:
            victim.write_text(content)
            link.unlink()
        link.symlink_to(victim)
        write(link)
        assert link.is_file()
        assert not link.is_symlink()
        assert (victim.read_text() if victim.exists() else None) == content


@pytest.mark.attack(
    'a link in the output folder of a soak, named like its log, to a file that is missing',
    'nothing is created outside of the folder, even if the soak does not start',
)
def test_a_soak_creates_no_file_through_a_link(tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr('p2d_node.cli.soak.isolate', stop)
    monkeypatch.setattr('p2d_node.cli.soak._draw', lambda options: [])
    (tmp_path / 'node.log').symlink_to(tmp_path / 'victim')
    main(['soak', '--out', str(tmp_path)])
    assert not (tmp_path / 'victim').exists()
    assert (tmp_path / 'node.log').is_file()


def test_a_log_that_cannot_be_created_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('p2d_node.cli.soak._draw', lambda options: [])
    (tmp_path / 'node.log').mkdir()
    assert main(['soak', '--out', str(tmp_path)]) == EXIT_BAD_INPUT
    assert f'out: {tmp_path} cannot be written: Is a directory' in capsys.readouterr().err

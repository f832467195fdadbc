"""The live table on a terminal of 80 columns and 24 lines."""

from types import SimpleNamespace as Message

from p2d_node.cli.table import render, STAGES
from p2d_node.latency import percentiles_of
import pytest
from rich.console import Console


def stamped(second: int, **fields):
    return Message(header=Message(stamp=Message(sec=1_533_280_000 + second, nanosec=0)), **fields)


def timing(second: int, scale: float):
    times = {field: scale * (n + 1) + 0.1 for n, (_, field) in enumerate(STAGES)}
    return stamped(second, **times, **percentiles_of([times], times))


def answer(second: int):
    return stamped(
        second,
        model='p2d-mini',
        question='What should the ego vehicle do next, and why? ' * 2,
        late=second % 2 == 1,
        answer=f'answer {second} ' + 'because the road is clear ' * 3,
        num_generated_tokens=64,
        num_decoder_passes=12,
        tokens_kept=[729] * 6,
        tokens_total=[729] * 6,
    )


@pytest.mark.parametrize('num_problems', [0, 2, 12])
@pytest.mark.parametrize('num_sweeps', [0, 1, 3000])
def test_the_newest_rows_fit_and_no_number_is_cut(num_problems, num_sweeps):
    timings = [timing(second, 1234.0) for second in range(num_sweeps)]
    answers = [answer(second) for second in range(num_sweeps) for _ in range(2)]
    problems = [f'p2d: camera {n}: ' + 'no frame ' * 20 for n in range(num_problems)]
    console = Console(width=80, height=24, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(answers, timings, problems, console.height))
    lines = capture.get().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    if num_problems:
        assert lines[0].startswith('p2d: camera 0')
    if num_problems > 4:
        assert lines[3].startswith('and 9 more warnings')
    if num_sweeps:
        newest = next(line for line in lines if ' 1234 ' in line)
        numbers = [f'{getattr(timings[-1], field):.0f}' for _, field in STAGES]
        assert newest.split() == [f'{num_sweeps - 1}.0', *numbers]
        for name in ('p50', 'p95'):
            assert [name, *numbers] in [line.split() for line in lines]
        row = next(line for line in lines if f'answer {num_sweeps - 1}' in line)
        assert row.split()[0] == f'{num_sweeps - 1}.0'
        assert row.split()[-2:] == ['4374/4374', '64/12']


def test_times_that_no_sweep_takes_leave_the_rows_readable():
    console = Console(width=80, height=24, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render([], [timing(0, 1e307), timing(1, 1.0)], [], console.height))
    lines = capture.get().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    assert any('e+30' in line for line in lines)

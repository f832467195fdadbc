import json
from pathlib import Path
import subprocess
import sys

from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.errors import ConfigError
from p2d_node.evaluation.model_shape import DRIVEMM, FlopCount, ModelShape, SHAPES
from p2d_node.evaluation.prefill_benchmark import PrefillBenchmark, run_prefill_benchmark
from p2d_node.evaluation.question_benchmark import QuestionBenchmark, run_question_benchmark
import pytest

TINY = ModelShape(
    name='tiny',
    text={
        'vocab_size': 200,
        'hidden_size': 64,
        'intermediate_size': 128,
        'num_hidden_layers': 4,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
    },
    vision={
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'image_size': 126,
        'patch_size': 14,
    },
)
VIEWS = 6
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def _tiny_shape(monkeypatch):
    monkeypatch.setitem(SHAPES, 'tiny', TINY)


def prefill_flops(shape, num_keep, prune_layer, question):
    """Multiplications and additions of a prefill, from the definition of the model."""
    text = shape.text
    hidden, inner = text['hidden_size'], text['intermediate_size']
    key_value = hidden * text['num_key_value_heads'] // text['num_attention_heads']
    per_token = 2 * (2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inner)
    total = 2 * hidden * text['vocab_size']
    for layer in range(text['num_hidden_layers']):
        tokens = num_keep if layer >= prune_layer else shape.num_tokens
        views = VIEWS * (tokens + 1) + shape.num_text_tokens - question
        total += per_token * (views + question)
        total += 4 * hidden * (views * views + question * (views + question))
    return total


@pytest.mark.parametrize(('num_keep', 'prune_layer'), [(81, 0), (8, 0), (8, 1), (3, 2)])
def test_operations_are_those_of_the_model(num_keep, prune_layer):
    count = FlopCount(TINY)
    question = len(count._prompt.suffix)
    expected = prefill_flops(TINY, num_keep, prune_layer, question)
    assert count.prefill(num_keep, prune_layer) == expected


def test_drivemm_at_a_tenth_costs_what_the_paper_says():
    count = FlopCount(DRIVEMM)
    assert DRIVEMM.num_tokens == 729
    unpruned = count.prefill(729, 0)
    assert 100 * count.prefill(72, 1) / unpruned == pytest.approx(13.4, abs=0.5)
    assert 100 * count.prefill(72, 0) / unpruned == pytest.approx(10.4, abs=0.5)


@pytest.mark.slow
def test_the_prefill_benchmark_measures_every_case_beside_unpruned():
    plan = PrefillBenchmark(shape=TINY, answer_tokens=3, repeats=2, retention_ratios=(1.0, 0.1))
    *steps, report = run_prefill_benchmark(plan)
    assert len(steps) == plan.num_steps == 9
    unpruned, *pruned = report['rows']
    assert [(r['retention_ratio'], r['prune_layer']) for r in pruned] == [(0.1, 0), (0.1, 1)]
    assert unpruned['prefill_speedup'] == unpruned['sweep_speedup'] == 1.0
    for row in report['rows']:
        assert 0 < row['prefill_ms'] <= row['prefill_p95_ms']
        assert row['prefill_speedup'] == unpruned['prefill_ms'] / row['prefill_ms']
        assert row['growing_decode_ms'] > 0
        sweep_ms = row['prefill_ms'] + 2 * row['decode_ms']
        assert row['sweep_ms'] == pytest.approx(sweep_ms)
        assert row['sweep_with_encoder_ms'] == pytest.approx(sweep_ms + report['encode_ms'])
    length = VIEWS * (8 + 1) + report['text_tokens']
    bytes_per_token = 2 * 2 * 16 * 4  # keys and values, heads, their size, float32
    assert pruned[0]['kv_cache_mib'] * 2**20 == 4 * length * bytes_per_token
    assert unpruned['kv_cache_mib'] > pruned[1]['kv_cache_mib'] > pruned[0]['kv_cache_mib']


@pytest.mark.slow
def test_the_question_benchmark_gives_the_same_answers_in_all_ways():
    plan = QuestionBenchmark(shape=TINY, num_questions=5, answer_tokens=6, warm_up=0, repeats=1)
    *steps, report = run_question_benchmark(plan)
    assert len(steps) == plan.num_steps == 3
    assert report['same_answers']
    assert report['different_answers'] > 1
    assert set(report['median_ms']) == {'separately', 'one_by_one', 'together'}
    assert report['share_of_separately'] < 0.7


@pytest.mark.slow
@pytest.mark.usefixtures('_tiny_shape')
@pytest.mark.parametrize('verb', ['prefill', 'questions'])
def test_the_verbs_print_figures(verb, capsys):
    arguments = ['bench', verb, '--shape', 'tiny', '--layers', '2', '--repeats', '1']
    arguments += ['--warm-up', '0', '--answer-tokens', '2', '--device', 'cpu']
    arguments += ['--retention-ratio', '0.1', '--prune-layer', '1']
    assert main([*arguments, '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['repeats'] == 1
    assert main(arguments) == 0
    assert 'tiny, 2 of 4 layers' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.usefixtures('_tiny_shape')
def test_the_tables_are_whole_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    arguments = ['bench', 'prefill', '--shape', 'tiny', '--repeats', '1', '--warm-up', '0']
    assert main([*arguments, '--answer-tokens', '2', '--device', 'cpu']) == 0
    printed = capsys.readouterr().out
    assert '…' not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count('100.0 %') == 2
    assert '81 (100%)' in printed
    assert 'baseline: unpruned, in the same run' in ' '.join(printed.split())


@pytest.mark.slow
@pytest.mark.usefixtures('_tiny_shape')
def test_without_the_unpruned_case_there_is_no_baseline(capsys):
    arguments = ['bench', 'prefill', '--shape', 'tiny', '--layers', '1', '--repeats', '1']
    arguments += ['--warm-up', '0', '--answer-tokens', '2', '--device', 'cpu']
    arguments += ['--retention-ratio', '0.1']
    assert main([*arguments, '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['baseline'] is None
    # Nobody named a layer to prune before, and of the default ones this model has but one.
    assert [row['prune_layer'] for row in report['rows']] == [0]
    assert main(arguments) == 0
    assert 'baseline: none, as the retention ratio 1 was' in ' '.join(
        capsys.readouterr().out.split()
    )


def test_a_table_is_never_cut_to_the_width_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    print_figures(('of a case', 'ms'), [('something long', '123456.78')], title='figures')
    printed = capsys.readouterr().out
    assert '│ something long │ 123456.78 │' in printed


@pytest.mark.usefixtures('_tiny_shape')
@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['prefill', '--shape', 'huge'], "--shape: got 'huge', allowed: drivemm, scaled, tiny"),
        (['prefill', '--shape', 'tiny', '--layers', '0'], 'layers: got 0, allowed: 1 to 4'),
        (['prefill', '--shape', 'tiny', '--layers', '99'], 'layers: got 99, allowed: 1 to 4'),
        (['prefill', '--shape', 'tiny', '--prune-layer', '4'], 'got [4], allowed: 0 to 3'),
        (['prefill', '--shape', 'tiny', '--retention-ratio', '2'], 'allowed: in (0, 1]'),
        (['prefill', '--shape', 'tiny', '--text-tokens', '3'], 'text tokens: got 3, allowed: '),
        (['prefill', '--threads', '0'], '--threads: got 0'),
        (['questions', '--shape', 'tiny', '--questions', '1'], 'questions: got 1, allowed: 2'),
    ],
)
def test_bad_input_ends_in_one_line(arguments, reason, capsys):
    assert main(['bench', *arguments, '--device', 'cpu']) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert reason in captured.err.splitlines()[-1]


@pytest.mark.parametrize('verb', ['select', 'prefill', 'questions'])
def test_a_device_that_is_none_is_refused_in_one_line(verb, capsys):
    assert main(['bench', verb, '--device', 'bogus']) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "device: got 'bogus', allowed: auto, cpu, cuda" in line


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match='prune layer'):
        PrefillBenchmark(shape=TINY, prune_layers=(9,))


def test_the_documented_figures_are_the_measured_ones_and_hold_what_is_promised():
    script = ROOT / 'benchmarks' / 'document_language_model.py'
    assert subprocess.run([sys.executable, str(script), '--check'], check=False).returncode == 0
    results = ROOT / 'benchmarks' / 'results'
    prefill = json.loads((results / 'prefill-2-core-cpu-1-thread.json').read_text())
    (tenth,) = [r for r in prefill['rows'] if (r['retention_ratio'], r['prune_layer']) == (0.1, 0)]
    assert tenth['prefill_speedup'] >= 6.4
    questions = json.loads((results / 'questions-2-core-cpu-1-thread.json').read_text())
    assert questions['num_questions'] == 20
    assert questions['same_answers']
    assert questions['share_of_separately'] < 0.25

"""`p2d bench drafts`: what drafts save is counted, and no answer is another one."""

import json

from p2d_node.cli.main import main
import pytest


@pytest.mark.slow
def test_drafts_save_passes_and_change_no_answer(capsys):
    words = [
        *('bench', 'drafts', '--answer-tokens', '9', '--agreement', '0', '1', '--threads', '1'),
        *('--repeats', '1', '--warm-up', '1', '--hz', '12', '--sweeps', '2', '--json'),
    ]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {(r['agreement'], r['drafts']): r for r in report['random_model']['rows']}
    assert set(rows) == {(a, d) for a in (0.0, 1.0) for d in ('none', 'last_sweep')}
    assert rows[1.0, 'none']['passes_per_answer'] == 9.0
    assert rows[1.0, 'last_sweep']['passes_per_answer'] < 4.0
    assert rows[1.0, 'last_sweep']['accepted_share'] == 1.0
    assert rows[0.0, 'last_sweep']['passes_per_answer'] > 6.0
    drives = {row['drafts']: row for row in report['drives']['rows']}
    assert set(drives) == {'none', 'last_sweep', 'prompt_lookup'}
    assert drives['none']['num_answers'] == 5 * 2 * 6
    assert drives['none']['tokens_per_pass'] == 1.0
    assert drives['last_sweep']['fewer_passes'] > 1.2
    for row in [*rows.values(), *drives.values()]:
        assert row['other_answers'] == 0
        assert row['answer_ms'] > 0.0

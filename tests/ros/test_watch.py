from p2d_node.cli.main import main
import pytest


@pytest.mark.parametrize('name', ['/p2d/', 'bad name!', 'ü', '//', 'p2d'])
def test_a_name_that_no_node_has_is_refused(name, capsys):
    assert main(['watch', '--node', name, '--duration', '1']) == 2
    assert f'p2d watch: --node: got {name!r}, allowed: the full name' in capsys.readouterr().err

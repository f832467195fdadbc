"""The engine verbs as a user types them."""

from dataclasses import replace
import json
import shlex
import shutil

from engine_helpers import CPU, engine_folder, request_of
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.config import EncoderConfig
from p2d_node.errors import ConfigError, EngineMismatchError
from p2d_node.vision_encoder.factory import load_engine
from p2d_node.vision_encoder.manifest import read_manifest
from p2d_node.vision_encoder.verifications import record_path
import pytest
import torch


def run_json(capsys, *words, status=0):
    assert main([*words, '--json']) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_model_goes_from_checkpoint_to_engine(tiny_checkpoint, tmp_path, capsys):
    shared = ['--engine-dir', str(tmp_path), '--model', str(tiny_checkpoint)]
    shared += ['--input', 'pixel_values']
    exported = run_json(capsys, 'export', *shared)
    assert exported['verification']['passed'] is True
    built = run_json(capsys, 'build-engine', *shared, '--backend', 'onnxruntime')
    assert built['artefacts'] == exported['artefacts']
    assert built['verification']['kept_in_common'] > 0.9

    folder = built['folder']
    verified = run_json(capsys, 'verify-engine', folder, *shared[:4])
    assert verified[folder]['passed'] is True
    inspected = run_json(capsys, 'inspect-engine', *shared[:4])
    assert [entry['fits'] for entry in inspected] == [True, True]
    assert main(['clean-engines', '--engine-dir', str(tmp_path)]) == 0
    assert 'nothing to remove' in capsys.readouterr().out


@pytest.mark.slow
def test_inspection_shows_line_by_line_what_does_not_fit(engine_dir, capsys):
    folder = engine_folder(engine_dir, 'tensorrt_rtx')
    words = ['inspect-engine', str(folder), '--engine-dir', str(engine_dir), '--device', 'cpu']
    (entry,) = run_json(capsys, *words, status=1)
    wrong = {check['what']: check for check in entry['checks'] if not check['fits']}
    assert set(wrong) == {'compute capability', 'verification'}
    assert wrong['compute capability']['in_engine'] == '8.6, 8.9'
    command = f'p2d verify-engine {folder} --model tiny --engine-dir {engine_dir}'
    assert entry['fix_command'] == command
    assert entry['fix_machine'] == 'a GPU of compute capability 8.6 or 8.9'
    assert main(words) == 1
    table = capsys.readouterr().out
    next_step = (
        f'on the machine with {entry["fix_machine"]}, with the engine folder copied there: '
    )
    assert next_step + entry['fix_command'] in table
    assert table.count('NO') == 2


def test_verifying_says_on_which_machine_an_engine_can_be_verified(
    engine_dir, tiny_checkpoint, capsys
):
    shutil.rmtree(engine_folder(engine_dir))
    words = ['verify-engine', '--engine-dir', str(engine_dir), '--device', 'cpu']
    words += ['--model', str(tiny_checkpoint)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    folder = engine_folder(engine_dir, 'tensorrt_rtx')
    assert printed.startswith(f'not verified: {folder}\n  on the machine with a GPU of compute ')
    (folder / 'manifest.json').write_text('{')
    assert main(words) == 1
    assert 'fix: p2d build-engine --backend tensorrt_rtx' in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_of_a_refusal_builds_for_the_cameras_of_the_node(
    engine_dir, tiny_checkpoint, tmp_path
):
    request = replace(request_of(tiny_checkpoint), num_views=1)

    def load(folder):
        config = EncoderConfig(backend='onnxruntime', engine_dir=str(folder))
        return load_engine(config, 'onnxruntime', request, dtype=torch.float32, device=CPU)

    with pytest.raises(EngineMismatchError, match=r'build one: p2d build-engine .* --views 1 '):
        load(tmp_path / 'empty')
    with pytest.raises(EngineMismatchError, match='number of cameras: the engine has 6') as caught:
        load(engine_dir)
    program, *command = shlex.split(str(caught.value).partition('rebuild it: ')[2])
    assert program == 'p2d'
    assert main(command) == 0
    assert load(engine_dir).encode(torch.zeros(1, 3, 126, 126)).shape == (1, 81, 64)


@pytest.mark.slow
def test_the_command_of_an_inspection_keeps_the_number_of_cameras(
    tiny_checkpoint, tmp_path, capsys
):
    words = ['--engine-dir', str(tmp_path), '--input', 'pixel_values', '--views', '2']
    built = run_json(capsys, 'export', '--model', str(tiny_checkpoint), *words)
    (tmp_path / 'tiny' / built['key'] / 'model.onnx').write_bytes(b'')
    (entry,) = run_json(capsys, 'inspect-engine', *words[:2], status=1)
    assert '--views 2 ' in entry['fix_command']


@pytest.mark.slow
def test_inspection_of_a_damaged_engine_goes_on(engine_dir, capsys):
    folder = engine_folder(engine_dir)
    (folder / 'model.onnx').write_bytes(b'')
    (folder / 'manifest.json').write_text('{')
    words = ['inspect-engine', str(folder), '--engine-dir', str(engine_dir)]
    (entry,) = run_json(capsys, *words, status=1)
    assert [c['what'] for c in entry['checks'] if not c['fits']] == ['manifest']
    command = 'p2d build-engine --backend onnxruntime --model tiny --input pixel_values'
    command = f'{command} --engine-dir {engine_dir}'
    assert entry['fix_command'] == command


def test_an_engine_that_lacks_only_its_verification_is_told_to_verify(
    engine_dir, tiny_checkpoint, capsys
):
    folder = engine_folder(engine_dir)
    record = record_path(read_manifest(folder))
    record.unlink()
    words = ['--engine-dir', str(engine_dir), '--model', str(tiny_checkpoint)]
    (entry,) = run_json(capsys, 'inspect-engine', str(folder), *words, status=1)
    program, *command = shlex.split(entry['fix_command'])
    assert program == 'p2d'
    assert command[:2] == ['verify-engine', str(folder)]
    verified = run_json(capsys, *command)
    assert list(verified) == [str(folder)]
    record.unlink()
    verified = run_json(capsys, 'verify-engine', *words)
    assert list(verified) == [str(folder)]
    assert run_json(capsys, 'verify-engine', *words) == {}


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['export', '--model', 'nowhere'], "model: got 'nowhere', which is not a folder"),
        (['export', '--camera-size', '900'], "--camera-size: got '900', allowed: HEIGHTxWIDTH"),
        (['export', '--camera-size', '0x9'], '--camera-size: got 0x9, allowed'),
        (['export', '--precision', 'int4'], "--precision: got 'int4', allowed: fp32, fp16, bf16"),
        (['export', '--views', '0'], '--views: got 0, allowed: 1 to 64'),
        (['build-engine', '--views', '0'], '--views: got 0, allowed: 1 to 64'),
        (['build-engine', '--backend', 'x'], "--backend: got 'x', allowed"),
        (['build-engine', '--optimization-level', '9'], '--optimization-level: got 9, allowed'),
        (['build-engine', '--params-file', 'no.yaml'], '--params-file: no.yaml is missing'),
        (['inspect-engine', 'nowhere'], 'nowhere is not a folder'),
        (['clean-engines', '--keep', '0'], '--keep: got 0, allowed: 1 or more'),
    ],
)
def test_bad_input_is_one_clear_line(words, reason, tmp_path, capsys):
    assert main([*words, '--engine-dir', str(tmp_path)]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert reason in error[0]


def test_an_empty_engine_folder_is_said_to_be_empty(tmp_path, capsys):
    assert main(['inspect-engine', '--engine-dir', str(tmp_path)]) == EXIT_BAD_INPUT
    assert 'holds no engine; build one with p2d build-engine' in capsys.readouterr().err


def test_an_engine_outside_the_engine_folder_is_not_verified(
    engine_dir, tiny_checkpoint, tmp_path, capsys
):
    folder = engine_folder(engine_dir)
    other = tmp_path / 'other'
    other.mkdir()
    words = ['--engine-dir', str(other), '--model', str(tiny_checkpoint)]
    assert main(['verify-engine', str(folder), *words]) == EXIT_BAD_INPUT
    assert f'{folder.name} is not in {other}' in capsys.readouterr().err


def test_model_and_backend_may_come_from_a_parameter_file(tmp_path):
    path = tmp_path / 'drive.yaml'
    path.write_text(
        '/p2d:\n  ros__parameters:\n    use_sim_time: true\n    model: a\n'
        '    encoder: {backend: onnxruntime}\n    camera_names: [CAM_FRONT, CAM_BACK]\n'
        '    sync.reference_camera: CAM_BACK\n'
    )
    config = read_drive_config(path)
    assert (config.model, config.encoder.backend) == ('a', 'onnxruntime')
    assert tuple(config.cameras) == ('CAM_FRONT', 'CAM_BACK')
    path.write_text('model: a\n')
    with pytest.raises(ConfigError, match='has no ros__parameters'):
        read_drive_config(path)

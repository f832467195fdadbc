"""How every command of README.md and docs/ is run by a test, or why it is not.

`tests/benchmarks/test_commands_run.py` runs those that need no ROS, and fails if a command has no
entry or an entry no command. `tests/ros/test_commands_over_ros.py` runs the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import re
import shlex

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ('*.md', '*/*.md', 'models/*/*.md', 'ros2_ws/src/p2d_sim/*.md')
    for path in ROOT.glob(pattern)
)
CODE_BLOCK = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)

SHELL = ('cd', 'export', 'git', 'mkdir', 'source')
"""Words of the shell around the commands."""


@dataclass(frozen=True)
class Run:
    """It runs in a folder with small data of the documented names; `add` overrides options."""

    add: str = ''


@dataclass(frozen=True)
class RunOverRos:
    """Likewise, beside a node that works."""

    add: str = ''


@dataclass(frozen=True)
class ByTest:
    """A test runs it, or the function behind it, with data of its own."""

    name: str


@dataclass(frozen=True)
class NotRun:
    """No test runs it."""

    reason: str


NETWORK = NotRun('it downloads from the network')
ADMINISTRATOR = NotRun('it changes the system, as administrator')
THE_TESTS = NotRun('it runs all tests')
GPU = NotRun('it needs an NVIDIA GPU; benchmarks/gpu.sh')
DISTRIBUTION = NotRun('it needs an installed ROS 2 distribution')
WINDOW = NotRun('it opens a window')
HOURS = NotRun('it takes hours; test_the_smoke_run_shows_that_training_works_and_writes_a_model')
CONTAINER = NotRun('it needs Docker and an image of NVIDIA; test_containers.py checks its files')

_OVER_ROS = 'tests/ros/test_commands_over_ros.py'
DRIVE_LAUNCH = ByTest(f'{_OVER_ROS}::test_a_launched_node_obeys_the_documented_commands')
DEMO_OF_DATA = ByTest(f'{_OVER_ROS}::test_the_demo_plays_data_of_drivelm')
REPLAY_LAUNCH = ByTest(f'{_OVER_ROS}::test_the_launch_of_a_replay_ends_with_the_bag')
TWO_VEHICLES = ByTest(
    'tests/ros/test_launch.py::test_the_example_runs_a_node_for_each_of_two_vehicles'
)
DEMO = ByTest(
    'tests/ros/test_processes.py::test_the_demo_leaves_answers_picture_and_plot_and_no_process'
)
VIEWER = ByTest(
    'tests/viewers/test_viewers.py::test_a_recording_has_both_timelines_and_every_entity'
)
FOXGLOVE = ByTest(
    'tests/viewers/test_viewers.py::'
    'test_foxglove_gets_pictures_answers_and_times_with_capture_stamps'
)
REPLAY = ByTest(
    'tests/ros/test_processes.py::test_replay_brings_every_sweep_of_a_looping_bag_to_the_node'
)
OTHER_BAG = ByTest(
    'tests/bags/test_converters.py::test_make_bag_turns_another_bag_into_one_of_p2d'
)
CONVERTED_BAG = ByTest(
    'tests/ros/test_replay_converters.py::test_the_bag_of_a_converter_is_played_and_answered'
)
IMPORT_DRIVEMM = ByTest(
    'tests/checkpoints/importing/test_refusals.py::test_the_command_imports_and_says_so'
)
IMPORT_O1 = ByTest(
    'tests/checkpoints/importing/test_drivelmm_o1.py::test_the_command_says_what_it_assumes'
)
IMPORT_ADAPTER = ByTest(
    'tests/checkpoints/importing/test_drivelmm_o1.py::test_an_adapter_and_its_base_give_the_same'
)
IMPORT_ALPAMAYO = ByTest(
    'tests/checkpoints/importing/test_alpamayo.py::test_the_command_imports_and_the_node_names_it'
)
ENGINES = ByTest('tests/cli/test_engines.py::test_a_model_goes_from_checkpoint_to_engine')
RTX_ENGINE = ByTest(
    'tests/cli/test_engines.py::test_inspection_shows_line_by_line_what_does_not_fit'
)
O1_ANSWERS = ByTest(
    'tests/evaluation/test_drivelmm_o1_scores.py::'
    'test_questions_are_answered_and_can_be_given_to_the_official_script'
)
O1_PREDICTIONS = ByTest(
    'tests/evaluation/test_drivelmm_o1_scores.py::'
    'test_predictions_of_both_official_scripts_are_scored'
)
WORKERS = ByTest(
    'tests/evaluation/test_answer_workers.py::test_two_workers_give_the_answers_of_one'
)
CLUSTER = ByTest(
    'tests/evaluation/test_answer_workers.py::test_a_running_cluster_gives_the_answers_of_one_process'
)
TUNE = ByTest(
    'tests/tuning/test_tune_ratios.py::'
    'test_a_search_leaves_a_parameter_file_a_picture_and_a_report'
)
PACKAGES = ByTest('tests/test_packages.py::test_an_export_builds_and_its_node_finds_its_messages')
EXPORT = ByTest('tests/test_packages.py::test_an_export_is_three_packages_side_by_side')
SMOKE = ByTest(
    'tests/sim/test_training.py::test_the_smoke_run_shows_that_training_works_and_writes_a_model'
)
CAMERAS = ByTest(
    'tests/ros/test_sim_cameras.py::test_the_drive_node_answers_about_the_simulated_sweeps'
)
FOLDER_EXAMPLE = ByTest(
    'tests/examples/test_examples.py::test_answer_folder_answers_about_six_images'
)
SELECTOR_EXAMPLE = ByTest(
    'tests/examples/test_examples.py::test_add_selector_answers_with_its_own_selector_and_with_tfps'
)

SHORT_ANSWERS = Run('--limit 1 --max-new-tokens 4 --tokenizer treebank')
ONE_SWEEP = Run('--sweeps 1')
IN_OWN_FOLDER = Run('--engine-dir built')
DRAFTS = ByTest(
    'tests/benchmarks/test_bench_drafts.py::test_drafts_save_passes_and_change_no_answer'
)
ONE_ROUND = Run('--repeats 1 --warm-up 0 --layers 1 --answer-tokens 2')
SELECT_ONCE = Run('--repeats 1 --warm-up 0 --tokens 64 --hidden 32')

HOW = {
    # p2d, in the order of docs/verbs.md.
    'p2d demo': DEMO,
    'p2d demo --model checkpoints/llava-onevision-0.5b --retention 0.25 '
    '--out demo_output': DEMO_OF_DATA,
    'p2d demo --data v1_1_val_nus.json --images nuscenes --model models/drivemm': DEMO_OF_DATA,
    'p2d demo --rerun demo.rrd': VIEWER,
    'p2d watch': RunOverRos('--duration 1'),
    'p2d watch --json --duration 60': RunOverRos('--duration 8'),
    'p2d watch --node /p2d': RunOverRos('--duration 1'),
    'p2d watch --rerun drive.rrd': VIEWER,
    'p2d watch --foxglove': FOXGLOVE,
    'p2d replay --bag scene-0061 --clock': RunOverRos('--duration 1'),
    'p2d replay --bag scene-0061 --rate 0.5 --loop --clock': RunOverRos('--duration 1'),
    'p2d replay --bag scene-0061 --clock --rate 0.5 --loop': RunOverRos('--duration 1'),
    'p2d replay --bag NuScenes-v1.0-mini-scene-0061.mcap': CONVERTED_BAG,
    'p2d make-bag --drivelm v1_1_train_nus.json --images nuscenes --out keyframes': Run(),
    'p2d make-bag --nuscenes nuscenes --scene scene-0061 --out scene-0061': Run(),
    'p2d make-bag --nuscenes /data/nuscenes --scene scene-0061 --out scene-0061': Run(),
    'p2d make-bag --synthetic lead-brakes --sweeps 120 --out drive': ONE_SWEEP,
    'p2d make-bag --synthetic lead-brakes --out drive': ONE_SWEEP,
    'p2d make-bag --from-mcap NuScenes-v1.0-mini-scene-0061.mcap --out scene-0061': OTHER_BAG,
    'p2d make-bag --from-mcap NuScenes-v1.0-mini-scene-0061.mcap --out scene-0061 '
    '--compression zstd': OTHER_BAG,
    'p2d import-checkpoint --from drivemm downloads/DriveMM --out models/drivemm': IMPORT_DRIVEMM,
    'p2d import-checkpoint --from drivemm downloads/DriveMM --out /models/drivemm': IMPORT_DRIVEMM,
    'p2d import-checkpoint --from drivelmm-o1 downloads/DriveLMMo1 '
    '--out models/drivelmm-o1': IMPORT_O1,
    'p2d import-checkpoint --from drivelmm-o1 adapter --base downloads/InternVL2_5-8B '
    '--out models/o1': IMPORT_ADAPTER,
    'p2d import-checkpoint --from alpamayo1.5 downloads/Alpamayo --base Qwen3-VL '
    '--out models/alpamayo': IMPORT_ALPAMAYO,
    'p2d build-engine --model /models/drivemm --backend tensorrt --camera-size 900x1600': GPU,
    'p2d build-engine --model models/drivemm --backend tensorrt': GPU,
    'p2d build-engine --model models/drivemm --backend tensorrt_rtx '
    '--compute-capability 8.6,8.9': RTX_ENGINE,
    'p2d build-engine --model models/drivemm --backend onnxruntime '
    '--input pixel_values': IN_OWN_FOLDER,
    'p2d verify-engine --model models/drivemm': ENGINES,
    'p2d verify-engine --model models/drivemm '
    'engines/drivemm/tensorrt-fp16-frames-900x1600-20260801': ENGINES,
    'p2d inspect-engine': ENGINES,
    'p2d inspect-engine --model models/drivemm --json': ENGINES,
    'p2d clean-engines --keep 2 --dry-run': ENGINES,
    'p2d export --model models/drivemm --camera-size 900x1600 --precision fp16': IN_OWN_FOLDER,
    'p2d evaluate --data v1_1_val_nus_q_only_with_tag.json --images nuscenes '
    '--model models/drivemm': SHORT_ANSWERS,
    'p2d evaluate --data v1_1_val_with_answers.json --images nuscenes --model models/drivemm '
    '--out evaluation': SHORT_ANSWERS,
    'p2d evaluate --data v1_1_train_nus.json --bag scene-0061 '
    '--model models/drivemm': SHORT_ANSWERS,
    'p2d evaluate --data v1_1_val_with_answers.json --predictions submission.json --json': Run(
        '--limit 1'
    ),
    'p2d evaluate --data DriveLMMo1_TEST.json --images nuscenes --model models/drivelmm-o1 '
    '--workers 2': O1_ANSWERS,
    'p2d evaluate --data DriveLMMo1_TEST.json --images nuscenes --model models/drivelmm-o1 '
    '--workers 4': WORKERS,
    'p2d evaluate --data DriveLMMo1_TEST.json --predictions submission.json '
    '--json': O1_PREDICTIONS,
    'p2d evaluate --data DriveLMMo1_TEST.json --images /data/nuscenes --model /data/drivelmm-o1 '
    '--scheduler tcp://SCHEDULER:8786': CLUSTER,
    'p2d tune-ratios --data train.json --images nuscenes --model models/drivemm': TUNE,
    'p2d tune-ratios --data train.json --images nuscenes --model models/drivemm '
    '--held-out val.json': TUNE,
    'p2d tune-ratios --data tune/drivelm.json --images tune --limit 60 --mean-retention 0.1 '
    '--methods uniform,tpe,random --trials 48 --workers 2 --held-out held/drivelm.json '
    '--held-out-images held': TUNE,
    'p2d bench select --tokens 196 --hidden 192 --retention-ratio 0.1': SELECT_ONCE,
    'p2d bench select --tokens 729 --hidden 1152 --retention-ratio 0.1 0.25': SELECT_ONCE,
    'p2d bench select --json': SELECT_ONCE,
    'p2d bench prefill --threads 1': ONE_ROUND,
    'p2d bench prefill --shape drivemm --device cuda --dtype bfloat16 --json': GPU,
    'p2d bench questions --questions 20 --threads 1 --json': Run(f'{ONE_ROUND.add} --questions 2'),
    'p2d bench drafts --threads 1': DRAFTS,
    'p2d bench drafts --answer-tokens 64 --agreement 0 0.9 --json': DRAFTS,
    'p2d budget --gpu orin-64gb': Run(),
    'p2d budget --model models/drivemm --gpu thor --weights-bits 4 --tokens-per-pass 3': Run(),
    'p2d budget --bandwidth-gb-s 102 --tflops 10 --retention-ratio 0.1 --json': Run(),
    'p2d bench node --model models/drivemm --hz 2 --sweeps 40 --retention-ratio 0.1': ByTest(
        'tests/ros/test_processes.py::test_the_latency_of_the_whole_node_is_measured_through_ros'
    ),
    'p2d soak --minutes 20 --seed 1 --out soak': ByTest(
        'tests/ros/test_soak.py::test_a_short_soak_finds_no_mixed_answer_and_writes_its_report'
    ),
    # The simulator.
    'ros2 run p2d_sim cameras --scenario lead-brakes': CAMERAS,
    'ros2 run p2d_sim world --out synthetic': Run('--scenario cruise --duration 0.5'),
    'ros2 run p2d_sim world --out tuning --random-scenes 60 --duration 0.5 --seed 1100000000': Run(
        '--random-scenes 1'
    ),
    'ros2 run p2d_sim world --out tune --random-scenes 80 --duration 0.5 --seed 1100000000': Run(
        '--random-scenes 1'
    ),
    'ros2 run p2d_sim world --out held --random-scenes 160 --duration 0.5 --seed 1200000000': Run(
        '--random-scenes 1'
    ),
    'ros2 run p2d_sim train --run runs/mini --out models/mini': SMOKE,
    'ros2 run p2d_sim train --run runs/first --out models/first --encoder-steps 1400 '
    '--joint-steps 1400 --seed 0': HOURS,
    'ros2 run p2d_sim train --run runs/second --start models/first --out models/second '
    '--encoder-steps 0 --joint-steps 500 --joint-rate 8e-4 --seed 0': HOURS,
    'ros2 run p2d_sim train --run runs/third --start models/second --out models/third '
    '--encoder-steps 0 --joint-steps 500 --joint-rate 8e-4 --seed 0': HOURS,
    'ros2 run p2d_sim train --run runs/fourth --start models/third --out models/p2d-mini '
    '--encoder-steps 0 --joint-steps 260 --joint-rate 6e-4 --seed 0': HOURS,
    'ros2 run p2d_sim evaluate --model models/p2d-mini': Run('--questions 20 --no-retention'),
    'ros2 run p2d_sim evaluate --model models/p2d-mini --questions 1000 '
    '--out benchmarks/results/p2d_mini-2-core-cpu.json --card models/p2d-mini/README.md': NotRun(
        'it takes an hour and replaces the tables of the model card; without --out and --card '
        'it runs'
    ),
    # A working node.
    'drive --ros-args --params-file config/cameras/nuscenes.yaml -p use_sim_time:=true': REPLAY,
    'ros2 launch p2d_node drive.launch.py model:=/models/llava-onevision '
    'dataset:=nuscenes': DRIVE_LAUNCH,
    'ros2 launch p2d_node drive.launch.py model:=/models/drivemm': DRIVE_LAUNCH,
    'ros2 launch p2d_node drive.launch.py model:=models/drivemm '
    'params_file:=tuning/drivemm.yaml': DRIVE_LAUNCH,
    'ros2 launch p2d_node drive.launch.py dataset:=foxglove': DRIVE_LAUNCH,
    'ros2 launch p2d_node replay.launch.py bag:=scene-0061': REPLAY_LAUNCH,
    'ros2 launch examples/two_vehicles.launch.py': TWO_VEHICLES,
    'ros2 topic echo /p2d/answer': DRIVE_LAUNCH,
    'ros2 topic echo --once /diagnostics': DRIVE_LAUNCH,
    'ros2 param set /p2d retention_ratio.CAM_FRONT 0.25': DRIVE_LAUNCH,
    'ros2 param set /p2d model /models/qwen2-vl': DRIVE_LAUNCH,
    'ros2 service call /p2d/ask p2d_msgs/srv/Ask '
    + shlex.quote("{question: 'Is the light red?'}"): DRIVE_LAUNCH,
    'ros2 lifecycle set /p2d deactivate': DRIVE_LAUNCH,
    'ros2 lifecycle set /p2d cleanup': DRIVE_LAUNCH,
    'ros2 lifecycle set /p2d configure': DRIVE_LAUNCH,
    'ros2 lifecycle set /p2d activate': DRIVE_LAUNCH,
    'ros2 launch p2d_node watch.launch.py': WINDOW,
    'ros2 launch p2d_node watch.launch.py node:=/car1/p2d': WINDOW,
    'ros2 run rqt_plot rqt_plot /p2d/timing/total_ms /p2d/timing/total_p95_ms': WINDOW,
    'ros2 run rqt_robot_monitor rqt_robot_monitor': WINDOW,
    'rerun --bind 127.0.0.1 demo.rrd': WINDOW,
    'ros2 run diagnostic_aggregator aggregator_node --ros-args '
    '--params-file examples/two_vehicles_diagnostics.yaml': DISTRIBUTION,
    'ros2 bag play scene-0061 --clock': DISTRIBUTION,
    # Development.
    'make setup': NotRun('it has made the environment of this test'),
    'make demo': DEMO,
    'make test': THE_TESTS,
    'make quick': THE_TESTS,
    'colcon test --base-paths src src/p2d_node/ros2_ws/src --packages-select p2d_node': THE_TESTS,
    'colcon test-result --verbose': THE_TESTS,
    'python3 -m pytest src/p2d_node/tests/ros/test_commands_over_ros.py': THE_TESTS,
    'colcon build --base-paths src src/p2d_node/ros2_ws/src': PACKAGES,
    '.venv-vehicle/bin/python -m colcon build --packages-up-to p2d_node': PACKAGES,
    'tools/export_packages.sh DIR': EXPORT,
    'python examples/answer_folder.py FOLDER '
    "'What should the ego vehicle do next?'": FOLDER_EXAMPLE,
    'python examples/add_selector.py': SELECTOR_EXAMPLE,
    # Programs of others.
    'python3 -c \'import numpy; print(f"numpy=={numpy.__version__}")\'': Run(),
    ".venv-vehicle/bin/python -c 'import torch; print(torch.cuda.is_available(), "
    "torch.cuda.get_arch_list())'": Run(),
    'rosbags-convert --src 61.bag --dst scene-0061 --dst-typestore ros2_humble '
    '--dst-version 8': CONVERTED_BAG,
    'dask scheduler': CLUSTER,
    'dask worker tcp://SCHEDULER:8786 --nthreads 4': CLUSTER,
    'python3 -m venv --system-site-packages .venv-vehicle': DISTRIBUTION,
}
"""What becomes of each documented command, without comments, variables and redirections."""

OF_A_KIND = {
    'docker compose ': CONTAINER,
    'journalctl ': ADMINISTRATOR,
    'sudo ': ADMINISTRATOR,
    'rosdep ': NETWORK,
    'pip install ': NETWORK,
    '.venv-vehicle/bin/pip install ': NETWORK,
    '.venv-vehicle/bin/hf ': NETWORK,
}
"""The same for all commands that begin like this."""


def command_lines() -> list[str]:
    """Every command of a block of code in a document, as one line of shell."""
    blocks = [block for path in DOCUMENTS for block in CODE_BLOCK.findall(path.read_text())]
    lines = [line for block in blocks for line in _lines_of(block)]
    return sorted({part for line in lines for part in _split_at_and(line)})


def _lines_of(block: str) -> list[str]:
    """The commands of a block: all of a block of shell, those of p2d in another one."""
    lines = block.replace('\\\n', ' ').splitlines()[1:-1]
    return [line for line in lines if block.startswith('```bash') or line.startswith('p2d ')]


def _split_at_and(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    commands: list[list[str]] = [[]]
    for word in words:
        if word == '&&':
            commands.append([])
        else:
            commands[-1].append(word)
    return [plain for plain in map(_plain, commands) if plain]


def _plain(words: list[str]) -> str:
    """A command without variables before it, redirection after it, and what only runs it."""
    text = shlex.join(words).partition(" '>' ")[0]
    text = re.sub(r'^([A-Z]+=\S+ )+', '', text)
    text = re.sub(r"^tools/run\.sh \S+ '' ", '', text)
    text = re.sub(r'^docker compose .* jetpack7 (?=ros2)', '', text)
    text = re.sub(r'^ros2 run p2d_node p2d ', 'p2d ', text)
    text = text.replace('../.venv-vehicle', '.venv-vehicle')
    return '' if text.split(' ')[0] in ('', *SHELL) else text


def how_it_runs(command: str) -> Run | RunOverRos | ByTest | NotRun | None:
    """Return the entry of a documented command, or None."""
    if command in HOW:
        return HOW[command]
    return next((how for start, how in OF_A_KIND.items() if command.startswith(start)), None)


def commands_that(kind: type) -> list[tuple[str, str]]:
    """Return the documented commands that are run in this way, with what is added to them."""
    return [(command, how.add) for command, how in HOW.items() if isinstance(how, kind)]


def words_in_samples(command: str, add: str) -> list[str]:
    """Return the words of a command, for the folder of `write_samples`."""
    return [re.sub(r'^/(data|models)/', _beside, w) for w in shlex.split(f'{command} {add}')]


def _beside(match: re.Match[str]) -> str:
    return '' if match[1] == 'data' else 'models/'

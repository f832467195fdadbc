"""The computed time of a sweep: against counted operations, real checkpoints and this machine."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import re
import shutil
import statistics

from p2d_node.benchmarks import random_model
from p2d_node.benchmarks.budget import (
    compute_budget,
    encoder_work,
    pass_work,
    prefill_works,
)
from p2d_node.benchmarks.machines import GPUS, Machine
from p2d_node.benchmarks.model_shape import DRIVEMM, ModelShape, SCALED
from p2d_node.benchmarks.model_sizes import find_model_sizes, ModelSizes, sizes_of_shape
from p2d_node.benchmarks.plans import PrefillBenchmark, SweepPlan
from p2d_node.benchmarks.prefill import Bench, generate
from p2d_node.benchmarks.random_model import build_model, FlopCount, prefill
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.errors import ConfigError
from p2d_node.language_model import model_loading
from p2d_node.language_model.families.registry import load_family
from p2d_node.preprocessing import ImageProcessing
import pytest
from tiny_checkpoints import WRITERS
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WITH_EXPERTS = 'qwen3_vl_moe'  # each token passes some of the experts only
CPU = torch.device('cpu')
META = torch.device('meta')
NUM_PICTURES = 6
FLOAT32 = {'weights_bits': 32, 'value_bytes': 4}
AS_MEASURED = {'compute_efficiency': 1.0, 'bandwidth_efficiency': 1.0}
TOLERANCE = 0.3
REPEATS = 5
NO_MATRIX = re.compile('pos_embed|position_embed|cls_token|mask_token')


def plan_like(count: FlopCount, shape: ModelShape, **changes) -> SweepPlan:
    """A plan with the prompt of `FlopCount`."""
    question = len(count._prompt.suffix)
    text = shape.num_text_tokens - question
    return SweepPlan(text_tokens=text, question_tokens=question, **changes)


@pytest.mark.parametrize('shape', [SCALED, DRIVEMM], ids=lambda shape: shape.name)
@pytest.mark.parametrize(('ratio', 'layer'), [(1.0, 0), (0.1, 0), (0.25, 1), (0.1, 2)])
def test_the_operations_of_the_prefill_are_those_of_the_model(shape, ratio, layer):
    count = FlopCount(shape)
    plan = plan_like(count, shape, retention_ratio=ratio, prune_layer=layer)
    sizes = sizes_of_shape(shape)
    num_keep = compute_budget(sizes, GPUS['thor'], plan).num_keep
    computed = sum(work.flops for work in prefill_works(sizes, plan))
    assert computed == pytest.approx(count.prefill(num_keep, layer), rel=1e-12)


@pytest.mark.parametrize('shape', [SCALED, DRIVEMM], ids=lambda shape: shape.name)
def test_the_operations_and_weights_of_the_encoder_are_those_of_the_model(shape):
    module = build_model(shape, device=META, dtype=torch.bfloat16).vision_module
    side = shape.vision['image_size']
    pictures = torch.empty(NUM_PICTURES, 3, side, side, device=META, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(pictures)
    work = encoder_work(sizes_of_shape(shape), SweepPlan())
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert work.num_bytes / 2 == pytest.approx(num_matrix_values(module), rel=0.01)


def num_matrix_values(module: nn.Module) -> int:
    """Values of all parameters but biases, norms and position embeddings."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and not NO_MATRIX.search(name)
    )


@pytest.mark.parametrize('writer', sorted(set(WRITERS) - {WITH_EXPERTS}))
def test_the_sizes_are_those_of_the_checkpoint_whose_weights_are_not_needed(
    writer, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        model_loading, 'pack_linear_layers', lambda model: None
    )  # packed ones are opaque
    folder = WRITERS[writer](tmp_path / 'whole')
    sizes = sizes_without_weights(folder, tmp_path / 'settings')
    processing = ImageProcessing.from_folder(folder)
    view_size = (processing.height_px, processing.width_px)
    family = load_family(
        open_checkpoint(folder), view_size=view_size, dtype=torch.float32, device=CPU
    )
    rows, columns = family.grid
    assert sizes.tokens == rows * columns
    layers = family.decoder._model.layers
    assert sizes.text.weights == num_matrix_values(layers)
    assert sizes.vocabulary * sizes.text.width == family.decoder._lm_head.weight.numel()
    work = encoder_work(sizes, SweepPlan())
    assert work.num_bytes / 2 == num_matrix_values(family.vision_module)


def test_a_model_with_experts_has_no_budget(tmp_path):
    with pytest.raises(ConfigError, match=r'got family .qwen3_vl_moe., allowed'):
        find_model_sizes(str(WRITERS[WITH_EXPERTS](tmp_path)))


def sizes_without_weights(folder: Path, target: Path) -> ModelSizes:
    target.mkdir()
    for name in ('config.json', 'preprocessor_config.json'):
        shutil.copy(folder / name, target)
    return find_model_sizes(str(target))


def test_models_of_any_picture_size_can_be_given_one(tmp_path):
    folder = WRITERS['qwen3_vl'](tmp_path / 'model')
    assert find_model_sizes(str(folder), (64, 128)).tokens == 64 // 8 * (128 // 8)
    (folder / 'preprocessor_config.json').unlink()
    assert find_model_sizes(str(folder), (8, 8)).tokens == 1
    with pytest.raises(ConfigError, match=r'preprocessor_config\.json'):
        find_model_sizes(str(folder))


def test_a_stitched_model_encodes_one_picture(tmp_path):
    folder = WRITERS['internvl_llama'](tmp_path / 'model')
    separate = find_model_sizes(str(folder))
    path = folder / 'config.json'
    config = json.loads(path.read_text()) | {'p2d_mosaic': [['A', 'B', 'C'], ['D', 'E', 'F']]}
    path.write_text(json.dumps(config))
    stitched = find_model_sizes(str(folder))
    plan = SweepPlan()
    assert encoder_work(separate, plan).flops == 6 * encoder_work(stitched, plan).flops


def test_a_pass_reads_all_weights_and_every_answers_own_cache():
    sizes, plan = sizes_of_shape(DRIVEMM), SweepPlan(retention_ratio=0.1, answer_tokens=60)
    weights = 2 * (sizes.text.weights + 128256 * 4096)
    assert weights == pytest.approx(15.0e9, rel=0.01)  # Llama-3.1-8B without its embeddings
    per_token = 2 * 2 * 32 * 8 * 128  # keys and values of bfloat16 in 32 layers
    context = 6 * 73 + 115 + 30
    assert pass_work(sizes, plan).num_bytes == weights + context * per_token
    many = replace(plan, num_questions=20)
    assert pass_work(sizes, many).num_bytes == weights + 20 * context * per_token


def test_the_slower_of_reading_and_computing_sets_the_time():
    sizes, plan = sizes_of_shape(DRIVEMM), SweepPlan(**AS_MEASURED)
    slow_memory = Machine(name='a', bandwidth_gb_s=1.0, tflops=1e6)
    slow_chip = Machine(name='b', bandwidth_gb_s=1e6, tflops=1.0)
    work = pass_work(sizes, plan)
    for machine, expected_ms in (
        (slow_memory, work.num_bytes / 1e6),
        (slow_chip, work.flops / 1e9),
    ):
        assert compute_budget(sizes, machine, plan).pass_ms == pytest.approx(expected_ms)
        halved = replace(plan, bandwidth_efficiency=0.5, compute_efficiency=0.5)
        assert compute_budget(sizes, machine, halved).pass_ms == pytest.approx(2 * expected_ms)


def test_drafts_divide_the_passes_and_widen_them():
    sizes, machine = sizes_of_shape(DRIVEMM), GPUS['orin-64gb']
    plain = compute_budget(sizes, machine, SweepPlan(answer_tokens=61))
    drafted = compute_budget(sizes, machine, SweepPlan(answer_tokens=61, tokens_per_pass=3.0))
    assert plain.decode_ms == pytest.approx(60 * plain.pass_ms)
    assert drafted.decode_ms == pytest.approx(20 * drafted.pass_ms)
    assert drafted.pass_ms == plain.pass_ms  # reading the weights sets the time of both
    wide = SweepPlan(tokens_per_pass=3.0, draft_tokens=7)
    flops = [pass_work(sizes, plan).flops for plan in (SweepPlan(), wide)]
    assert flops[1] == 8 * flops[0]
    with pytest.raises(ConfigError, match='got 9, allowed: up to 8'):
        SweepPlan(tokens_per_pass=9.0)


def test_fewer_bits_shrink_the_layers_and_not_the_output_layer():
    sizes = sizes_of_shape(DRIVEMM)
    read = {bits: pass_work(sizes, SweepPlan(weights_bits=bits)).num_bytes for bits in (16, 8, 4)}
    assert read[16] - read[8] == sizes.text.weights
    assert read[8] - read[4] == pytest.approx(sizes.text.weights * (1 - 4.25 / 8))
    with pytest.raises(ConfigError, match='weights_bits: got 3, allowed'):
        SweepPlan(weights_bits=3)


def test_the_figures_of_orin_are_those_of_a_calculation_by_hand():
    """16.1 GB per token at 205 GB/s are 78 ms; 3.6 and 8.9 TFLOP at 42 TFLOPS 0.09 and 0.21 s."""
    plan = SweepPlan(**AS_MEASURED)
    budget = compute_budget(sizes_of_shape(DRIVEMM), GPUS['orin-64gb'], plan)
    assert budget.pass_ms == pytest.approx(78, rel=0.1)
    assert budget.encoder_ms == pytest.approx(90, rel=0.15)
    assert budget.prefill_ms == pytest.approx(210 + 78, rel=0.15)


class OwnMachine:
    """Operations and bytes per second of this processor, with layers of torch's own.

    Processor time is measured: other programs on the machine hardly change it. As many tokens
    at once as a view has, and one token as often as decoding does it: they find the same share
    of what they read in the processor's cache.
    """

    def __init__(self, bench: Bench, steps: int) -> None:
        self._bench, self._steps = bench, steps
        self._width, self._inner = 512, 1792
        side = SCALED.vision['image_size'] // SCALED.vision['patch_size']
        self._tokens = side * side
        self._layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self._width, 8, self._inner, 0.0, batch_first=True, norm_first=True
            )
            for _ in range(16)
        ).eval()

    def measure(self) -> Machine:
        tokens, width = self._tokens, self._width
        weights = len(self._layers) * (4 * width * width + 2 * width * self._inner)
        flops = 2 * tokens * weights + len(self._layers) * 4 * width * tokens * tokens
        wide_ms, narrow_ms = self._run_ms(tokens, 1), self._run_ms(1, self._steps)
        return Machine(
            name='this one',
            bandwidth_gb_s=4 * weights / narrow_ms / 1e6,
            tflops=flops / wide_ms / 1e9,
        )

    def _run_ms(self, num_tokens: int, passes: int) -> float:
        states = torch.zeros(1, num_tokens, self._width)

        def run() -> None:
            for _ in range(passes):
                hidden = states
                for layer in self._layers:
                    hidden = layer(hidden)

        return self._bench.time_ms(run)[1] / passes


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.usefixtures('_one_thread')
@torch.inference_mode()
def test_the_computed_times_are_the_measured_ones_of_this_processor_within_30_percent(monkeypatch):
    ratio, steps = 0.1, 16
    case = PrefillBenchmark(
        retention_ratios=(ratio,), prune_layers=(0,), answer_tokens=steps, device='cpu'
    )
    # Packed weights are faster than the layers that stand for this machine.
    monkeypatch.setattr(random_model, 'pack_linear_layers', lambda model: None)
    bench = Bench(case)
    own = OwnMachine(bench, steps)
    question = len(bench.prompt.suffix)
    plan = SweepPlan(
        retention_ratio=ratio,
        answer_tokens=steps,
        text_tokens=SCALED.num_text_tokens - question,
        question_tokens=question,
        **FLOAT32,
        **AS_MEASURED,
    )

    def run_prefill():
        return prefill(
            bench.family,
            bench.prompt,
            bench.visual_tokens,
            bench.selector(ratio),
            0,
            max_new_tokens=steps,
        )

    shares: dict[str, list[float]] = {}
    for turn in range(1 + REPEATS):
        machine = own.measure()
        encoder_ms = bench.time_ms(lambda: bench.family.vision_module(bench.pixel_values))[1]
        _, prefill_ms, prompt = bench.time_ms(run_prefill)
        decode_ms = bench.time_ms(lambda p=prompt: generate(bench.family, *p, steps))[1]
        computed = compute_budget(sizes_of_shape(SCALED), machine, plan)
        if turn == 0:
            continue
        for stage, measured_ms in {
            'encoder_ms': encoder_ms,
            'prefill_ms': prefill_ms,
            'decode_ms': decode_ms,
            'sweep_ms': encoder_ms + prefill_ms + decode_ms,
        }.items():
            shares.setdefault(stage, []).append(getattr(computed, stage) / measured_ms)
    medians = {stage: statistics.median(values) for stage, values in shares.items()}
    print(medians)
    assert all(abs(share - 1) <= TOLERANCE for share in medians.values()), medians


def test_the_verb_prints_a_table_that_says_that_it_is_computed(capsys):
    words = ['budget', '--gpu', 'orin-64gb', '--retention-ratio', '1', '0.1']
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert 'Computed, not measured: drivemm on orin-64gb' in ' '.join(shown.split())
    assert shown.count('computed') >= 6  # every column of times, and the caption
    assert main([*words, '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert 'not measured' in report['budget']
    unpruned, pruned = report['rows']
    assert [unpruned['num_keep'], pruned['num_keep']] == [729, 72]
    assert unpruned['computed_prefill_ms'] > 5 * pruned['computed_prefill_ms']
    assert {key for key in pruned if key.endswith('_ms') and not key.startswith('comp')} == set()


def test_the_verb_takes_the_figures_of_a_machine_that_it_does_not_know(capsys):
    gpu = GPUS['thor']
    own = ['--bandwidth-gb-s', str(gpu.bandwidth_gb_s), '--tflops', str(gpu.tflops)]
    rows = []
    for machine in (['--gpu', 'thor'], own):
        assert main(['budget', '--model', 'p2d-mini', '--json', *machine]) == 0
        rows.append(json.loads(capsys.readouterr().out)['rows'])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'needed: --gpu, or both --bandwidth-gb-s and --tflops'),
        (['--tflops', '3'], 'needed: --gpu, or both'),
        (['--gpu', 'orin'], "--gpu: got 'orin', allowed: orin-64gb, orin-32gb, thor"),
        (['--gpu', 'thor', '--tflops', '3'], '--tflops: got 3.0, which has no effect with --gpu'),
        (['--gpu', 'thor', '--weights-bits', '3'], "--weights-bits: got '3', allowed: 16, 8, 4"),
        (['--gpu', 'thor', '--tokens-per-pass', '9'], 'got 9, allowed: up to 8'),
        (['--gpu', 'thor', '--draft-tokens', '9'], 'has no effect without --tokens-per-pass'),
        (['--gpu', 'thor', '--prune-layer', '32'], '--prune-layer: got 32, allowed: 0 to 31'),
        (['--gpu', 'thor', '--model', 'nowhere'], 'not a folder'),
        (['--gpu', 'thor', '--retention-ratio', '0'], 'got 0, allowed: above 0 to 1'),
    ],
)
def test_bad_input_is_refused_in_one_line(words, message, capsys):
    assert run_verb(words) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1


def run_verb(words: list[str]) -> int:
    try:
        return main(['budget', *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_family_that_is_not_known_is_refused(tmp_path):
    (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match=r'got family .gpt2., allowed: llava_onevision'):
        find_model_sizes(str(tmp_path))


@pytest.mark.attack(
    'A config.json with absurd sizes, for p2d budget, which needs no weights',
    'refused in one line, at once',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('part', 'name', 'value', 'reason'),
    [
        ('text_config', 'hidden_size', 10**18, 'hidden_size: got .*, allowed: up to'),
        ('text_config', 'num_hidden_layers', 10**9, 'num_hidden_layers: got .*, allowed: up to'),
        ('vision_config', 'image_size', 10**6, 'image_size: got 1000000, allowed: up to 2048'),
        ('vision_config', 'patch_size', 127, 'has a size of 0, allowed: 1 or more'),
        (
            'vision_config',
            'mlp_ratio',
            10**4000,
            'mlp_ratio x width: got [0-9]+',
        ),
        ('text_config', 'intermediate_size', -64, 'has a size of -64, allowed: 1 or more'),
    ],
)
def test_absurd_sizes_are_refused(tiny_checkpoint, tmp_path, part, name, value, reason):
    config = json.loads((tiny_checkpoint / 'config.json').read_text())
    config[part][name] = value
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=reason):
        find_model_sizes(str(tmp_path))

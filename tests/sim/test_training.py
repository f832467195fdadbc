"""What is trained is what the exported folder computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.checkpoint_files import make_word_tokenizer, write_checkpoint
from p2d_node.errors import ConfigError
from p2d_node.language_model.families.registry import load_family
from p2d_node.preprocessing import ImageProcessing, normalize
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention, select_tokens
from p2d_sim.cli.train import main, report_smoke
from p2d_sim.training.batches import (
    batches_from,
    BatchPlan,
    collate_packed,
    collate_samples,
    pack_sample,
)
from p2d_sim.training.evaluation import wilson
from p2d_sim.training.held_out import Evaluator
from p2d_sim.training.model import export
from p2d_sim.training.model_card import END, fill_model_card, START
from p2d_sim.training.plan import RunPlan, TINY
from p2d_sim.training.run import Run
from p2d_sim.training.samples import HELD_OUT_SEED, make_sample
from p2d_sim.training.scoring import right_answers
from p2d_sim.training.starting import start_from
from p2d_sim.training.tokenizer import CHAT_TEMPLATE, make_tokenizer
from p2d_sim.training.trainer import encode, Parts
import pytest
import torch

CPU = torch.device('cpu')
SEED = HELD_OUT_SEED + 77


@pytest.fixture(scope='module')
def parts() -> Parts:
    """Untrained parts with weights large enough that answers depend on the pictures."""
    made = Parts.untrained(TINY, 3, CPU)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.dim() == 2 and 'embed' not in name:
                parameter.mul_(3.0)
    return made


@pytest.fixture(scope='module')
def exported(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('models') / 'tiny-mini'
    export(parts.model, make_tokenizer(), folder)
    return folder


def packed_sweep(parts: Parts, seed: int = SEED):
    sample = make_sample(seed, TINY.image_px, TINY.grid, augment=False)
    packed = pack_sample(parts.packer, sample, seed)
    return sample, packed, collate_samples([sample]) | collate_packed([packed])


def read_question(family, question: str, visual: torch.Tensor, keep=None):
    """The prefix of one question alone, and the logits after it; `keep` None keeps all tokens."""
    prompt = family.build_prompt(question, NUSCENES_CAMERAS)
    inputs = family.embed_prefix(prompt, visual)
    prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs), keep)
    text = family.embed_text(prompt.suffix, inputs.end_position)
    asked, logits = family.decoder.extend(prefix, [text])
    return asked, logits[:, 0]


@torch.inference_mode()
def packed_logits(parts: Parts, batch) -> torch.Tensor:
    hidden, _ = parts.forward_features(encode(parts.model, batch['pixels']), batch)
    return parts.model.lm_head(hidden.asked)


def test_packed_questions_get_the_logits_that_each_gets_alone_in_the_exported_folder(
    parts: Parts, exported: Path
) -> None:
    sample, packed, batch = packed_sweep(parts)
    logits = packed_logits(parts, batch)[0]
    family = load_family(open_checkpoint(exported), dtype=torch.float32, device=CPU)
    processing = ImageProcessing.from_folder(exported)
    pixel_values = normalize(list(sample.pixels), processing, CPU)
    with torch.inference_mode():
        visual = family.vision_module(pixel_values)
    assert len(packed.asked) > 20
    for number, question in enumerate(packed.asked):
        _, alone = read_question(family, question.text, visual)
        together = logits[batch['answer_at'][0, number]]
        torch.testing.assert_close(together, alone[0], atol=1e-4, rtol=1e-4)


def test_an_answer_is_right_only_if_every_token_of_it_and_its_end_are_most_probable(
    parts: Parts,
) -> None:
    _, packed, batch = packed_sweep(parts)
    labels, owner = batch['labels'][0], batch['owner'][0]
    logits = torch.nn.functional.one_hot(labels.clamp(min=0), 200).float()[None]
    assert right_answers(logits, batch, len(packed.asked)).all()
    end = int((labels != -100).logical_and(owner == 3).nonzero()[-1])
    logits[0, end] = 0.0
    logits[0, end, 7] = 1.0
    right = right_answers(logits, batch, len(packed.asked)).tolist()
    assert [number for number, good in enumerate(right) if not good] == [3]


def test_a_question_sees_neither_its_neighbours_nor_their_order(parts: Parts) -> None:
    sample, packed, batch = packed_sweep(parts)
    logits = packed_logits(parts, batch)[0]
    turned = parts.packer.pack(packed.asked[::-1], sample.labels.ids)
    other = collate_samples([sample]) | collate_packed([turned])
    reordered = packed_logits(parts, other)[0]
    last = len(packed.asked) - 1
    for number in range(last + 1):
        a = logits[batch['answer_at'][0, number]]
        b = reordered[other['answer_at'][0, last - number]]
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_every_word_of_the_questions_is_known_to_the_tokenizer(parts: Parts) -> None:
    unknown = make_tokenizer().unk_token_id
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 8):
        _, packed, _ = packed_sweep(parts, seed)
        for question in packed.asked:
            assert unknown not in parts.packer.row_of(question)[0], question


def test_a_step_is_fed_the_same_sweeps_in_every_run() -> None:
    plan = BatchPlan(size=TINY, sweeps=1, first_seed=40, with_questions=True)
    first = dict(batches_from(plan, 2, 4, workers=0))
    again = dict(batches_from(plan, 3, 4, workers=0))
    for name, values in again[3].items():
        np.testing.assert_array_equal(values, first[3][name])
    assert not torch.equal(first[2]['pixels'], first[3]['pixels'])


def short_run(folder: Path, steps: tuple[int, int]) -> RunPlan:
    return RunPlan(folder=folder, size=TINY, steps=steps, sweeps=1, workers=0, check_minutes=0.0)


def test_a_resumed_run_goes_on_with_the_weights_and_optimizer_of_the_interrupted_one(
    tmp_path: Path,
) -> None:
    whole = Run(short_run(tmp_path / 'whole', (2, 3)), show_progress=False)
    whole.train()
    interrupted = Run(short_run(tmp_path / 'part', (2, 3)), show_progress=False)
    interrupted.plan.folder.mkdir()
    interrupted._train_stage(0)
    resumed = Run(short_run(tmp_path / 'part', (2, 3)), show_progress=False)
    resumed.train()
    assert resumed.losses['encoder'] == []
    assert resumed.losses['joint'] == pytest.approx(whole.losses['joint'], rel=1e-3)


def test_a_checkpoint_within_a_stage_brings_back_the_optimizers_too(tmp_path: Path) -> None:
    plan = replace(short_run(tmp_path / 'whole', (4, 0)), save_minutes=100.0)
    whole = Run(plan, show_progress=False)
    whole.train()
    often = replace(short_run(tmp_path / 'part', (4, 0)), save_minutes=0.0)
    Run(often, show_progress=False).train()
    state = tmp_path / 'part' / 'latest.json'
    assert '"step": 4' in state.read_text(encoding='utf-8')
    weights = Run(often, show_progress=False).module.state_dict()
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(weights[name], value, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_smoke_run_shows_that_training_works_and_writes_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'smoke-mini'
    arguments = ['--run', str(tmp_path / 'run'), '--smoke', '--workers', '0', '--out', str(out)]
    assert main(arguments) == 0
    assert 'joint: loss' in capsys.readouterr().out
    assert open_checkpoint(out).model_type == 'llava_onevision'
    assert main(arguments) == 2
    assert '--resume' in capsys.readouterr().err


def test_a_resumed_smoke_run_judges_only_the_stages_that_it_has_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = short_run(tmp_path, (2, 3))
    Run(plan, show_progress=False)._train_stage(0)
    resumed = Run(plan, show_progress=False)
    assert report_smoke(resumed.losses, resumed.plan) == 0
    assert capsys.readouterr().out == ''
    resumed.train()
    report_smoke(resumed.losses, resumed.plan)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('joint: loss')


@pytest.mark.parametrize('method', ['tfps', 'divprune', 'dart', 'random', 'grid'])
def test_few_tokens_in_a_packed_row_equal_few_tokens_in_the_pipelines_prefix(
    parts: Parts, exported: Path, method: str
) -> None:
    evaluator = Evaluator(exported, height=180, width=320)
    sweep = evaluator.sweep(SEED)
    pruning = evaluator.pruning(method, 0.25, 0)
    batch = collate_packed([sweep.packed])
    with torch.inference_mode():
        hidden, _ = evaluator.parts.forward_tokens(sweep.visual, batch, pruning)
        logits = evaluator.parts.model.lm_head(hidden.asked)[0]
    family = load_family(open_checkpoint(exported), dtype=torch.float32, device=CPU)
    num_keep = [num_keep_from_retention(TINY.num_tokens, 0.25)] * 6
    keep = select_tokens(sweep.visual[0], num_keep, method)
    for number, question in enumerate(sweep.packed.asked[:6]):
        _, alone = read_question(family, question.text, sweep.visual[0], keep)
        together = logits[batch['answer_at'][0, number]]
        torch.testing.assert_close(together, alone[0], atol=1e-4, rtol=1e-4)


def test_keeping_every_token_changes_no_answer_whatever_the_layer(exported: Path) -> None:
    evaluator = Evaluator(exported, height=180, width=320)
    sweep = evaluator.sweep(SEED)
    batch = collate_packed([sweep.packed])
    with torch.inference_mode():
        plain, _ = evaluator.parts.forward_tokens(sweep.visual, batch)
        for layer in (0, 1, 2):
            pruning = evaluator.pruning('tfps', 1.0, layer)
            kept, _ = evaluator.parts.forward_tokens(sweep.visual, batch, pruning)
            torch.testing.assert_close(kept.asked, plain.asked, atol=1e-4, rtol=1e-4)
        few, _ = evaluator.parts.forward_tokens(
            sweep.visual, batch, evaluator.pruning('tfps', 0.1, 1)
        )
    assert not torch.allclose(few.asked, plain.asked, atol=1e-2)


def test_the_wilson_interval_holds_the_share_and_shrinks_with_more_questions() -> None:
    low, high = wilson(80, 100)
    assert low == pytest.approx(0.7112, abs=1e-3)
    assert high == pytest.approx(0.8666, abs=1e-3)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(800, 1000)[1] - wilson(800, 1000)[0] < high - low


def test_the_model_card_gets_its_tables_between_the_marks_and_keeps_the_rest(
    tmp_path: Path,
) -> None:
    card = tmp_path / 'README.md'
    card.write_text(f'before\n{START}\nold\n{END}\nafter\n', encoding='utf-8')
    row = {'accuracy': 0.9, 'low': 0.88, 'high': 0.92, 'questions': 9, 'choice': 0.8, 'free': 0.95}
    kind = {'asked': 9, 'accuracy': 0.9, 'majority': 0.4, 'blank': 0.3, 'shuffled': 0.35}
    results = {
        'pictures': row, 'blank': row, 'shuffled': row, 'sweeps': 1, 'majority': 0.41,
        'kinds': {'exist': kind},
        'retention': [{'prune_layer': 0, 'method': 'tfps', 'retention_ratio': 0.1, **row}],
    }  # fmt: skip
    fill_model_card(card, results)
    text = card.read_text(encoding='utf-8')
    assert text.startswith('before')
    assert text.endswith('after\n')
    assert 'old' not in text
    assert '| exist | 9 | 90.0 | 40.0 | 30.0 | 35.0 |' in text
    assert '| 0 | tfps | 90.0 (88.0-92.0) |' in text
    card.write_text('no marks', encoding='utf-8')
    with pytest.raises(ConfigError, match='no place'):
        fill_model_card(card, results)


def test_a_run_starts_from_a_finished_model_also_of_another_vocabulary(
    parts: Parts, exported: Path, tmp_path: Path
):
    """In the old folder here, "front left" is still two tokens."""
    tokens = make_tokenizer().get_vocab()
    words = [word for word in sorted(tokens, key=tokens.__getitem__) if ' ' not in word]
    old = make_word_tokenizer(
        words[:1], words[1:], end_token='<|end|>', chat_template=CHAT_TEMPLATE
    )
    model = copy.deepcopy(parts.model)
    model.resize_token_embeddings(len(words))
    folder = tmp_path / 'old'
    write_checkpoint(folder, model, old, pads=False)
    started = Parts.untrained(TINY, 9, CPU)
    start_from(started, folder)
    ids, old_ids = make_tokenizer().get_vocab(), old.get_vocab()
    for new, trained in (
        (started.model.get_input_embeddings(), model.get_input_embeddings()),
        (started.model.get_output_embeddings(), model.get_output_embeddings()),
    ):
        assert torch.equal(new.weight[ids['car']], trained.weight[old_ids['car']])
        both = (trained.weight[old_ids['front']] + trained.weight[old_ids['left']]) / 2
        torch.testing.assert_close(new.weight[ids['front left']], both)
    for name, tensor in started.model.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, parts.model.model.vision_tower.state_dict()[name])


def test_a_start_that_does_not_fit_is_refused(exported: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r'start: .* holds no trained model'):
        start_from(Parts.untrained(TINY, 0, CPU), tmp_path)
    other = Parts.untrained(replace(TINY, text_hidden=128), 0, CPU)
    with pytest.raises(ConfigError, match=r'start: .* is a model of another size: size mismatch'):
        start_from(other, exported)

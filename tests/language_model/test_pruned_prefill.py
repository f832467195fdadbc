"""Pruning before any layer, for every family, against a float64 pass without cache."""

from cache_free import run, Sequence
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.language_model.decode import Decoder
from p2d_node.language_model.families.registry import find_family, load_family
from p2d_node.language_model.model_loading import load_weights
from p2d_node.preprocessing import ImageProcessing
from p2d_node.token_selection import select_tokens
import pytest
from tiny_checkpoints import WRITERS
import torch
from transformers import DynamicCache, StaticCache

CPU = torch.device('cpu')
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
KEPT = (1, 5, 11)
QUESTION = 'What should the ego vehicle do next?'
OTHERS = ('Is there a car?', 'why?', QUESTION)
NUM_STEPS = 5
CACHES = ('own', 'dynamic', 'static')
EXACT = {'rtol': 1e-9, 'atol': 1e-9}


@pytest.fixture(scope='module', params=WRITERS)
def folder(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope='module')
def view_size(folder):
    processing = ImageProcessing.from_folder(folder)
    return processing.height_px, processing.width_px


@pytest.fixture(scope='module')
def family(folder, view_size):
    checkpoint = open_checkpoint(folder)
    return load_family(checkpoint, view_size=view_size, dtype=torch.float64, device=CPU)


@pytest.fixture(scope='module')
def own_model(folder):
    """transformers' own layers with the same weights."""
    model_class = find_family(open_checkpoint(folder)).MODEL_CLASS
    return load_weights(model_class, folder, dtype=torch.float64)


@pytest.fixture(scope='module')
def inputs(family, view_size):
    """The sequence up to the last view, with all visual tokens."""
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        features = family.vision_module(torch.zeros(1, 3, *view_size, dtype=torch.float64))
    shape = (len(CAMERAS), *features.shape[1:])
    visual_tokens = torch.randn(shape, generator=generator, dtype=torch.float64)
    return family.embed_prefix(family.build_prompt(QUESTION, CAMERAS), visual_tokens)


def make_decoder(family, cache):
    model = family.decoder._model
    if cache == 'own':
        return Decoder(model, family.decoder._lm_head)
    if cache == 'dynamic':
        return Decoder(model, family.decoder._lm_head, make_cache=DynamicCache)
    return Decoder(
        model,
        family.decoder._lm_head,
        make_cache=lambda: StaticCache(config=model.config, max_cache_len=400),
    )


def full_sequence(inputs, keep, text):
    """Prefix and text as one sequence, with marked dropped tokens."""
    length, text_length = inputs.hidden_states.shape[1], text.hidden_states.shape[1]
    visual = torch.zeros(length + text_length, dtype=torch.bool)
    dropped = torch.zeros(length + text_length, dtype=torch.bool)
    for view, kept in zip(inputs.pictures, keep, strict=True):
        visual[view] = True
        dropped[view] = True
        dropped[view.start + kept] = False
    positions = text.positions.expand(*inputs.positions.shape[:-1], -1)
    return Sequence(
        torch.cat([inputs.hidden_states, text.hidden_states], dim=1)[0],
        torch.cat([inputs.positions, positions], dim=-1).squeeze(-2),
        visual,
        dropped,
        inputs.deepstack,
    )


def select(states):
    """T-FPS that keeps `KEPT` tokens per view."""
    return select_tokens(states, list(KEPT))


def run_and_step(family, decoder, prefix, position, questions, num_steps):
    """Logits after the questions and after each greedy token, and the ids of these tokens."""
    texts = [family.embed_text(question, position) for question in questions]
    prompts, logits = decoder.extend(prefix, texts, max_new_tokens=num_steps)
    all_logits, all_tokens = [logits[:, 0]], []
    for _ in range(num_steps):
        tokens = all_logits[-1].argmax(dim=-1)
        all_tokens.append(tokens)
        prompts, logits = decoder.step(prompts, family.embed(tokens[:, None]))
        all_logits.append(logits)
    return torch.stack(all_logits, dim=1), torch.stack(all_tokens, dim=1)


@pytest.mark.parametrize('cache', CACHES)
@pytest.mark.parametrize('prune_layer', [0, 1, 2])
def test_logits_equal_those_of_a_pass_without_cache(family, own_model, inputs, prune_layer, cache):
    decoder = make_decoder(family, cache)
    paused = decoder.begin_prefill(inputs, prune_layer)
    visual_states = paused.visual_states
    keep = select(visual_states)
    prefix = decoder.resume_prefill(paused, keep)
    suffix = family.build_prompt(QUESTION, CAMERAS).suffix
    logits, tokens = run_and_step(
        family, decoder, prefix, inputs.end_position, [suffix], NUM_STEPS
    )

    text = family.embed_text([*suffix, *tokens[0].tolist()], inputs.end_position)
    sequence = full_sequence(inputs, keep, text)
    text_model, lm_head = own_model.model.language_model, own_model.lm_head
    expected, before = run(text_model, lm_head, sequence, prune_layer)
    torch.testing.assert_close(logits[0], expected[-NUM_STEPS - 1 :], **EXACT)
    for view, states in zip(inputs.pictures, visual_states, strict=True):
        torch.testing.assert_close(states, before[view], **EXACT)
    assert [len(kept) for kept in keep] == list(KEPT)


@pytest.mark.parametrize('cache', CACHES)
@pytest.mark.parametrize('prune_layer', [0, 1])
def test_batched_questions_have_the_same_logits_as_single_ones(family, inputs, prune_layer, cache):
    decoder = make_decoder(family, cache)
    paused = decoder.begin_prefill(inputs, prune_layer)
    prefix = decoder.resume_prefill(paused, select(paused.visual_states))
    suffixes = [family.build_prompt(question, CAMERAS).suffix for question in OTHERS]
    assert len({len(suffix) for suffix in suffixes}) == 3
    position = inputs.end_position
    together, tokens = run_and_step(family, decoder, prefix, position, suffixes, NUM_STEPS)
    for row, suffix in enumerate(suffixes):
        alone, own = run_and_step(family, decoder, prefix, position, [suffix], NUM_STEPS)
        assert tokens[row].tolist() == own[0].tolist()
        torch.testing.assert_close(together[row], alone[0], **EXACT)


def test_logits_depend_on_the_layer_at_which_tokens_are_dropped(family, inputs):
    """Otherwise the tests above could not fail."""
    suffix = family.build_prompt(QUESTION, CAMERAS).suffix
    results = []
    for prunes, layer in [(False, 0), (True, 0), (True, 1)]:
        paused = family.decoder.begin_prefill(inputs, layer)
        prefix = family.decoder.resume_prefill(
            paused, select(paused.visual_states) if prunes else None
        )
        text = family.embed_text(suffix, inputs.end_position)
        results.append(family.decoder.extend(prefix, [text])[1])
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.allclose(results[first], results[second], atol=1e-3)


def test_keeping_all_tokens_equals_no_pruning(family, inputs):
    suffix = family.build_prompt(QUESTION, CAMERAS).suffix
    text = family.embed_text(suffix, inputs.end_position)
    num_tokens = inputs.pictures[0].stop - inputs.pictures[0].start
    results = []
    for keep in (None, [torch.arange(num_tokens)] * len(CAMERAS)):
        prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs, 1), keep)
        results.append(family.decoder.extend(prefix, [text])[1])
    torch.testing.assert_close(*results, **EXACT)


def test_a_prune_layer_out_of_range_is_refused(family, inputs):
    with pytest.raises(ValueError, match='prune_layer: got 99, allowed: 0 to'):
        family.decoder.begin_prefill(inputs, 99)

"""Decoding in CUDA graphs: text, synchronisation and memory."""

import gc
import logging
import warnings

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.language_model.decode import Decoder, most_likely
from p2d_node.language_model.drafts import Drafter, PassCosts
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.generate import generate_greedy
import pytest
from tiny_checkpoints import WRITERS
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
]

DEVICE = torch.device('cuda', 0)
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
QUESTIONS = ('Is there a car?', 'why?', 'What should the ego vehicle do next?')
KEPT = (1, 5, 11)
NUM_TOKENS = 12
QWEN_VIEW = (24, 48)


@pytest.fixture(scope='module', params=WRITERS)
def folder(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope='module')
def llava(tmp_path_factory):
    return load(WRITERS['llava_llama'](tmp_path_factory.mktemp('llava')))


def load(folder, dtype=torch.float64):
    checkpoint = open_checkpoint(folder)
    view_size = QWEN_VIEW if 'qwen' in checkpoint.model_type else None
    return load_family(checkpoint, view_size=view_size, dtype=dtype, device=DEVICE)


def new_decoder(family, *, graphs):
    decoder = Decoder(family.decoder._model, family.decoder._lm_head)
    assert decoder.static_shapes  # the default on a GPU
    decoder.static_shapes = graphs
    return decoder


@torch.inference_mode()
def ask(family, decoder, *, questions=QUESTIONS, max_new_tokens=NUM_TOKENS, seed=0, prune_layer=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    weight = family._embed_tokens.weight
    num_deepstack = len(
        getattr(family._model.config.vision_config, 'deepstack_visual_indexes', ())
    )
    shape = (len(CAMERAS), family.grid[0] * family.grid[1], weight.shape[1] * (1 + num_deepstack))
    tokens = torch.randn(shape, generator=generator, device=DEVICE).to(weight.dtype)
    inputs = family.embed_prefix(family.build_prompt('why?', CAMERAS), tokens)
    keep = [torch.arange(count, device=DEVICE) for count in KEPT]
    prefix = decoder.resume_prefill(decoder.begin_prefill(inputs, prune_layer), keep)
    texts = [
        family.embed_text(family.build_prompt(question, CAMERAS).suffix, inputs.end_position)
        for question in questions
    ]
    return decoder.extend(prefix, texts, max_new_tokens=max_new_tokens)


def answer(family, decoder, asked, num_tokens=NUM_TOKENS):
    return generate_greedy(
        decoder, *asked, embed=family.embed, max_new_tokens=num_tokens, end_token_ids=()
    )


def answer_sweep(family, decoder, **views):
    return answer(family, decoder, ask(family, decoder, **views))


def ids(answers):
    return [answer.token_ids for answer in answers]


def num_graphs(decoder):
    states = decoder._states._states.values()
    return sum(step.graph is not None for state in states for step in state.passes.values())


@pytest.mark.parametrize('prune_layer', [0, 1])
def test_graphs_give_the_same_text_as_plain_steps_over_several_sweeps(folder, prune_layer):
    family = load(folder)
    plain, graphs = (new_decoder(family, graphs=graphs) for graphs in (False, True))
    texts = []
    for seed in range(3):
        for questions in (QUESTIONS, QUESTIONS[:1]):
            sweep = {'seed': seed, 'questions': questions, 'prune_layer': prune_layer}
            expected = answer_sweep(family, plain, **sweep)
            ours = answer_sweep(family, graphs, **sweep)
            assert ids(ours) == ids(expected)
            for a, e in zip(ours, expected, strict=True):
                assert a.mean_log_probability == pytest.approx(e.mean_log_probability, rel=1e-4)
            texts += ids(ours)
    assert num_graphs(graphs) == 2  # one per number of questions
    assert len(set(texts)) > 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_graphs(folder, dtype):
    family = load(folder, dtype)
    decoder = new_decoder(family, graphs=True)
    first, second = (answer_sweep(family, decoder) for _ in range(2))
    assert ids(first) == ids(second)
    assert num_graphs(decoder) == 1


def test_a_step_does_not_synchronize_and_an_answer_synchronizes_once_per_token(llava):
    decoder = new_decoder(llava, graphs=True)
    answer_sweep(llava, decoder)
    asked, logits = ask(llava, decoder)
    steps = decoder.begin_decode_loop(asked, llava.embed)
    tokens = most_likely(logits)[0].long().tolist()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for number in range(NUM_TOKENS - 1):
            steps.advance([number] * len(tokens), tokens)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    del asked, steps
    asked = ask(llava, decoder)
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            answer(llava, decoder, asked)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    waits = [w for w in caught if 'synchronizing CUDA operation' in str(w.message)]
    assert len(waits) == NUM_TOKENS


def test_a_replayed_step_allocates_nothing(llava):
    decoder = new_decoder(llava, graphs=True)
    answer_sweep(llava, decoder)
    asked, logits = ask(llava, decoder)
    steps = decoder.begin_decode_loop(asked, llava.embed)
    tokens = most_likely(logits)[0].long().tolist()
    count = torch.cuda.memory_stats()['allocation.all.allocated']
    for number in range(NUM_TOKENS - 1):
        steps.advance([number] * len(tokens), tokens)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()['allocation.all.allocated'] == count


def test_graphs_are_used_again_after_out_of_memory(llava):
    decoder = new_decoder(llava, graphs=True)
    expected = ids(answer_sweep(llava, decoder))
    with pytest.raises(torch.OutOfMemoryError):
        ask(llava, decoder, max_new_tokens=1 << 40)
    decoder.release()
    gc.collect()
    assert not decoder._cache_pool._buffers
    assert ids(answer_sweep(llava, decoder)) == expected
    assert num_graphs(decoder) == 1


def test_graphs_of_one_batch_do_not_write_into_another_batch(llava):
    decoder = new_decoder(llava, graphs=True)
    expected = ids(answer_sweep(llava, decoder))
    first, second = (ask(llava, decoder) for _ in range(2))
    assert ids(answer(llava, decoder, second)) == expected
    assert ids(answer(llava, decoder, first)) == expected


def test_graphs_are_captured_again_after_the_buffers_grow(llava):
    plain, graphs = (new_decoder(llava, graphs=graphs) for graphs in (False, True))
    for max_new_tokens in (NUM_TOKENS, 700, NUM_TOKENS):
        expected = answer_sweep(llava, plain, max_new_tokens=max_new_tokens)
        assert ids(answer_sweep(llava, graphs, max_new_tokens=max_new_tokens)) == ids(expected)
    assert num_graphs(graphs) == 2


def test_a_model_that_cannot_be_captured_is_decoded_without_graphs_and_logged_once(llava, caplog):
    """Some rotary embeddings read a value on the host, which a capture does not allow."""
    expected = ids(answer_sweep(llava, new_decoder(llava, graphs=False)))
    decoder = new_decoder(llava, graphs=True)
    head = decoder._lm_head

    def synchronizing_head(hidden):
        hidden.sum().item()
        return head(hidden)

    decoder._lm_head = synchronizing_head
    stream = torch.cuda.current_stream()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ids(answer_sweep(llava, decoder)) == expected
    assert torch.cuda.current_stream() == stream
    assert [r.getMessage().partition(',')[0] for r in caplog.records] == [
        'decoding without CUDA graphs'
    ]


@pytest.mark.parametrize('prune_layer', [0, 1])
def test_drafts_run_in_a_graph_of_their_own_and_change_no_answer(folder, prune_layer):
    family = load(folder)
    decoder = new_decoder(family, graphs=True)
    plain = answer_sweep(family, decoder, prune_layer=prune_layer)
    drafter = Drafter(PassCosts(any_length=False))
    for change in (lambda token: token, lambda token: token ^ 1):
        for question, generation in zip(QUESTIONS, plain, strict=True):
            drafter.end(question, [change(token) for token in generation.token_ids])
        drafts = drafter.begin('last_sweep', QUESTIONS, [(1,)] * len(QUESTIONS), 5)
        capacity = NUM_TOKENS + 5
        asked, logits = ask(family, decoder, max_new_tokens=capacity, prune_layer=prune_layer)
        ours = generate_greedy(
            decoder,
            asked,
            logits,
            embed=family.embed,
            max_new_tokens=NUM_TOKENS,
            end_token_ids=(),
            drafts=drafts,
        )
        assert ids(ours) == ids(plain)
        assert all(generation.passes.num_drafted for generation in ours)
    assert num_graphs(decoder) == 2  # of one token, and of six

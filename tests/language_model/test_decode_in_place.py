"""Decoding in static caches and with static shapes, for every family.

The reference is a growing cache, which `test_pruned_prefill` compares with a pass without cache.
"""

import gc
import weakref

from p2d_node.language_model.decode import Decoder, most_likely
from p2d_node.language_model.decode_loop import MAX_SHAPES
from p2d_node.language_model.generate import generate_greedy
from p2d_node.language_model.kv_cache import CachePool, CAPACITY_STEP, SHRINK_AFTER, StaticCache
import pytest
from tiny_checkpoints import load_float64, WRITERS
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

CPU = torch.device('cpu')
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
KEPT = (1, 5, 11)
QUESTIONS = ('Is there a car?', 'why?', 'What should the ego vehicle do next?')
NUM_TOKENS = 12


@pytest.fixture(scope='module', params=WRITERS)
def family(request, tmp_path_factory):
    return load_float64(WRITERS[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope='module')
def llava(tmp_path_factory):
    return load_float64(WRITERS['llava_llama'](tmp_path_factory.mktemp('llava')))


def new_decoder(family, *, static_shapes=False, make_cache=None):
    decoder = Decoder(family.decoder._model, family.decoder._lm_head, make_cache=make_cache)
    decoder.static_shapes = static_shapes
    return decoder


def prefill_views(family, decoder, *, prune_layer=0, kept=KEPT, seed=3):
    """Prefill three views; returns the prefix and the position of the next token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        features = family.vision_module(torch.zeros(1, 3, *family.view_size, dtype=torch.float64))
    shape = (len(CAMERAS), *features.shape[1:])
    tokens = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = family.embed_prefix(family.build_prompt('why?', CAMERAS), tokens)
    keep = [torch.arange(count) for count in kept]
    prefix = decoder.resume_prefill(decoder.begin_prefill(inputs, prune_layer), keep)
    return prefix, inputs.end_position


def ask(family, decoder, prefix, position, questions=QUESTIONS, max_new_tokens=NUM_TOKENS):
    texts = [
        family.embed_text(family.build_prompt(question, CAMERAS).suffix, position)
        for question in questions
    ]
    return decoder.extend(prefix, texts, max_new_tokens=max_new_tokens)


def answer(family, decoder, asked, logits, num_tokens=NUM_TOKENS):
    return generate_greedy(
        decoder,
        asked,
        logits,
        embed=family.embed,
        max_new_tokens=num_tokens,
        end_token_ids=(),
    )


def answer_sweep(family, decoder, *, questions=QUESTIONS, num_tokens=NUM_TOKENS, **views):
    asked = ask(family, decoder, *prefill_views(family, decoder, **views), questions, num_tokens)
    return answer(family, decoder, *asked, num_tokens)


def assert_equal_answers(ours, expected):
    assert [a.token_ids for a in ours] == [e.token_ids for e in expected]
    for a, e in zip(ours, expected, strict=True):
        assert a.mean_log_probability == pytest.approx(e.mean_log_probability, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('prune_layer', [0, 1])
@pytest.mark.parametrize('static_shapes', [False, True])
def test_answers_equal_those_of_a_growing_cache(family, static_shapes, prune_layer):
    growing = new_decoder(family, make_cache=DynamicCache)
    decoder = new_decoder(family, static_shapes=static_shapes)
    for questions in (QUESTIONS, QUESTIONS[:1]):  # with padding and without
        views = {'questions': questions, 'prune_layer': prune_layer}
        expected = answer_sweep(family, growing, **views)
        assert_equal_answers(answer_sweep(family, decoder, **views), expected)
        assert len({token for e in expected for token in e.token_ids}) > 3


@pytest.mark.parametrize('prune_layer', [0, 1, 2])
def test_static_steps_have_the_logits_of_a_growing_cache(family, prune_layer):
    """In float64, over rows with padding, with tokens that the model would not choose."""
    results = []
    for static_shapes in (True, False):
        head = RecordingHead(family.decoder._lm_head)
        make_cache = None if static_shapes else DynamicCache
        decoder = Decoder(family.decoder._model, head, make_cache=make_cache)
        decoder.static_shapes = static_shapes
        asked, _ = ask(family, decoder, *prefill_views(family, decoder, prune_layer=prune_layer))
        assert asked.is_real is not None
        steps = decoder.begin_decode_loop(asked, family.embed)
        for step in range(NUM_TOKENS):
            tokens = torch.arange(len(QUESTIONS))[:, None] + step
            if static_shapes:
                best = steps.advance([step] * len(QUESTIONS), tokens.tolist())[0]
                assert best.tolist() == head.logits[-1].argmax(dim=-1).tolist()
            else:
                asked, _ = decoder.step(asked, family.embed(tokens))
        results.append(torch.stack(head.logits))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


class RecordingHead(torch.nn.Module):
    """An output layer that records its logits."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.logits = []

    def forward(self, hidden):
        self.logits.append(self.head(hidden))
        return self.logits[-1]


def test_empty_columns_are_not_read(llava):
    expected = answer_sweep(llava, new_decoder(llava, make_cache=DynamicCache))
    for static_shapes in (False, True):
        decoder = new_decoder(llava, static_shapes=static_shapes)
        answer_sweep(llava, decoder)
        with torch.inference_mode():
            for buffer in decoder._cache_pool._buffers.values():
                buffer.fill_(torch.nan)
        assert_equal_answers(answer_sweep(llava, decoder), expected)


def test_buffers_are_reused_and_grow_if_necessary(llava):
    decoder = new_decoder(llava)

    def buffers():
        return {i: (b.data_ptr(), b.numel()) for i, b in decoder._cache_pool._buffers.items()}

    answer_sweep(llava, decoder)
    first = buffers()
    assert len(first) == decoder.num_layers
    answer_sweep(llava, decoder, seed=4, questions=QUESTIONS[:2])
    answer_sweep(llava, decoder, seed=5)
    assert buffers() == first
    answer_sweep(llava, decoder, questions=QUESTIONS * 2)
    grown = buffers()
    assert all(grown[i][1] == 2 * first[i][1] for i in first)
    answer_sweep(llava, decoder)
    assert buffers() == grown


def test_a_second_batch_does_not_overwrite_a_cache_in_use(llava):
    decoder = new_decoder(llava)
    views = prefill_views(llava, decoder)
    expected = answer(llava, decoder, *ask(llava, decoder, *views))
    first = ask(llava, decoder, *views)
    second = ask(llava, decoder, *views, QUESTIONS[::-1])
    assert_equal_answers(answer(llava, decoder, *second), expected[::-1])
    assert_equal_answers(answer(llava, decoder, *first), expected)


def test_steps_of_two_batches_may_alternate(llava):
    decoder = new_decoder(llava, static_shapes=True)
    views = prefill_views(llava, decoder)
    batches = [
        ask(llava, decoder, *views, questions) for questions in (QUESTIONS, QUESTIONS[::-1])
    ]
    runs = [decoder.begin_decode_loop(asked, llava.embed) for asked, _ in batches]
    chosen = [[most_likely(logits)] for _, logits in batches]
    for step in range(NUM_TOKENS - 1):
        for run, choices in zip(runs, chosen, strict=True):
            num_cached, last = [step] * len(QUESTIONS), choices[-1][0].long().tolist()
            choices.append(run.advance(num_cached, last).clone())
    tokens = [torch.cat(list(choices), dim=2)[0].long().tolist() for choices in chosen]
    expected = [list(a.token_ids) for a in answer_sweep(llava, new_decoder(llava))]
    assert tokens == [expected, expected[::-1]]


@pytest.mark.parametrize('static_shapes', [False, True])
def test_release_frees_all_buffers_and_the_next_sweep_works(llava, static_shapes):
    decoder = new_decoder(llava, static_shapes=static_shapes)
    expected = answer_sweep(llava, decoder)
    held = [weakref.ref(buffer) for buffer in decoder._cache_pool._buffers.values()]
    held += [weakref.ref(state) for state in decoder._states._states.values()]
    assert len(held) == decoder.num_layers + 1
    decoder.release()
    gc.collect()
    assert all(ref() is None for ref in held)
    assert_equal_answers(answer_sweep(llava, decoder), expected)


def test_cached_buffers_do_not_keep_the_model_alive(tmp_path):
    """A node that loads another model needs the memory of the first one immediately."""
    family = load_float64(WRITERS['llava_llama'](tmp_path))
    family.decoder.static_shapes = True
    answer_sweep(family, family.decoder)
    held = weakref.ref(family._embed_tokens.weight)
    gc.disable()
    try:
        del family
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize('static_shapes', [False, True])
def test_more_tokens_than_the_capacity_are_refused(llava, static_shapes):
    decoder = new_decoder(llava, static_shapes=static_shapes)
    asked, logits = ask(llava, decoder, *prefill_views(llava, decoder), max_new_tokens=1)
    assert isinstance(asked.cache, StaticCache)
    with pytest.raises(ValueError, match=r'cache: got .*; acquire a larger cache'):
        answer(llava, decoder, asked, logits, num_tokens=CAPACITY_STEP + 2)


def test_without_reserved_capacity_the_cache_grows(llava):
    decoder = new_decoder(llava, static_shapes=True)
    asked, logits = ask(llava, decoder, *prefill_views(llava, decoder), max_new_tokens=0)
    assert isinstance(asked.cache, DynamicCache)
    assert not decoder._cache_pool._buffers
    expected = answer_sweep(llava, new_decoder(llava))
    assert_equal_answers(answer(llava, decoder, asked, logits), expected)


def test_cached_shapes_are_limited_and_dropped_with_their_buffers(llava):
    decoder = new_decoder(llava, static_shapes=True)
    shapes = decoder._states._states
    answer_sweep(llava, decoder, questions=['why?'] * (MAX_SHAPES + 2))
    (largest,) = shapes.values()
    for count in range(1, MAX_SHAPES + 2):
        answer_sweep(llava, decoder, questions=['why?'] * count, num_tokens=2)
        answer_sweep(llava, decoder, questions=['why?'] * count, num_tokens=2)
        assert len(shapes) == min(count + 1, MAX_SHAPES)
    assert largest not in shapes.values()
    assert {shape.num_rows for shape in shapes} == set(range(2, MAX_SHAPES + 2))
    answer_sweep(llava, decoder, questions=['why?'] * 30, num_tokens=2)
    assert [shape.num_rows for shape in shapes] == [30]


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_decoding_continues_without_capture_and_logs_it_once(llava, monkeypatch, caplog):
    expected = answer_sweep(llava, new_decoder(llava))
    decoder = new_decoder(llava, static_shapes=True)
    run = decoder._states.run

    def run_and_capture(step, compute):
        run(step, compute)
        if decoder._states._can_capture:
            step.graph = decoder._states._capture(compute, CPU)

    monkeypatch.setattr(decoder._states, 'run', run_and_capture)
    for _ in range(2):
        assert_equal_answers(answer_sweep(llava, decoder), expected)
    (record,) = caplog.records
    assert record.getMessage().startswith('decoding without CUDA graphs, which is slower: ')


class LargestAllocation(TorchDispatchMode):
    """Records the size in bytes of the largest storage that an operation allocated."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if is_tensor(a)]
        self._known = {a.untyped_storage().data_ptr() for a in inputs}
        output = func(*args, **(kwargs or {}))
        for tensor in filter(is_tensor, torch.utils._pytree.tree_leaves(output)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._known:
                self.num_bytes = max(self.num_bytes, storage.nbytes())
        return output


def is_tensor(value):
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize('cache', ['static', 'static shapes', 'growing'])
def test_a_step_allocates_no_tensor_of_the_size_of_the_cache(llava, cache):
    """Only a growing cache is copied with every token."""
    make_cache = DynamicCache if cache == 'growing' else None
    decoder = new_decoder(llava, static_shapes=cache == 'static shapes', make_cache=make_cache)
    views = prefill_views(llava, decoder, kept=(25, 25, 25))
    asked, logits = ask(llava, decoder, *views, ['why?'])
    keys = asked.cache.layers[0].keys[:, :, : asked.cache.get_seq_length(0)]
    size = keys.numel() * keys.element_size()
    logits_size = logits.numel() * 8
    assert logits_size < size / 2
    with LargestAllocation() as largest:
        answer(llava, decoder, asked, logits)
    assert (largest.num_bytes >= size) == (cache == 'growing')


def test_buffers_shrink_once_a_burst_is_over():
    pool = CachePool()
    prefix = DynamicCache()
    prefix.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)

    def held() -> int:
        return sum(buffer.numel() for buffer in pool._buffers.values())

    pool.acquire(prefix, 1, 8)
    usual = held()
    pool.acquire(prefix, 16, 8)
    assert held() == 16 * usual
    for _ in range(SHRINK_AFTER):
        pool.acquire(prefix, 1, 8)
        assert held() == 16 * usual
    pool.acquire(prefix, 1, 8)
    assert held() == usual
    for _ in range(2 * SHRINK_AFTER):  # bursts that come again keep their buffers
        pool.acquire(prefix, 1, 8)
        pool.acquire(prefix, 16, 8)
    version = pool.acquire(prefix, 16, 8).version
    for _ in range(SHRINK_AFTER):
        pool.acquire(prefix, 9, 8)
    assert pool.acquire(prefix, 16, 8).version == version

"""What ends or bounds an answer: stop texts, choices, streaming, and memory that runs out."""

from dataclasses import replace
import gc
import math
import weakref

from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, InferenceError
from p2d_node.language_model.generate import cut_at
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import Cut, DrivingChoice
import pytest
from sweeps import make_frame_set
import torch

QUESTION = 'What should the ego vehicle do next?'
CHOICES = ('keep speed', 'keep', 'slow down', 'stop', 'turn and turn and turn')


@pytest.fixture(scope='module')
def config(tiny_checkpoint):
    return DriveConfig(
        model=str(tiny_checkpoint), device='cpu', dtype='float64', max_new_tokens=12
    )


@pytest.fixture(scope='module')
def pipeline(config):
    pipeline = DrivingPipeline.from_config(config)
    yield pipeline
    pipeline.close()


@pytest.fixture(autouse=True)
def _reset(pipeline, config):
    pipeline.reconfigure(config)


def test_text_is_cut_at_the_first_of_the_stop_texts():
    assert cut_at('one two three', []) == 'one two three'
    assert cut_at('one two three', ['three', ' two']) == 'one'
    assert cut_at('one', ['four']) == 'one'


def test_an_answer_ends_where_a_stop_text_appears(pipeline, config):
    (full,) = pipeline.answer(make_frame_set(), [QUESTION])
    words = full.answer.split()
    mark = next(word for word in words[2:] if word not in words[:2])
    pipeline.reconfigure(replace(config, stop=('never said', mark)))
    (stopped,) = pipeline.answer(make_frame_set(), [QUESTION])
    assert stopped.cut is Cut.STOP
    assert stopped.answer == full.answer[: full.answer.index(mark)].strip()
    assert stopped.num_generated_tokens < full.num_generated_tokens


def test_a_stop_text_ends_only_the_answer_it_appears_in(pipeline, config):
    questions = [QUESTION, 'why?', 'Is there a car?']
    full = pipeline.answer(make_frame_set(), questions)
    alone = {word for answer in full[1:] for word in answer.answer.split()}
    mark = next(word for word in full[0].answer.split() if word not in alone)
    pipeline.reconfigure(replace(config, stop=(mark,)))
    stopped = pipeline.answer(make_frame_set(), questions)
    assert [answer.cut for answer in stopped] == [Cut.STOP, full[1].cut, full[2].cut]
    assert [a.answer for a in stopped[1:]] == [a.answer for a in full[1:]]


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ConfigError, match='stop: got an empty text'):
        DriveConfig(stop=('',))


def test_answers_are_told_while_they_grow(pipeline):
    told: dict[str, list[str]] = {}
    questions = [QUESTION, 'why?']
    answers = pipeline.answer(
        make_frame_set(),
        questions,
        on_partial=lambda question, text: told.setdefault(question, []).append(text),
    )
    for answer in answers:
        texts = told[answer.question]
        assert len(texts) >= answer.num_generated_tokens - 1
        assert texts[-1] == answer.answer
        assert all(answer.answer.startswith(text) for text in texts)
        assert [len(text) for text in texts] == sorted(len(text) for text in texts)


def answer_log_likelihood(pipeline, monkeypatch, text):
    """Log likelihood of one answer: its tokens are put in the place of the likeliest ones."""
    from p2d_node.language_model import decode, generate

    ids = [*pipeline._language_model._family.tokenize(text), None]
    scores = []

    def forced(logits):
        log_probabilities = logits.double().log_softmax(dim=-1)[0, 0]
        ends = list(pipeline._language_model._family.end_token_ids)
        token = ids[len(scores)]
        if token is None:
            scores.append(log_probabilities[ends].logsumexp(dim=0).item())
            token = ends[0]
        else:
            scores.append(log_probabilities[token].item())
        return torch.tensor([[[token]], [[0.0]]], dtype=torch.float64)

    with monkeypatch.context() as patch:
        patch.setattr(generate, 'most_likely', forced)
        patch.setattr(decode, 'most_likely', forced)
        pipeline.reconfigure(replace(pipeline.config, drafts='none'))
        pipeline.answer(make_frame_set(), [QUESTION])
    return sum(scores)


def test_choices_have_the_likelihood_of_being_the_whole_answer(pipeline, monkeypatch):
    choice = pipeline.choose(make_frame_set(), QUESTION, CHOICES)
    for text in CHOICES:
        expected = answer_log_likelihood(pipeline, monkeypatch, text)
        assert choice.log_likelihoods[text] == pytest.approx(expected, rel=1e-9)
    assert sum(choice.probabilities.values()) == pytest.approx(1.0)
    assert choice.choice == max(CHOICES, key=lambda text: choice.probabilities[text])
    assert set(choice.tokens_kept.values()) == {8}
    assert 'untrained' in choice.model


def test_probabilities_of_unlikely_choices_do_not_underflow():
    choice = DrivingChoice(
        stamp_ns=0,
        question='',
        model='',
        log_likelihoods={'a': -2000.0, 'b': -2000.0 - math.log(3)},
        tokens_kept={},
    )
    assert choice.probabilities == pytest.approx({'a': 0.75, 'b': 0.25})


@pytest.mark.parametrize('choices', [[], ['A', 'A'], ['A', '']])
def test_choices_that_cannot_be_scored_are_refused(pipeline, choices):
    with pytest.raises(ConfigError, match='allowed: different, not empty'):
        pipeline.choose(make_frame_set(), QUESTION, choices)


def test_when_memory_runs_out_nothing_is_kept_and_the_next_sweep_is_answered(
    pipeline, config, monkeypatch
):
    pipeline.reconfigure(replace(config, drafts='none'))
    expected = pipeline.answer(make_frame_set(), [QUESTION])[0].answer
    held = []
    decoder = pipeline._language_model._family.decoder
    run_pass = decoder._run_pass

    def run_out(*args, cache, **options):
        held.extend(weakref.ref(layer.keys) for layer in cache.layers)
        held.extend(weakref.ref(buffer) for buffer in decoder._cache_pool._buffers.values())
        torch.empty(1 << 60)  # the allocator's own refusal
        return run_pass(*args, cache=cache, **options)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, '_run_pass', run_out)
        with pytest.raises(InferenceError, match=r'allocate memory.*; lower retention') as caught:
            pipeline.answer(make_frame_set(), [QUESTION])
    gc.collect()
    assert len(held) == 2 * decoder.num_layers
    assert caught.value.__cause__ is not None  # still held, with its traceback
    assert all(ref() is None for ref in held)
    assert pipeline.answer(make_frame_set(), [QUESTION])[0].answer == expected

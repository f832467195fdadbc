"""Answers with drafts are those of plain greedy decoding, whatever the drafts say."""

from dataclasses import replace
import random

from p2d_node.config import DriveConfig
from p2d_node.language_model.conversation import Conversation, DraftSettings, Limits
from p2d_node.language_model.drafts import Draft, Drafter, MAX_QUESTIONS_KEPT, PassCosts
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import Cut
from p2d_node.units import NS_PER_S
import pytest
from sweeps import make_frame_set
from tiny_checkpoints import load_float64, WRITERS
import torch

CPU = torch.device('cpu')
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
QUESTIONS = ('Is there a car?', 'why?', 'What should the ego vehicle do next?')
NUM_TOKENS = 14
FREE = PassCosts()
"""With these costs the longest draft is always the best one."""


@pytest.fixture(scope='module', params=WRITERS)
def family(request, tmp_path_factory):
    return load(WRITERS[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope='module')
def llava(tmp_path_factory):
    return load(WRITERS['llava_llama'](tmp_path_factory.mktemp('llava')))


def load(folder):
    family = load_float64(folder)
    family.end_token_ids = ()  # a random model would end most answers at once
    return family


class Sweep:
    """One sweep of random visual tokens, and a conversation about it."""

    def __init__(self, family, *, prune_layer=0, static_shapes=False, costs=FREE):
        family.decoder.static_shapes = static_shapes
        self.talk = Conversation(family, model_name='tiny', cameras=CAMERAS, num_visual_tokens=300)
        self.talk.drafter = self.drafter = Drafter(costs)
        self.answers = {}
        self._family = family
        self._prune_layer = prune_layer
        with torch.inference_mode():
            features = family.vision_module(
                torch.zeros(1, 3, *family.view_size, dtype=torch.float64)
            )
        generator = torch.Generator().manual_seed(3)
        shape = (len(CAMERAS), *features.shape[1:])
        self._tokens = torch.randn(shape, generator=generator, dtype=torch.float64)

    def answer(self, *, source='none', max_tokens=5, questions=QUESTIONS, **limits):
        """Return the answers; with drafts from `answers` before, if the source is not none."""
        talk, on_partial = self.talk, limits.pop('on_partial', None)
        limits = Limits(**{'max_new_tokens': NUM_TOKENS, **limits})
        paused = talk.begin(questions, CAMERAS, self._tokens, self._prune_layer)
        shared = talk.resume(paused, [torch.arange(count) for count in (1, 5, 11)])
        (batch,) = shared.batches(0, len(questions), 16)
        asked = talk.ask(
            shared,
            batch,
            max_new_tokens=limits.max_new_tokens,
            drafting=DraftSettings(source=source, max_tokens=max_tokens),
        )
        return talk.generate(asked, limits, on_partial)

    def remember(self, change) -> None:
        """Change what is kept of every answer, its token ids."""
        for question, memory in list(self.drafter._memories.items()):
            self.drafter.end(question, tuple(change(list(memory.answer))))


def assert_same(ours, plain):
    for mine, other in zip(ours, plain, strict=True):
        assert (mine.text, mine.num_tokens, mine.cut) == (other.text, other.num_tokens, other.cut)
        assert mine.mean_log_probability == pytest.approx(other.mean_log_probability, rel=1e-9)


def absurd(tokens):
    numbers = random.Random(len(tokens))
    return [numbers.randrange(60) for _ in tokens]


CHANGES = {
    'right': lambda tokens: tokens,
    'wrong': lambda tokens: [token + 1 if token < 50 else token - 1 for token in tokens],
    'absurd': absurd,
    'one wrong': lambda tokens: [*tokens[:5], tokens[5] ^ 1, *tokens[6:]],
    'one missing': lambda tokens: [*tokens[:4], *tokens[5:]],
    'one more': lambda tokens: [*tokens[:4], 7, *tokens[4:]],
    'longer': lambda tokens: tokens * 3,
    'shorter': lambda tokens: tokens[:3],
    'empty': lambda tokens: [],
}


@pytest.mark.slow
@pytest.mark.parametrize('prune_layer', [0, 1, 2])
def test_answers_equal_plain_decoding_whatever_the_drafts_say(family, prune_layer):
    sweep = Sweep(family, prune_layer=prune_layer)
    plain = sweep.answer()
    assert len({answer.text for answer in plain}) == len(QUESTIONS)
    for name, change in CHANGES.items():
        sweep.answer(source='last_sweep')
        sweep.remember(change)
        ours = sweep.answer(source='last_sweep')
        assert_same(ours, plain)
        passes = [answer.passes.num_passes for answer in ours]
        if name == 'right':
            assert passes == [3] * len(QUESTIONS)  # of 6 tokens, 6 and 2
        if name in {'one wrong', 'one missing', 'one more'}:
            assert sum(passes) < 2 * NUM_TOKENS  # plain: 3 * NUM_TOKENS
        if name == 'wrong':
            assert all(answer.passes.num_drafted for answer in ours)
    assert [answer.passes.num_passes for answer in plain] == [NUM_TOKENS] * len(QUESTIONS)


@pytest.mark.parametrize('any_length', [False, True])
@pytest.mark.parametrize('source', ['last_sweep', 'prompt_lookup'])
def test_static_shapes_and_other_sources_give_the_same_answers(llava, source, any_length):
    costs = PassCosts(any_length=any_length)
    for questions in (QUESTIONS, QUESTIONS[:1], QUESTIONS * 2):
        sweep = Sweep(llava, static_shapes=not any_length, costs=costs)
        plain = sweep.answer(questions=questions)
        for change in CHANGES.values():
            sweep.answer(source=source, questions=questions)
            sweep.remember(change)
            assert_same(sweep.answer(source=source, questions=questions), plain)


@pytest.mark.parametrize('num_tokens', [1, 2, 3, 7])
def test_the_length_limit_holds_inside_a_draft(llava, num_tokens):
    sweep = Sweep(llava)
    sweep.answer(source='last_sweep')
    plain = sweep.answer(max_new_tokens=num_tokens)
    sweep.remember(lambda tokens: tokens)
    ours = sweep.answer(source='last_sweep', max_new_tokens=num_tokens)
    assert_same(ours, plain)
    assert [answer.num_tokens for answer in ours] == [num_tokens] * len(QUESTIONS)


def test_stop_texts_and_end_tokens_end_an_answer_inside_its_draft(llava):
    sweep = Sweep(llava)
    full = sweep.answer(source='last_sweep')
    ids = sweep.drafter._memories[QUESTIONS[2]].answer
    marks = tuple(answer.text.split()[3] for answer in full[:2])
    drafted = sweep.answer(source='last_sweep', stop=marks)
    assert [answer.cut for answer in drafted[:2]] == [Cut.STOP, Cut.STOP]
    assert drafted[0].passes.num_passes < drafted[0].num_tokens
    assert_same(drafted, Sweep(llava).answer(stop=marks))
    llava.end_token_ids = (ids[4],)
    try:
        plain = Sweep(llava).answer()
        sweep.answer(source='last_sweep')
        sweep.remember(lambda tokens: tokens * 2)
        ours = sweep.answer(source='last_sweep')
    finally:
        llava.end_token_ids = ()
    assert_same(ours, plain)
    assert Cut.END in {answer.cut for answer in ours}


def test_a_deadline_cuts_an_answer_to_a_beginning_of_it(llava):
    sweep = Sweep(llava)
    full = sweep.answer(source='last_sweep')
    calls = iter([False, True])
    ours = sweep.answer(source='last_sweep', must_stop=lambda: next(calls))
    for answer, whole in zip(ours, full, strict=True):
        assert answer.cut is Cut.DEADLINE
        assert answer.num_tokens == 12  # two passes of six tokens
        assert whole.text.startswith(answer.text)


def test_partial_answers_are_those_of_plain_decoding(llava):
    def partials(**options):
        heard = []
        sweep = Sweep(llava)
        sweep.answer(source='last_sweep')
        sweep.answer(on_partial=lambda *partial: heard.append(partial), **options)
        return {q: [text for question, text in heard if question == q] for q in QUESTIONS}

    assert partials(source='last_sweep') == partials()


def test_a_draft_goes_on_where_the_answer_meets_it_again():
    def after(draft, *tokens):
        for token in tokens:
            draft.follow(token)
        return list(draft.peek(3))

    text = [1, 2, 3, 4, 5, 6, 7]
    assert after(Draft([text], aligned=True)) == [1, 2, 3]
    assert after(Draft([text], aligned=True), 1, 2) == [3, 4, 5]
    # One token is another: the draft goes on behind it.
    assert after(Draft([text], aligned=True), 1, 9) == [3, 4, 5]
    # Two tokens more, or three less: it goes on where the last two tokens occur next.
    assert after(Draft([text], aligned=True), 1, 8, 9, 2, 3) == [4, 5, 6]
    assert after(Draft([text], aligned=True), 1, 5, 6) == [7]
    assert after(Draft([text], aligned=True), *text, 8) == []
    # Unaligned: nothing until two tokens occur in one of the texts, the last text first.
    texts = [[7, 1, 2, 5], [3, 4, 1, 2, 9]]
    assert after(Draft(texts, aligned=False), 1) == []
    assert after(Draft(texts, aligned=False), 1, 2) == [9]
    assert after(Draft(texts, aligned=False), 7, 1) == [2, 5]
    assert after(Draft(texts, aligned=False), 7, 1, 3) == []


COSTS = PassCosts(several=1.45, per_token=0.055)


def best_length(*rows, limit=8, costs=COSTS):
    return costs.best_length(rows, num_tokens=len(rows), tokens_per_length=len(rows), limit=limit)


def test_the_length_of_drafts_follows_their_worth():
    assert best_length((1.0, 8)) == 8
    assert best_length((1.0, 3)) == 3
    assert 1 <= best_length((0.5, 8)) <= 4
    assert best_length((0.3, 8)) == 0
    # Other rows pay for a draft that only one answer has.
    assert best_length((0.7, 8), *[(0.0, 8)] * 3) < best_length((0.7, 8))
    fixed = PassCosts(per_token=0.001, any_length=False)
    assert {best_length((p, 8), costs=fixed) for p in (0.0, 0.2, 1.0)} == {0, 8}
    assert best_length((1.0, 1), limit=8, costs=fixed) == 8


def test_drafts_that_are_never_right_are_soon_no_longer_tried():
    drafter = Drafter(COSTS)
    drafter.end('why?', [1] * 100)
    drafts = drafter.begin('last_sweep', ['why?'], [[5]], 8)
    num_drafted = []
    for _ in range(40):
        drafts.propose(1, [90])
        num_drafted.append(len(drafts.proposed[0]))
        drafts.follow(0, 2)
    assert num_drafted[0] > 0
    assert num_drafted[10:] == [0] * 30
    # What they would have said is still compared, so that drafts begin again.
    drafter.end('why?', [1] * 100)
    drafts = drafter.begin('last_sweep', ['why?'], [[5]], 8)
    for _ in range(10):
        drafts.propose(1, [90])
        drafts.follow(0, 1)
    drafts.propose(1, [90])
    assert len(drafts.proposed[0]) == 8


def test_answers_of_a_bounded_number_of_questions_are_kept():
    drafter = Drafter(FREE)
    for number in range(3 * MAX_QUESTIONS_KEPT):
        drafter.end(str(number), [number])
        drafter.begin_sweep()
    assert len(drafter._memories) == MAX_QUESTIONS_KEPT
    assert drafter._answers == []


@pytest.fixture
def config(tiny_checkpoint):
    return DriveConfig(model=str(tiny_checkpoint), device='cpu', dtype='float64')


def test_the_next_sweep_needs_fewer_passes_until_time_or_questions_change(config):
    pipeline = DrivingPipeline.from_config(config)
    first, second, later = (
        replace(make_frame_set(), stamp_ns=second * NS_PER_S) for second in (1, 2, 3)
    )

    def passes(frame_set, questions=QUESTIONS):
        answers = pipeline.answer(frame_set, questions)
        return sum(answer.passes.num_passes for answer in answers)

    most = passes(first)
    assert passes(second) < most / 2
    assert passes(first) == most  # time has jumped back
    assert passes(later) < most / 2
    pipeline.reconfigure(replace(config, questions=('why?',)))
    assert passes(later) == most
    pipeline.close()

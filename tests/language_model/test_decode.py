"""Decoding against `generate` of transformers, and the ends of answers."""

import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.conversation import QuestionBatch, SharedPrefix
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.generate import generate_greedy
from p2d_node.language_model.input_sequence import drop_tokens
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import Cut
import pytest
from sweeps import make_frame_set
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

CPU = torch.device('cpu')
QUESTION = 'What should the ego vehicle do next?'
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
MAX_NEW_TOKENS = 24


@pytest.fixture(scope='module')
def family(tiny_checkpoint):
    return load_family(open_checkpoint(tiny_checkpoint), dtype=torch.float64, device=CPU)


@pytest.fixture(scope='module')
def pixel_values(tiny_checkpoint):
    processing = ImageProcessing.from_folder(tiny_checkpoint)
    frames = make_frame_set(CAMERAS).frames.values()
    squares = [resize_frame(decode_frame(frame), processing) for frame in frames]
    return normalize(squares, processing, CPU)


@pytest.fixture(scope='module')
def visual_tokens(family, pixel_values):
    with torch.inference_mode():
        return family.vision_module(pixel_values.double())


def start(family, visual_tokens, keep):
    prompt = family.build_prompt(QUESTION, CAMERAS)
    inputs = family.embed_prefix(prompt, visual_tokens)
    return inputs.end_position, family.decoder.resume_prefill(
        family.decoder.begin_prefill(inputs), keep
    )


def generate(family, position, prefix, question=QUESTION, max_new_tokens=MAX_NEW_TOKENS, **limits):
    prompt = family.build_prompt(question, CAMERAS)
    asked, logits = family.decoder.extend(prefix, [family.embed_text(prompt.suffix, position)])
    limits = {'end_token_ids': family.end_token_ids, **limits}
    (answer,) = generate_greedy(
        family.decoder,
        asked,
        logits,
        embed=family.embed,
        max_new_tokens=max_new_tokens,
        **limits,
    )
    return answer


def keep_all(visual_tokens):
    return [torch.arange(visual_tokens.shape[1]) for _ in visual_tokens]


def keep_some(visual_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = (8, 3, 20)
    return [
        torch.randperm(visual_tokens.shape[1], generator=generator)[:count].sort().values
        for count in counts
    ]


def test_without_pruning_the_answer_equals_that_of_transformers_generate(
    family, tiny_checkpoint, pixel_values, visual_tokens
):
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tiny_checkpoint, dtype=torch.float64
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    position, prefix = start(family, visual_tokens, keep_all(visual_tokens))
    num_tokens = visual_tokens.shape[1] + 1
    input_ids = []
    for segment in prompt.segments:
        input_ids += [*segment, *[model.config.image_token_id] * num_tokens]
    input_ids = torch.tensor([[*input_ids, *prompt.suffix]])
    expected = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values=pixel_values.double()[:, None],
        image_sizes=torch.tensor([[90, 160]] * len(CAMERAS)),
        batch_num_images=torch.tensor([len(CAMERAS)]),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
    )[0, input_ids.shape[1] :].tolist()
    ours = generate(family, position, prefix)
    assert list(ours.token_ids) == expected
    assert family.detokenize(ours.token_ids) == tokenizer.decode(
        expected, skip_special_tokens=True
    )
    assert len(set(expected)) > 3  # not one repeated token


def test_kept_tokens_and_newlines_keep_their_original_positions(family, visual_tokens):
    keep = keep_some(visual_tokens)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    inputs = drop_tokens(family.embed_prefix(prompt, visual_tokens), keep)
    num_tokens = visual_tokens.shape[1]
    base = len(prompt.segments[0])
    expected = list(range(base))
    for view, kept in enumerate(keep):
        first = base + view * (num_tokens + 1)
        expected += [*(kept + first).tolist(), first + num_tokens]
    assert inputs.positions[0].tolist() == expected
    assert inputs.end_position == base + len(CAMERAS) * (num_tokens + 1)
    first_view = inputs.hidden_states[0, base : base + len(keep[0])]
    torch.testing.assert_close(first_view, visual_tokens[0][keep[0]], rtol=0, atol=0)


def test_dropping_tokens_changes_the_answer(family, visual_tokens):
    answers = [
        generate(family, *start(family, visual_tokens, keep))
        for keep in (keep_all(visual_tokens), keep_some(visual_tokens))
    ]
    assert answers[0].token_ids != answers[1].token_ids


def test_questions_on_one_prefix_do_not_affect_each_other(family, visual_tokens):
    questions = (QUESTION, 'Is there a car?', QUESTION)
    keep = keep_some(visual_tokens)
    shared = start(family, visual_tokens, keep)
    together = [generate(family, *shared, question) for question in questions]
    alone = [generate(family, *start(family, visual_tokens, keep), q) for q in questions]
    assert together == alone
    assert together[0] == together[2] != together[1]


def test_generation_stops_at_every_kind_of_limit_and_reports_it(family, visual_tokens):
    asked = start(family, visual_tokens, keep_some(visual_tokens))
    full = generate(family, *asked)
    assert full.cut in (Cut.LENGTH, Cut.END)
    cut = generate(family, *asked, must_stop=lambda: True)
    assert (cut.cut, cut.token_ids) == (Cut.DEADLINE, full.token_ids[:1])
    short = generate(family, *asked, max_new_tokens=2)
    assert (short.cut, short.token_ids) == (Cut.LENGTH, full.token_ids[:2])
    ended = generate(family, *asked, max_new_tokens=8, end_token_ids=full.token_ids[1:2])
    assert ended.cut is Cut.END
    assert ended.token_ids == full.token_ids[: len(ended.token_ids)]
    assert np.isfinite(ended.mean_log_probability)
    stopped = generate(family, *asked, ends_answer=lambda token_ids: len(token_ids) == 3)
    assert (stopped.cut, stopped.token_ids) == (Cut.STOP, full.token_ids[:3])


@pytest.mark.attack(
    'a peer sets one question of 4,000 characters and many short ones, which a batch pads to it',
    'a batch has up to 4,096 tokens with its padding; a longer question is asked alone',
)
@pytest.mark.parametrize(
    ('lengths', 'expected'),
    [
        ([10] * 5, [2, 2, 1]),
        ([4000, 10, 10, 10], [1, 2, 1]),
        ([10, 10, 9000, 10], [2, 1, 1]),
        ([2049, 2049], [1, 1]),
        ([2048, 2048, 1], [2, 1]),
        ([], []),
    ],
)
def test_a_batch_has_a_largest_size_with_its_padding(lengths, expected):
    names = tuple(map(str, range(len(lengths))))
    batch = QuestionBatch(names, tuple((0,) * length for length in lengths))
    shared = SharedPrefix(prefix=None, end_position=0, batch=batch)
    batches = list(shared.batches(0, len(lengths), 2))
    assert [len(batch.questions) for batch in batches] == expected
    assert tuple(name for batch in batches for name in batch.questions) == names
    assert [len(ids) for batch in batches for ids in batch.endings] == lengths
    assert not [*shared.batches(1, 1, 2)]


def test_answers_of_a_batch_end_independently(family, visual_tokens):
    position, prefix = start(family, visual_tokens, keep_some(visual_tokens))
    questions = (QUESTION, 'Is there a car?', 'why?')
    full = [generate(family, position, prefix, question) for question in questions]
    ends = [full[0].token_ids[2], full[1].token_ids[5]]
    alone = [generate(family, position, prefix, q, end_token_ids=ends) for q in questions]
    assert len({len(answer.token_ids) for answer in alone}) > 1

    suffixes = [family.build_prompt(question, CAMERAS).suffix for question in questions]
    texts = [family.embed_text(suffix, position) for suffix in suffixes]
    asked, logits = family.decoder.extend(prefix, texts)
    together = generate_greedy(
        family.decoder,
        asked,
        logits,
        embed=family.embed,
        max_new_tokens=MAX_NEW_TOKENS,
        end_token_ids=ends,
    )
    assert [(a.token_ids, a.cut) for a in together] == [(a.token_ids, a.cut) for a in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.mean_log_probability == pytest.approx(theirs.mean_log_probability, rel=1e-5)

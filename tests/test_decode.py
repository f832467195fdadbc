"""Prefill and decoding against transformers' own generate and against a cache-free definition."""

import numpy as np
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.checkpoint import load_family, open_checkpoint
from p2d_node.language_model.decode import Embedded
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
    prefix = family.decoder.prefill(family.embed_prefix(prompt, visual_tokens, keep))
    return prompt, prefix


def generate(family, prompt, prefix, max_new_tokens=MAX_NEW_TOKENS, must_stop=lambda: False):
    inputs = family.embed_question(prompt, prefix.end_position)
    asked, logits = family.decoder.prefill_question(prefix, inputs)
    return family.decoder.generate_greedy(
        asked,
        logits,
        embed=family.embed,
        max_new_tokens=max_new_tokens,
        end_token_ids=family.end_token_ids,
        must_stop=must_stop,
    )


def keep_all(visual_tokens):
    return [torch.arange(visual_tokens.shape[1]) for _ in visual_tokens]


def keep_some(visual_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = (8, 3, 20)
    return [
        torch.randperm(visual_tokens.shape[1], generator=generator)[:count].sort().values
        for count in counts
    ]


def cache_free_logits(family, inputs: list[Embedded]):
    """Logits after each token of the pieces, by one pass with an explicit causal mask."""
    embeddings = torch.cat([piece.embeddings for piece in inputs], dim=1)
    positions = torch.cat([piece.positions for piece in inputs], dim=1)
    length = embeddings.shape[1]
    mask = torch.full((length, length), -torch.inf, dtype=embeddings.dtype).triu(1)[None, None]
    decoder = family.decoder
    with torch.inference_mode():
        output = decoder._text_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        )
        return decoder._lm_head(output.last_hidden_state)[0]


def test_everything_kept_gives_token_for_token_the_answer_of_transformers_generate(
    family, tiny_checkpoint, pixel_values, visual_tokens
):
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tiny_checkpoint, dtype=torch.float64
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    prompt, prefix = start(family, visual_tokens, keep_all(visual_tokens))
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
    ours = generate(family, prompt, prefix)
    assert list(ours.token_ids) == expected
    assert family.text_of(ours.token_ids) == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(expected)) > 3  # an answer of one repeated word would prove little


def test_gapped_positions_match_a_cache_free_recomputation(family, visual_tokens):
    keep = keep_some(visual_tokens)
    prompt, prefix = start(family, visual_tokens, keep)
    answer = generate(family, prompt, prefix)

    pieces = [
        family.embed_prefix(prompt, visual_tokens, keep),
        family.embed_question(prompt, prefix.end_position),
    ]
    first_position = pieces[-1].end_position
    for step, token_id in enumerate(answer.token_ids):
        position = torch.tensor([[first_position + step]])
        pieces.append(
            Embedded(family.embed(torch.tensor([[token_id]])), position, first_position + step + 1)
        )
    logits = cache_free_logits(family, pieces)
    scores = logits[-len(answer.token_ids) - 1 : -1]
    assert scores.argmax(dim=-1).tolist() == list(answer.token_ids)
    chosen = scores.log_softmax(dim=-1)[range(len(answer.token_ids)), answer.token_ids]
    assert answer.mean_log_probability == pytest.approx(chosen.mean().item(), rel=1e-5)

    inputs = family.embed_question(prompt, prefix.end_position)
    _, first = family.decoder.prefill_question(prefix, inputs)
    torch.testing.assert_close(first[0], scores[0], rtol=1e-10, atol=1e-10)


def test_kept_tokens_and_newlines_stand_at_their_original_positions(family, visual_tokens):
    keep = keep_some(visual_tokens)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    inputs = family.embed_prefix(prompt, visual_tokens, keep)
    num_tokens = visual_tokens.shape[1]
    base = len(prompt.segments[0])
    expected = list(range(base))
    for view, kept in enumerate(keep):
        first = base + view * (num_tokens + 1)
        expected += [*(kept + first).tolist(), first + num_tokens]
    assert inputs.positions[0].tolist() == expected
    assert inputs.end_position == base + len(CAMERAS) * (num_tokens + 1)
    at_front = inputs.embeddings[0, base : base + len(keep[0])]
    torch.testing.assert_close(at_front, visual_tokens[0][keep[0]], rtol=0, atol=0)


def test_dropping_tokens_changes_the_logits(family, visual_tokens):
    results = []
    for keep in (keep_all(visual_tokens), keep_some(visual_tokens)):
        prompt, prefix = start(family, visual_tokens, keep)
        inputs = family.embed_question(prompt, prefix.end_position)
        results.append(family.decoder.prefill_question(prefix, inputs)[1])
    assert not torch.allclose(*results, atol=1e-3)


def test_questions_on_one_prefix_do_not_touch_each_other(family, visual_tokens):
    questions = (QUESTION, 'Is there a car?', QUESTION)
    keep = keep_some(visual_tokens)
    _, prefix = start(family, visual_tokens, keep)
    shared = [generate(family, family.build_prompt(q, CAMERAS), prefix) for q in questions]
    alone = []
    for question in questions:
        _, own = start(family, visual_tokens, keep)
        alone.append(generate(family, family.build_prompt(question, CAMERAS), own))
    assert shared == alone
    assert shared[0] == shared[2] != shared[1]


def test_generation_stops_where_it_is_told_to_and_says_why(family, visual_tokens):
    prompt, prefix = start(family, visual_tokens, keep_some(visual_tokens))
    full = generate(family, prompt, prefix)
    assert full.cut in (Cut.LENGTH, Cut.END)
    cut = generate(family, prompt, prefix, must_stop=lambda: True)
    assert (cut.cut, cut.token_ids) == (Cut.DEADLINE, full.token_ids[:1])
    short = generate(family, prompt, prefix, max_new_tokens=2)
    assert (short.cut, short.token_ids) == (Cut.LENGTH, full.token_ids[:2])
    inputs = family.embed_question(prompt, prefix.end_position)
    asked, logits = family.decoder.prefill_question(prefix, inputs)
    ended = family.decoder.generate_greedy(
        asked,
        logits,
        embed=family.embed,
        max_new_tokens=8,
        end_token_ids=full.token_ids[1:2],
        must_stop=lambda: False,
    )
    assert ended.cut is Cut.END
    assert ended.token_ids == full.token_ids[: len(ended.token_ids)]
    assert np.isfinite(ended.mean_log_probability)

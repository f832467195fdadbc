"""LLaVA-OneVision checkpoints: SigLIP, a two-layer projector, a Llama or Qwen2 text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.language_model.decode import Decoder, embed_prefix, Embedded
from p2d_node.language_model.prompt import describe_views, Prompt, split_at_images
from safetensors import SafetensorError
import torch
from torch import nn, Tensor
from transformers import AutoConfig, LlavaOnevisionForConditionalGeneration


class _VisionModule(nn.Module):
    """Vision tower and projector as one module: pixel_values to visual_tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_tower = model.vision_tower
        self.projector = model.multi_modal_projector
        self._layer = model.config.vision_feature_layer
        self._drop_class_token = model.config.vision_feature_select_strategy == 'default'

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map float [views, 3, height, width] to [views, tokens, hidden]."""
        # The features are taken before the tower's last normalisation, as the model was trained.
        hidden_states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        if isinstance(self._layer, int):
            features = hidden_states[self._layer]
        else:
            features = torch.cat([hidden_states[layer] for layer in self._layer], dim=-1)
        if self._drop_class_token:
            features = features[:, 1:]
        tokens: Tensor = self.projector(features)
        return tokens


class LlavaOnevision:
    """A loaded checkpoint: what the pipeline needs of it, under names that all families share.

    Attributes:
        vision_module: Maps pixel_values to visual_tokens.
        decoder: The language model.
        grid: Rows and columns of the patches of one view.
        end_token_ids: Ids that end an answer.
    """

    VISION_KEYS = ('vision_tower', 'multi_modal_projector')
    """What the names of the vision part's weights contain."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take a loaded model and its tokenizer; see `load`."""
        self._model = model
        self._tokenizer = tokenizer
        self._image_token_id = int(model.config.image_token_id)
        self._embed_tokens = model.get_input_embeddings()
        self._newline = model.model.image_newline
        self.vision_module: nn.Module = _VisionModule(model.model)
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)
        self.end_token_ids = _end_token_ids(model, tokenizer)

    @classmethod
    def load(
        cls, folder: Path, tokenizer: Any, *, dtype: torch.dtype, device: torch.device
    ) -> LlavaOnevision:
        """Load the safetensors checkpoint in `folder`.

        Raises:
            ConfigError: Weights that are missing or do not fit the config.
        """
        model = _load_model(folder, dtype=dtype)
        return cls(model.to(device).eval(), tokenizer)

    @classmethod
    def load_vision_module(cls, folder: Path, *, dtype: torch.dtype) -> nn.Module:
        """Load vision tower and projector alone, with eager attention, on the CPU.

        Raises:
            ConfigError: Weights that are missing or do not fit the config.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # A text model of no layers and hardly a word: its weights are left where they lie.
        config.text_config.num_hidden_layers = 0
        config.text_config.layer_types = []
        config.text_config.vocab_size = 1
        config.text_config.pad_token_id = None
        model = _load_model(
            folder,
            dtype=dtype,
            config=config,
            attn_implementation='eager',
            ignore_mismatched_sizes=True,
        )
        return _VisionModule(model.model)

    def release_vision_module(self) -> None:
        """Free the vision weights, where an engine takes their place."""
        self.vision_module = nn.Identity()
        self._model.model.vision_tower = self._model.model.multi_modal_projector = None

    def build_prompt(self, question: str, cameras: Sequence[str]) -> Prompt:
        """Tokenise the chat with one picture per camera and `question`."""
        text = f'{describe_views(cameras)} {question}'
        content = [{'type': 'image'} for _ in cameras] + [{'type': 'text', 'text': text}]
        token_ids = self._tokenizer.apply_chat_template(
            [{'role': 'user', 'content': content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        try:
            return split_at_images(token_ids, self._image_token_id, len(cameras))
        except ValueError as err:
            raise ConfigError(
                f'model: its chat template gives {err}; use the template that came with the '
                'checkpoint, and no image placeholder in questions'
            ) from err

    def embed_prefix(
        self, prompt: Prompt, visual_tokens: Tensor, keep_indices: Sequence[Tensor]
    ) -> Embedded:
        """Lay out the prompt's shared part; see `decode.embed_prefix`."""
        segments = [self.embed_ids(ids)[0] for ids in prompt.segments]
        return embed_prefix(segments, visual_tokens, keep_indices, self._newline)

    def embed_question(self, prompt: Prompt, start: int) -> Embedded:
        """Lay out the prompt's last part, from position `start` on."""
        embeddings = self.embed_ids(prompt.suffix)
        end = start + len(prompt.suffix)
        positions = torch.arange(start, end, device=embeddings.device)[None]
        return Embedded(embeddings, positions, end)

    def embed_ids(self, token_ids: Sequence[int]) -> Tensor:
        """Return the embeddings [1, length, hidden] of `token_ids`."""
        device = self._embed_tokens.weight.device
        return self.embed(torch.tensor(token_ids, dtype=torch.int64, device=device)[None])

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings [1, length, hidden] of int64 [1, length]."""
        embeddings: Tensor = self._embed_tokens(token_ids)
        return embeddings

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return the words of generated ids, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def _is_vision(key: str) -> bool:
    return any(part in key for part in LlavaOnevision.VISION_KEYS)


def _load_model(folder: Path, **options: Any) -> Any:
    """Load the safetensors checkpoint in `folder`; raises ConfigError where it is not whole."""
    try:
        model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as err:
        reason = str(err).splitlines()[0]
        raise ConfigError(
            f'model: {folder}: the weights do not load: {reason}; copy the checkpoint again'
        ) from err
    wrong = [key for key, *_ in report['mismatched_keys'] if _is_vision(key)]
    if wrong:
        raise ConfigError(
            f'model: {folder}: {len(wrong)} weights have other shapes than config.json says, the '
            f'first is {wrong[0]}; copy the checkpoint again'
        )
    missing = sorted(report['missing_keys'])
    if missing:
        raise ConfigError(
            f'model: {folder}: {len(missing)} weights are missing, the first is {missing[0]}; '
            'copy the checkpoint again, with all its shards'
        )
    return model


def _end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))

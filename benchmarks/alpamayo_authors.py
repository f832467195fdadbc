"""The half of `against_alpamayo.py` that runs the authors' code, maybe in a Python of its own.

It writes a tiny random checkpoint in their format, and what their code makes of pictures and
questions. It imports nothing of this project. In the working folder lie the models that their
code loads by name.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
import platform
import sys
from typing import Any

import numpy as np
import torch
from torch import nn, Tensor

SEED = 5


def import_torchvision() -> list[str]:
    """Import torchvision; return what was put in the place of its parts.

    Beside a torch for CPUs from another index its compiled operators do not load, and it does not
    import without the declarations of two. Resizing uses none of them.
    """
    try:
        importlib.import_module('torchvision')
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith('torchvision')]:
            del sys.modules[name]
        library = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            library.define(f'{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor')
        importlib.import_module('torchvision')
        globals()['_library'] = library  # declarations end with it
        return ['the compiled operators nms and qnms of torchvision']
    return []


def make_model(*, marked: bool) -> Any:
    """Return a tiny Alpamayo 1.5 with random weights, as the authors' class makes it."""
    config_class = importlib.import_module('alpamayo1_5.config').Alpamayo1_5Config
    model_class = importlib.import_module('alpamayo1_5.models.alpamayo1_5').Alpamayo1_5
    config = config_class(
        model_dtype='float32',
        attn_implementation='sdpa',
        add_special_tokens=marked,
        action_space_cfg={
            '_target_': 'alpamayo1_5.action_space.UnicycleAccelCurvatureActionSpace'
        },
        diffusion_cfg={'_target_': 'alpamayo1_5.diffusion.flow_matching.FlowMatching'},
        action_in_proj_cfg={
            '_target_': 'alpamayo1_5.models.action_in_proj.PerWaypointActionInProjV2',
            'hidden_size': 16,
        },
        action_out_proj_cfg={'_target_': 'torch.nn.Linear'},
    )
    torch.manual_seed(SEED)
    model = model_class(config)
    vary(model)
    return model.eval()


def vary(model: nn.Module) -> None:
    """Make answers depend on all pictures: sharp attention, and layers that outweigh the input."""
    for name, parameter in model.named_parameters():
        if name.endswith(('q_norm.weight', 'k_norm.weight')):
            parameter.data = 3.0 + torch.randn_like(parameter)
        elif parameter.ndim == 1 or not parameter.any():  # initial zeros and ones
            parameter.data += 0.05 * torch.randn_like(parameter)
        elif name.startswith('vlm.'):
            scale = 0.1 if 'embed_tokens' in name else 0.3
            parameter.data = scale * torch.randn_like(parameter)


@torch.inference_mode()
def answer(model: Any, processor: Any, case: dict[str, Any], frames: Tensor) -> dict[str, Any]:
    """Return token ids of the prompt, logits after it, and the greedy answer.

    Args:
        model: The authors' model.
        processor: From their helper.
        case: `question`, `camera_ids` and `num_tokens`.
        frames: uint8 [pictures, 3, height, width].
    """
    helper = importlib.import_module('alpamayo1_5.helper')
    messages = helper.create_vqa_message(
        frames, question=case['question'], camera_indices=torch.tensor(case['camera_ids'])
    )
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=False,
        continue_final_message=True,
        return_dict=True,
        return_tensors='pt',
    )
    logits = model.vlm(**inputs, logits_to_keep=1).logits[0, -1]
    output = model.vlm.generate(
        **inputs, do_sample=False, max_new_tokens=case['num_tokens'], pad_token_id=0
    )
    prompt = inputs['input_ids'][0].tolist()
    return {
        'prompt': prompt,
        'logits': logits.tolist(),
        'answer': output[0, len(prompt) :].tolist(),
        'grid': inputs['image_grid_thw'].unique(dim=0).tolist(),
    }


def main() -> None:
    """Write the checkpoint and the results of all cases."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('code', type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.code / 'src'))
    stubs = import_torchvision()
    helper = importlib.import_module('alpamayo1_5.helper')
    request = json.loads(Path('request.json').read_text())
    frames = torch.from_numpy(np.load('frames.npy'))
    results = []
    for name, marked in request['checkpoints'].items():
        model = make_model(marked=marked)
        model.save_pretrained(name)
        processor = helper.get_processor(model.tokenizer)
        for case in request['cases']:
            if case['checkpoint'] == name:
                chosen = frames[case['camera_ids']].flatten(0, 1)
                results.append(answer(model, processor, case, chosen))
    versions = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'transformers': importlib.import_module('transformers').__version__,
    }
    content = {'results': results, 'stubs': stubs, 'versions': versions}
    Path('results.json').write_text(json.dumps(content))


if __name__ == '__main__':
    main()

"""TensorRT engines on a GPU: built, proven, captured, and without waiting."""

from dataclasses import replace

from engine_helpers import ignore_progress, plan_of, request_of
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import EncoderConfig
from p2d_node.engine_build.build import build_engine
from p2d_node.errors import P2dError
from p2d_node.language_model.families.registry import load_vision_module
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
from p2d_node.vision_encoder.factory import make_vision_encoder
from p2d_node.vision_encoder.tensorrt_api import BuildOptions
import pytest
import torch

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip('needs an NVIDIA GPU', allow_module_level=True)

DEVICE = torch.device('cuda')


@pytest.fixture(scope='module', params=['tensorrt', 'tensorrt_rtx'])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope='module', params=['fp16', 'fp32'])
def built(request, backend, tiny_checkpoint, tmp_path_factory):
    engine_dir = tmp_path_factory.mktemp('engines')
    input_spec = EncoderInput(FRAMES, 90, 160)
    plan = plan_of(tiny_checkpoint, backend, input_spec=input_spec, precision=request.param)
    plan = replace(plan, options=BuildOptions())
    try:
        return engine_dir, build_engine(plan, engine_dir, DEVICE, ignore_progress)
    except P2dError as err:
        if 'SM' in str(err) or 'compute capability' in str(err):
            pytest.skip(f'{backend} does not support this GPU: {err}')
        raise


def load(engine_dir, checkpoint, backend):
    module = load_vision_module(open_checkpoint(checkpoint)).to(DEVICE)
    config = EncoderConfig(backend=backend, engine_dir=str(engine_dir))
    request = request_of(checkpoint)
    chosen = make_vision_encoder(config, request, module, dtype=torch.bfloat16, device=DEVICE)
    return chosen.encoder


def test_an_engine_built_on_this_gpu_is_proven_on_it(built):
    _, engine = built
    assert engine.verification is not None
    assert engine.verification.passed
    assert engine.manifest.gpu_name == torch.cuda.get_device_name()


def test_an_engine_runs_without_making_the_host_wait(built, backend, tiny_checkpoint):
    engine_dir, engine = built
    encoder = load(engine_dir, tiny_checkpoint, backend)
    assert encoder.identity.endswith(engine.folder.name)
    assert ', CUDA graph,' in encoder.identity
    frames = torch.randint(0, 256, (6, 90, 160, 3), dtype=torch.uint8, device=DEVICE)
    encoder.encode(frames)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode('error')
        tokens = encoder.encode(frames)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert tokens.dtype == torch.bfloat16
    assert tokens.device.type == 'cuda'
    again = encoder.encode(frames.flip(0)).clone()
    assert torch.equal(again.flip(0), encoder.encode(frames))
    assert encoder.encode(frames[:4]).shape == (4, 81, 64)

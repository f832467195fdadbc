"""A training run: two stages; an interrupted run can be resumed."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
import json
import time
from typing import Any

from p2d_node.durable_files import write_faults
from p2d_node.whole_folders import locked
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
import torch
from torch import nn, Tensor
from torch.func import functional_call

from p2d_sim.training.batches import (
    batches_from,
    BatchPlan,
    collate_packed,
    collate_samples,
    pack_sample,
)
from p2d_sim.training.plan import RunPlan, STAGES
from p2d_sim.training.samples import HELD_OUT_SEED, JOINT_SEED, make_sample, START_SEED
from p2d_sim.training.scoring import right_answers, Score
from p2d_sim.training.starting import start_from
from p2d_sim.training.state import (
    load_optimizers,
    load_weights,
    NEXT_STEP,
    read_progress,
    save_state,
)
from p2d_sim.training.trainer import encode, make_optimizers, Parts

WARMUP_STEPS = 60
DECAY_PART = 0.4
"""Last part of a stage, in which the learning rate falls linearly to `LAST_RATE`."""

LAST_RATE = 0.05
LOG_EVERY = 20
MAX_GRADIENT = 1.0


def rate_at(step: int, steps: int) -> float:
    """Return the factor on the learning rate: linear warm-up, constant, linear decay."""
    decay = max(1, int(DECAY_PART * steps))
    falling = 1.0 - (1.0 - LAST_RATE) * max(0, step - (steps - decay)) / decay
    return min((step + 1) / WARMUP_STEPS, falling, 1.0)


class _StageLosses(nn.Module):
    """The losses as a module, for `functional_call` with weights of another dtype."""

    def __init__(self, parts: Parts, module: nn.Module) -> None:
        super().__init__()
        self.trained = module
        self._parts = parts

    def forward(self, stage: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if stage == 'encoder':
            return self._parts.encoder_losses(batch)
        return self._parts.joint_losses(batch)


class Run:
    """A training run. `train` blocks the thread that calls it.

    Attributes:
        plan: Settings of the run.
        losses: Stage to the total loss of every step of this process.
    """

    def __init__(self, plan: RunPlan, *, show_progress: bool = True) -> None:
        """Load the last checkpoint in the folder of the plan, or start a new run.

        Args:
            plan: Settings of the run.
            show_progress: Draw a progress bar.

        Raises:
            ConfigError: `plan.start` is not a trained model of the size of the plan.
        """
        self.plan = plan
        self.losses: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._device = torch.device(plan.device)
        self._parts = Parts.untrained(plan.size, plan.seed, self._device)
        self._module = self._parts.module()
        self._losses = _StageLosses(self._parts, self._module)
        self._progress = read_progress(plan.folder)
        self._show_progress = show_progress
        self._spent_s = 0.0
        if self._progress is not None:
            load_weights(plan.folder, self._progress['state'], self._module)
            self._spent_s = float(self._progress['spent_s'])
        elif plan.start is not None:
            start_from(self._parts, plan.start)

    @property
    def parts(self) -> Parts:
        """The model with its auxiliary heads."""
        return self._parts

    @property
    def spent_s(self) -> float:
        """Seconds of training so far, without interruptions."""
        return self._spent_s

    def train(self) -> None:
        """Run the remaining steps of both stages.

        Raises:
            ConfigError: Another process trains in the folder, or it cannot be written.
        """
        folder = self.plan.folder
        with ExitStack() as stack:
            with write_faults(f'run: {folder}', NEXT_STEP):
                folder.mkdir(parents=True, exist_ok=True)
                busy = f'run: {folder}: another process trains there; wait for its end'
                stack.enter_context(locked(folder, busy))
            self._train_stages()

    def _train_stages(self) -> None:
        first = STAGES.index(self._progress['stage']) if self._progress else 0
        for number in range(first, len(STAGES)):
            self._train_stage(number)
            self._progress = None

    def _train_stage(self, number: int) -> None:
        plan, stage, steps = self.plan, STAGES[number], self.plan.steps[number]
        scales = {'model.model.language_model': 0.0, 'model.lm_head': 0.0, 'answer_heads': 0.0}
        scales['model.model.multi_modal_projector'] = 0.0
        scales['model.model.image_newline'] = 0.0
        if stage == 'joint':
            scales = {'model.model.vision_tower': 0.6}
        optimizers = make_optimizers(self._module, plan.learning_rates[number], scales=scales)
        start = 0
        if self._progress is not None:
            start = int(self._progress['step'])
            if start < steps:
                load_optimizers(plan.folder, self._progress['state'], optimizers)
        feed = BatchPlan(
            size=plan.size,
            sweeps=plan.sweeps,
            first_seed=JOINT_SEED * number + (START_SEED if plan.start else 0),
            with_questions=stage == 'joint',
        )
        loop = _Loop(self, stage, optimizers, steps)
        with self._bar() as bar:
            task = bar.add_task(stage, total=steps, completed=start, loss='')
            for step, batch in batches_from(feed, start, steps, workers=plan.workers):
                total = loop.step(step, batch)
                bar.update(task, completed=step + 1, loss=f'loss {total:.3f}')
        if start < steps:
            self.save(stage, steps, optimizers)

    def _bar(self) -> Progress:
        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.completed}/{task.total} {task.fields[loss]}'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, disable=not self._show_progress)

    def losses_of(self, stage: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of one batch.

        The forward pass runs in bfloat16 without autocast, which would cast in every layer;
        weights, gradients and optimizers stay float32.
        """
        halves = {name: value.bfloat16() for name, value in self._losses.named_parameters()}
        losses: dict[str, Tensor] = functional_call(self._losses, halves, (stage, batch))
        return losses

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy a batch to the device of the model."""
        return {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}

    def count_time(self, seconds: float) -> None:
        """Add to `spent_s`."""
        self._spent_s += seconds

    @property
    def module(self) -> torch.nn.ModuleDict:
        """All trained parts as one module."""
        return self._module

    def save(self, stage: str, step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write a checkpoint, from which training continues at `step`."""
        progress = {'stage': stage, 'step': step, 'spent_s': self._spent_s}
        save_state(self.plan.folder, self._module, optimizers, progress)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the run's log."""
        path = self.plan.folder / 'log.jsonl'
        with write_faults(f'run: {path}', NEXT_STEP), path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')


class _Loop:
    """The steps of one stage, with log, checkpoints and evaluations on held-out sweeps."""

    def __init__(
        self, run: Run, stage: str, optimizers: list[torch.optim.Optimizer], steps: int
    ) -> None:
        self._run, self._stage, self._optimizers, self._steps = run, stage, optimizers, steps
        self._recent: dict[str, list[float]] = defaultdict(list)
        now = time.monotonic()
        self._last_step_s = self._last_save_s = self._last_check_s = now

    def step(self, step: int, batch: dict[str, Tensor]) -> float:
        run = self._run
        rate = rate_at(step, self._steps)
        for optimizer in self._optimizers:
            base = optimizer.defaults['lr']
            for group in optimizer.param_groups:
                group['lr'] = base * rate * group['scale']
        losses = run.losses_of(self._stage, run.to_device(batch))
        losses['total'].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(run.module.parameters(), MAX_GRADIENT)
        for optimizer in self._optimizers:
            optimizer.step()
        run.module.zero_grad(set_to_none=True)
        for name, loss in losses.items():
            self._recent[name].append(float(loss.detach()))
        run.losses[self._stage].append(self._recent['total'][-1])
        self._log_and_save(step + 1)
        return run.losses[self._stage][-1]

    def _log_and_save(self, step: int) -> None:
        run, now = self._run, time.monotonic()
        run.count_time(now - self._last_step_s)
        self._last_step_s = now
        if step % LOG_EVERY == 0:
            means = {name: round(sum(v) / len(v), 4) for name, v in self._recent.items()}
            self._recent.clear()
            run.log({'stage': self._stage, 'step': step, 'spent_s': run.spent_s, **means})
        if now - self._last_save_s > 60.0 * run.plan.save_minutes and step < self._steps:
            run.save(self._stage, step, self._optimizers)
            self._last_save_s = time.monotonic()
        minutes = run.plan.check_minutes
        if minutes and self._stage == 'joint' and now - self._last_check_s > 60.0 * minutes:
            run.log({'step': step, 'held_out': check_held_out(run.parts, num_sweeps=10)})
            self._last_check_s = time.monotonic()


@torch.inference_mode()
def check_held_out(parts: Parts, *, num_sweeps: int) -> dict[str, Any]:
    """Return the accuracy per kind of question on the first held-out sweeps, with all tokens."""
    score = Score()
    device = next(parts.model.parameters()).device
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + num_sweeps):
        sample = make_sample(seed, parts.size.image_px, parts.size.grid, augment=False)
        packed = pack_sample(parts.packer, sample, seed)
        batch = collate_samples([sample]) | collate_packed([packed])
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16):
            hidden, _ = parts.forward_features(encode(parts.model, batch['pixels']), batch)
            logits = parts.model.lm_head(hidden.asked)
        right = right_answers(logits, batch, len(packed.asked))
        score.add(packed.asked, right.tolist())
    kinds = {kind: round(right / asked, 3) for kind, (right, asked) in score.per_kind().items()}
    return {'overall': round(score.overall, 4), 'questions': score.num_questions, **kinds}

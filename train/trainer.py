"""The loop: rows to loss to step, with everything that makes a run whole around it.

One step is: the micro-batches of the step forward and backward, clip, check that loss and gradient are finite, move the
weights. A signal ends it between two micro-batches, as if it had not begun. Then, where due: a line in the log, a
checkpoint, an evaluation, samples. The checkpoint comes before the evaluation, so that an evaluation that dies loses
nothing; a resumed run makes up for the evaluation it missed.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import write_sealed
from data.batching.collate import Batch, Batches
from model.checkpoint.locate import ENDED, step_folder
from model.checkpoint.weights import load_weights
from model.llama import Llama
from model.lora import seed_dropout
from train import training_state, distributed
from train.autotune import Choices, autocast, check_batch
from train.throughput import Clock, attended, duration
from train.metrics_log import VALIDATION_LOSS, Measure, MetricsLog, UnwrittenLog
from train.optimizer import build_optimizers
from train.options import TrainOptions
from train.run_dir import ANOTHER_RUN, Run
from train.lr_schedule import rate
from train.stop_signals import StopRequest
from train.loss_spikes import Level

# Steps in a row without a finite loss and gradient that end a run.
GIVE_UP_AFTER = 5
# Where in a run the checkpoint of a run that went bad lies: apart from those that it would go on from.
FAILED = "failed"


@dataclass(frozen=True)
class Horizon:
    """How long a run is, when it is measured, and by what."""

    steps: int
    evaluate_every: int
    best: Measure = VALIDATION_LOSS
    patience: int = 0  # evaluations without a better score that end the run; 0: never


@dataclass
class State:
    """What a checkpoint keeps beside tensors. The sums are of the log interval that is not yet written."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    level: Level = field(default_factory=Level)


class _Unfinished(Exception):
    """Leads out of a step that is given up, with nothing of it applied."""


class Trainer:
    """Trains one model on one stream of batches inside one run folder."""

    def __init__(
        self, options: TrainOptions, horizon: Horizon, run: Run, model: Llama, batches: Batches, choices: Choices,
        keep: Callable[[Path], None], evaluate: Callable[[Llama, int, MetricsLog, Callable[[], bool]], None],
    ) -> None:
        """`keep(folder)` writes what belongs to a checkpoint besides numbers (tokenizer, template); `evaluate(model, step,
        log, final)` measures the model, with all its weights in this process, and writes its records; `final()` says whether,
        with what was written until then, it is the run's last evaluation.
        """
        self.options, self.horizon, self.run, self.model = options, horizon, run, model
        self.batches, self.choices, self._keep, self._evaluate = batches, choices, keep, evaluate
        self.device = model.lm_head.weight.device
        if run.start is not None:
            load_weights(model, run.start_folder)
        self._module = distributed.wrap(model, options.parallel)
        self.optimizers = build_optimizers(model, options.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=choices.precision == "fp16")
        self.state = State()
        if run.start is not None:
            self.state = _state(training_state.restore(run.start_folder, model, self.optimizers), run.start_folder)
            if self.state.scaler:
                self.scaler.load_state_dict(self.state.scaler)
        self.log = MetricsLog(run.folder, self.state.step) if distributed.first() else UnwrittenLog()
        if choices.compile:
            # The layers only: the loss works in chunks, which the compiler would unroll.
            model.model.compile()
        self._saved = run.start
        self._accuracy: float | None = None
        self._clock = Clock(horizon.steps, choices, model, self.device)
        self._stop = StopRequest(self._clock.to_stop)

    def train(self) -> bool:
        """Train to the last step, or to the one before that in which a signal came. True if the run is complete."""
        with self._stop:
            self._settled()
            self._evaluate_if_due()
            with contextlib.suppress(_Unfinished):
                while not self._ends():
                    self._step()
                    self._log_if_due()
                    if self._due(self.options.checkpoint.every) or self._due(self.horizon.evaluate_every):
                        self._save()
                    self._evaluate_if_due()
            if self._saved != self.state.step:
                self._save()
        return self._settled()

    def _settled(self) -> bool:
        """Whether the run is complete. One that patience ended stands for its best checkpoint then, not for its newest."""
        # An evaluation that was cut short is made when the run goes on.
        complete = not self._evaluation_due() and self._complete()
        if distributed.first():
            ended = self.run.folder / ENDED
            if complete and self.stalled():
                write_sealed(ended, {"best": self.log.best(self.horizon.best)})
            else:
                ended.unlink(missing_ok=True)
        return complete

    def _ends(self) -> bool:
        """Whether any process has a reason to end: a signal came to it, or, to the first one, scores that are no better."""
        self._clock.look()
        return bool(distributed.total(int(bool(self._stop) or self._complete()))[0])

    def _complete(self) -> bool:
        return self.state.step == self.horizon.steps or self.stalled()

    def stalled(self) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        scores = self.log.scores(self.horizon.best)
        patience = self.horizon.patience
        best = self.log.best(self.horizon.best)
        return bool(patience) and len(scores) > patience and best not in [step for step, _ in scores[-patience:]]

    def close(self) -> None:
        """Flush the log; to be called however training ended."""
        self.log.close()

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.horizon.steps

    def _step(self) -> None:
        state, options = self.state, self.options
        share = rate(options.schedule, state.step, self.horizon.steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        # Accuracy costs a pass over the logits: it is that of the logged steps alone.
        logged = self._is_logged(state.step + 1)
        hits = torch.zeros((), device=self.device, dtype=torch.int64) if logged else None
        micro_batches = self.batches.step(state.step, self.choices.micro_rows)
        loss, norm = self._gradients(micro_batches, hits)
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
            state.skipped_in_a_row = 0
            state.loss_sum += loss
            state.loss_steps += 1
            usual = state.level.loss
            if state.level.rises(loss):
                self._spike(loss, usual)
        else:
            self._skip(loss, norm)
        self.scaler.update()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        tokens, targets, keys, hit = distributed.total(
            sum(batch.tokens for batch in micro_batches), sum(len(batch.targets) for batch in micro_batches),
            sum(attended(batch) for batch in micro_batches), int(hits or 0))
        state.tokens += tokens
        self._accuracy = None if hits is None else hit / targets
        self._clock.tick(tokens, targets, keys, lr=options.optimizer.lr * share, grad_norm=norm)

    def _gradients(self, micro_batches: list[Batch], hits: torch.Tensor | None) -> tuple[float, float]:
        """Gradients of the step's mean loss, clipped, in the weights; the loss and the norm before clipping."""
        total = torch.zeros((), device=self.device)
        (targets,) = distributed.total(sum(len(batch.targets) for batch in micro_batches))
        # Of the gradients of several processes the mean is taken, so each computes its own as many times too large.
        scale = distributed.size() / targets
        # An adapter's dropout is the only thing that is drawn: from the row, whose number is its own in the whole run, so
        # that it is the same after a resume, in any process and beside any other rows.
        seeds = ((self.options.seed * 1_000_003 + row) % 2**63 for row in self.batches.rows(self.state.step))
        for left, batch in zip(range(len(micro_batches))[::-1], micro_batches, strict=True):
            if left + 1 < len(micro_batches):
                self._leave_if_asked()
            check_batch(batch, self.model.config.vocab_size)
            seed_dropout(self.model, list(islice(seeds, len(batch.ids))))
            batch = batch.to(self.device)
            with autocast(self.device, self.choices.precision), distributed.accumulating(self._module, more=left > 0):
                loss = self._module(
                    batch.ids, batch.targets, scored=batch.scored, scale=scale, loss_path=self.choices.loss_path,
                    positions=batch.positions, mask=batch.mask(), hits=hits,
                )
            self.scaler.scale(loss).backward()
            total += loss.detach()
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.optimizer.clip)
        (loss_of_all,) = distributed.total(float(total))
        return loss_of_all / distributed.size(), float(distributed.whole(norm))

    def _leave_if_asked(self) -> None:
        """Leave the step if a signal came to any process; all of them learn it here, so all leave. It is as if the step had
        not begun: gradients are all that there is of it.
        """
        self._clock.look()
        if distributed.anywhere(bool(self._stop)):
            self.model.zero_grad(set_to_none=True)
            raise _Unfinished

    def _skip(self, loss: float, norm: float) -> None:
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        rows = self.batches.rows_of_all(state.step)
        self.log.write("skipped", state.step + 1, loss=str(loss), grad_norm=str(norm), rows=[rows[0], rows[-1]])
        print(f"step {state.step + 1}: loss {loss}, gradient norm {norm}: step skipped, weights unchanged "
              f"({state.skipped} so far)", flush=True)
        # An fp16 scale that is too high overflows until it has come down: those steps are its way of finding out.
        finding_scale = self.scaler.is_enabled() and self.scaler.get_scale() > 1.0
        if state.skipped_in_a_row >= GIVE_UP_AFTER and not finding_scale:
            first = state.step + 1 - state.skipped_in_a_row
            raise UserError(
                f"{state.skipped_in_a_row} steps in a row had no finite loss or gradient, {first + 1} to {state.step + 1}, "
                f"rows {self.batches.rows_of_all(first)[0]}-{rows[-1]} of the data; to look at, weights and optimiser as the "
                f"last good step left them: {self._save_failed()}. With a lower --optimizer.lr (now "
                f"{self.options.optimizer.lr}), {ANOTHER_RUN}; the last checkpoint is of step {self._saved}"
            )

    def _save_failed(self) -> Path:
        """Keep the state that no step leads on from, where a continued run does not take it for a checkpoint."""
        failed = self.run.folder / FAILED
        if distributed.first():
            shutil.rmtree(failed, ignore_errors=True)
        training_state.save(
            failed, self.state.step, self.horizon.steps, self.model, self.optimizers, self._keep, asdict(self.state)
        )
        return step_folder(failed, self.state.step)

    def _spike(self, loss: float, usual: float) -> None:
        step, rows = self.state.step, self.batches.rows_of_all(self.state.step)
        self.log.write("spike", step + 1, loss=loss, level=usual, rows=[rows[0], rows[-1]])
        print(f"step {step + 1}: loss {loss:.4f} is far above its level of {usual:.4f} (rows {rows[0]}-{rows[-1]} of the "
              "data)", flush=True)

    def _is_logged(self, step: int) -> bool:
        # The first step is always shown: on a slow machine it says how long the rest will take.
        return step % self.options.log_every == 0 or step in (1, self.horizon.steps)

    def _log_if_due(self) -> None:
        state = self.state
        if not self._is_logged(state.step) or not state.loss_steps:
            return
        measures = self._clock.measures()
        epoch = self.batches.epoch(state.step)
        values = {"loss": state.loss_sum / state.loss_steps, "accuracy": self._accuracy, "epoch": epoch,
                  "skipped": state.skipped, **measures}
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
        self.log.write("train", state.step, tokens=state.tokens, **values)
        state.loss_sum, state.loss_steps = 0.0, 0
        print(f"step {state.step}/{self.horizon.steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
              f"norm {values['grad_norm']:.2f}  {values['tokens_per_second']:,.0f} tokens/s  MFU {values['mfu']:.0%}  "
              f"epoch {epoch:.2f}  left {duration(self._clock.left(state.step))}", flush=True)

    def _save(self) -> None:
        begun = time.perf_counter()
        self.state.scaler = self.scaler.state_dict()
        if distributed.first():
            self.run.must_be_there()
            # The records of the steps before it must not be lost where their checkpoint is not.
            self.log.sync()
        training_state.save(
            self.run.folder, self.state.step, self.horizon.steps, self.model, self.optimizers, self._keep, asdict(self.state)
        )
        self._saved = self.state.step
        self._rotate()
        self._clock.saved(time.perf_counter() - begun)

    def _rotate(self) -> None:
        # While steps are skipped nobody knows whether the run recovers: older checkpoints may be the last good ones.
        if distributed.first() and not self.state.skipped_in_a_row:
            training_state.rotate(self.run.folder, self.options.checkpoint.keep, self.log.best(self.horizon.best))

    def _evaluation_due(self) -> bool:
        step = self.state.step
        return (step > 0 and self._due(self.horizon.evaluate_every)
                and not distributed.from_first(self.log.has("evaluated", step)))

    def _evaluate_if_due(self) -> None:
        step = self.state.step
        if not self._evaluation_due():
            return
        self._clock.pause()
        model = distributed.whole_model(self.model)
        model.eval()
        # Nothing is lost with it: the checkpoint of this step is there, and what was measured is measured again.
        done = distributed.from_first(distributed.first() and self._stop.unless_asked(
            lambda: self._evaluate(model, step, self.log, self._complete)))
        self.model.train()
        if done:
            self.log.write("evaluated", step)
            self._rotate()
        self._clock.go_on()


def _state(saved: dict[str, Any], folder: Path) -> State:
    if unknown := saved.keys() - State.__dataclass_fields__.keys():
        raise UserError(f"{folder} was written by another version of this program (it keeps {', '.join(sorted(unknown))}): "
                        f"go on with that version, or {ANOTHER_RUN}")
    return State(**{**saved, "level": Level(**saved.get("level", {}))})

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
from common.files import write_checksummed_json
from data.batching.collate import Batch, BatchLoader
from model.checkpoint.locate import EARLY_STOP_FILE, step_folder
from model.checkpoint.weights import load_weights
from model.llama import Llama
from model.lora import seed_dropout
from train import distributed, training_state
from train.autotune import ComputePlan, autocast, check_token_ids
from train.loss_spikes import LossSpikeDetector
from train.lr_schedule import get_lr_multiplier
from train.metrics_log import VALIDATION_LOSS, InMemoryMetricsLog, MetricsLog, SelectionMetric
from train.optimizer import build_optimizers
from train.options import TrainOptions
from train.run_dir import NEW_RUN_HINT, RunDir
from train.stop_signals import StopRequest
from train.throughput import ThroughputMonitor, count_attention_pairs, format_duration

# Steps in a row without a finite loss and gradient that end a run.
MAX_CONSECUTIVE_SKIPS = 5
# Where in a run the checkpoint of a run that went bad lies: apart from those that it would go on from.
FAILED_FOLDER = "failed"


@dataclass(frozen=True)
class RunLength:
    """How long a run is, when it is measured, and by what."""

    max_steps: int
    evaluate_every: int
    best_metric: SelectionMetric = VALIDATION_LOSS
    patience: int = 0  # evaluations without a better score that end the run; 0: never


@dataclass
class TrainState:
    """What a checkpoint keeps beside tensors. The sums are of the log interval that is not yet written."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    level: LossSpikeDetector = field(default_factory=LossSpikeDetector)


class _StepAborted(Exception):
    """Leads out of a step that is given up, with nothing of it applied."""


class Trainer:
    """Trains one model on one stream of batches inside one run folder."""

    def __init__(
        self,
        options: TrainOptions,
        run_length: RunLength,
        run: RunDir,
        model: Llama,
        batches: BatchLoader,
        compute_plan: ComputePlan,
        save_extras: Callable[[Path], None],
        evaluate: Callable[[Llama, int, MetricsLog, Callable[[], bool]], None],
    ) -> None:
        """`save_extras(folder)` writes what belongs to a checkpoint besides numbers (tokenizer, template); `evaluate(model, step,
        log, final)` measures the model, with all its weights in this process, and writes its records; `final()` says whether,
        with what was written until then, it is the run's last evaluation.
        """
        self.options, self.run_length, self.run, self.model = options, run_length, run, model
        self.batches, self.compute_plan, self._save_extras, self._evaluate = (
            batches,
            compute_plan,
            save_extras,
            evaluate,
        )
        self.device = model.lm_head.weight.device
        if run.start_step is not None:
            load_weights(model, run.start_checkpoint)
        self._module = distributed.wrap_model(model, options.parallel)
        self.optimizers = build_optimizers(model, options.optimizer)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=compute_plan.precision == "fp16"
        )
        self.state = TrainState()
        if run.start_step is not None:
            self.state = _parse_state(
                training_state.restore(run.start_checkpoint, model, self.optimizers),
                run.start_checkpoint,
            )
            if self.state.scaler:
                self.scaler.load_state_dict(self.state.scaler)
        self.log = (
            MetricsLog(run.folder, self.state.step)
            if distributed.is_main_process()
            else InMemoryMetricsLog()
        )
        if compute_plan.compile:
            # The layers only: the loss works in chunks, which the compiler would unroll.
            model.model.compile()
        self._last_saved_step = run.start_step
        self._accuracy: float | None = None
        self._throughput = ThroughputMonitor(run_length.max_steps, compute_plan, model, self.device)
        self._stop_request = StopRequest(self._throughput.estimate_stop_seconds)

    def train(self) -> bool:
        """Train to the last step, or to the one before that in which a signal came. True if the run is complete."""
        with self._stop_request:
            self._finalize()
            self._evaluate_if_due()
            with contextlib.suppress(_StepAborted):
                while not self._should_stop():
                    self._step()
                    self._log_if_due()
                    if self._is_due(self.options.checkpoint.every) or self._is_due(
                        self.run_length.evaluate_every
                    ):
                        self._save_checkpoint()
                    self._evaluate_if_due()
            if self._last_saved_step != self.state.step:
                self._save_checkpoint()
        return self._finalize()

    def _finalize(self) -> bool:
        """Whether the run is complete. One that patience ended stands for its best checkpoint then, not for its newest."""
        # An evaluation that was cut short is made when the run goes on.
        is_complete = not self._is_evaluation_due() and self._is_complete()
        if distributed.is_main_process():
            ended = self.run.folder / EARLY_STOP_FILE
            if is_complete and self.is_out_of_patience():
                write_checksummed_json(
                    ended, {"best": self.log.best_step(self.run_length.best_metric)}
                )
            else:
                ended.unlink(missing_ok=True)
        return is_complete

    def _should_stop(self) -> bool:
        """Whether any process has a reason to end: a signal came to it, or, to the first one, scores that are no better."""
        self._throughput.record_stop_check()
        return bool(
            distributed.all_reduce_sum(int(bool(self._stop_request) or self._is_complete()))[0]
        )

    def _is_complete(self) -> bool:
        return self.state.step == self.run_length.max_steps or self.is_out_of_patience()

    def is_out_of_patience(self) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        scores = self.log.metric_history(self.run_length.best_metric)
        patience = self.run_length.patience
        best = self.log.best_step(self.run_length.best_metric)
        return (
            bool(patience)
            and len(scores) > patience
            and best not in [step for step, _ in scores[-patience:]]
        )

    def close(self) -> None:
        """Flush the log; to be called however training ended."""
        self.log.close()

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.run_length.max_steps

    def _step(self) -> None:
        state, options = self.state, self.options
        lr_multiplier = get_lr_multiplier(options.schedule, state.step, self.run_length.max_steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_multiplier
        # Accuracy costs a pass over the logits: it is that of the logged steps alone.
        logged = self._should_log(state.step + 1)
        num_correct = torch.zeros((), device=self.device, dtype=torch.int64) if logged else None
        micro_batches = self.batches.micro_batches(state.step, self.compute_plan.micro_rows)
        loss, norm = self._forward_backward(micro_batches, num_correct)
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
            state.skipped_in_a_row = 0
            state.loss_sum += loss
            state.loss_steps += 1
            usual = state.level.loss
            if state.level.update(loss):
                self._record_loss_spike(loss, usual)
        else:
            self._record_skipped_step(loss, norm)
        self.scaler.update()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        tokens, num_targets, num_attention_pairs, hit = distributed.all_reduce_sum(
            sum(batch.num_tokens for batch in micro_batches),
            sum(len(batch.targets) for batch in micro_batches),
            sum(count_attention_pairs(batch) for batch in micro_batches),
            int(num_correct or 0),
        )
        state.tokens += tokens
        self._accuracy = None if num_correct is None else hit / num_targets
        self._throughput.record_step(
            tokens,
            num_targets,
            num_attention_pairs,
            lr=options.optimizer.lr * lr_multiplier,
            grad_norm=norm,
        )

    def _forward_backward(
        self, micro_batches: list[Batch], num_correct: torch.Tensor | None
    ) -> tuple[float, float]:
        """Gradients of the step's mean loss, clipped, in the weights; the loss and the norm before clipping."""
        loss_sum = torch.zeros((), device=self.device)
        (targets,) = distributed.all_reduce_sum(sum(len(batch.targets) for batch in micro_batches))
        # Of the gradients of several processes the mean is taken, so each computes its own as many times too large.
        scale = distributed.world_size() / targets
        # An adapter's dropout is the only thing that is drawn: from the row, whose number is its own in the whole run, so
        # that it is the same after a resume, in any process and beside any other rows.
        seeds = (
            (self.options.seed * 1_000_003 + row) % 2**63
            for row in self.batches.local_rows(self.state.step)
        )
        for num_remaining, batch in zip(
            range(len(micro_batches))[::-1], micro_batches, strict=True
        ):
            if num_remaining + 1 < len(micro_batches):
                self._abort_step_if_requested()
            check_token_ids(batch, self.model.config.vocab_size)
            seed_dropout(self.model, list(islice(seeds, len(batch.ids))))
            batch = batch.to(self.device)
            with (
                autocast(self.device, self.compute_plan.precision),
                distributed.no_backward_sync(self._module, enabled=num_remaining > 0),
            ):
                loss = self._module(
                    batch.ids,
                    batch.targets,
                    target_positions=batch.loss_indices,
                    scale=scale,
                    loss_path=self.compute_plan.loss_path,
                    positions=batch.positions,
                    mask=batch.attention_mask(),
                    num_correct=num_correct,
                )
            self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.optimizer.clip)
        (loss_of_all,) = distributed.all_reduce_sum(float(loss_sum))
        return loss_of_all / distributed.world_size(), float(distributed.full_tensor(norm))

    def _abort_step_if_requested(self) -> None:
        """Leave the step if a signal came to any process; all of them learn it here, so all leave. It is as if the step had
        not begun: gradients are all that there is of it.
        """
        self._throughput.record_stop_check()
        if distributed.any_rank(bool(self._stop_request)):
            self.model.zero_grad(set_to_none=True)
            raise _StepAborted

    def _record_skipped_step(self, loss: float, norm: float) -> None:
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        rows = self.batches.global_rows(state.step)
        self.log.write(
            "skipped", state.step + 1, loss=str(loss), grad_norm=str(norm), rows=[rows[0], rows[-1]]
        )
        print(
            f"step {state.step + 1}: loss {loss}, gradient norm {norm}: step skipped, weights unchanged "
            f"({state.skipped} so far)",
            flush=True,
        )
        # An fp16 scale that is too high overflows until it has come down: those steps are its way of finding out.
        finding_scale = self.scaler.is_enabled() and self.scaler.get_scale() > 1.0
        if state.skipped_in_a_row >= MAX_CONSECUTIVE_SKIPS and not finding_scale:
            first = state.step + 1 - state.skipped_in_a_row
            raise UserError(
                f"{state.skipped_in_a_row} steps in a row had no finite loss or gradient, {first + 1} to {state.step + 1}, "
                f"rows {self.batches.global_rows(first)[0]}-{rows[-1]} of the data; to look at, weights and optimiser as the "
                f"last good step left them: {self._save_failed_state()}. With a lower --optimizer.lr (now "
                f"{self.options.optimizer.lr}), {NEW_RUN_HINT}; the last checkpoint is of step {self._last_saved_step}"
            )

    def _save_failed_state(self) -> Path:
        """Keep the state that no step leads on from, where a continued run does not take it for a checkpoint."""
        failed = self.run.folder / FAILED_FOLDER
        if distributed.is_main_process():
            shutil.rmtree(failed, ignore_errors=True)
        training_state.save(
            failed,
            self.state.step,
            self.run_length.max_steps,
            self.model,
            self.optimizers,
            self._save_extras,
            asdict(self.state),
        )
        return step_folder(failed, self.state.step)

    def _record_loss_spike(self, loss: float, level: float) -> None:
        step, rows = self.state.step, self.batches.global_rows(self.state.step)
        self.log.write("spike", step + 1, loss=loss, level=level, rows=[rows[0], rows[-1]])
        print(
            f"step {step + 1}: loss {loss:.4f} is far above its level of {level:.4f} (rows {rows[0]}-{rows[-1]} of the "
            "data)",
            flush=True,
        )

    def _should_log(self, step: int) -> bool:
        # The first step is always shown: on a slow machine it says how long the rest will take.
        return step % self.options.log_every == 0 or step in (1, self.run_length.max_steps)

    def _log_if_due(self) -> None:
        state = self.state
        if not self._should_log(state.step) or not state.loss_steps:
            return
        measures = self._throughput.pop_metrics()
        epoch = self.batches.epochs_completed(state.step)
        values = {
            "loss": state.loss_sum / state.loss_steps,
            "accuracy": self._accuracy,
            "epoch": epoch,
            "skipped": state.skipped,
            **measures,
        }
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
        self.log.write("train", state.step, tokens=state.tokens, **values)
        state.loss_sum, state.loss_steps = 0.0, 0
        print(
            f"step {state.step}/{self.run_length.max_steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
            f"norm {values['grad_norm']:.2f}  {values['tokens_per_second']:,.0f} tokens/s  MFU {values['mfu']:.0%}  "
            f"epoch {epoch:.2f}  left {format_duration(self._throughput.estimate_remaining_seconds(state.step))}",
            flush=True,
        )

    def _save_checkpoint(self) -> None:
        start_time = time.perf_counter()
        self.state.scaler = self.scaler.state_dict()
        if distributed.is_main_process():
            self.run.check_exists()
            # The records of the steps before it must not be lost where their checkpoint is not.
            self.log.sync()
        training_state.save(
            self.run.folder,
            self.state.step,
            self.run_length.max_steps,
            self.model,
            self.optimizers,
            self._save_extras,
            asdict(self.state),
        )
        self._last_saved_step = self.state.step
        self._rotate_checkpoints()
        self._throughput.record_save(time.perf_counter() - start_time)

    def _rotate_checkpoints(self) -> None:
        # While steps are skipped nobody knows whether the run recovers: older checkpoints may be the last good ones.
        if distributed.is_main_process() and not self.state.skipped_in_a_row:
            training_state.rotate_checkpoints(
                self.run.folder,
                self.options.checkpoint.keep,
                self.log.best_step(self.run_length.best_metric),
            )

    def _is_evaluation_due(self) -> bool:
        step = self.state.step
        return (
            step > 0
            and self._is_due(self.run_length.evaluate_every)
            and not distributed.broadcast_object(self.log.has_record("evaluated", step))
        )

    def _evaluate_if_due(self) -> None:
        step = self.state.step
        if not self._is_evaluation_due():
            return
        self._throughput.pause()
        model = distributed.gather_model(self.model)
        model.eval()
        # Nothing is lost with it: the checkpoint of this step is there, and what was measured is measured again.
        done = distributed.broadcast_object(
            distributed.is_main_process()
            and self._stop_request.run_unless_requested(
                lambda: self._evaluate(model, step, self.log, self._is_complete)
            )
        )
        self.model.train()
        if done:
            self.log.write("evaluated", step)
            self._rotate_checkpoints()
        self._throughput.resume()


def _parse_state(saved: dict[str, Any], folder: Path) -> TrainState:
    if unknown := saved.keys() - TrainState.__dataclass_fields__.keys():
        raise UserError(
            f"{folder} was written by another version of this program (it keeps {', '.join(sorted(unknown))}): "
            f"go on with that version, or {NEW_RUN_HINT}"
        )
    return TrainState(**{**saved, "level": LossSpikeDetector(**saved.get("level", {}))})

"""The training loop.

A step is the forward and backward passes of its micro-batches, gradient clipping, a check that loss
and gradient are finite, and the update of the weights. A stop signal takes effect between two
micro-batches and abandons the step. After a step come, if they are due, a log line, a checkpoint
and an evaluation. The checkpoint precedes the evaluation, so that a crash in the evaluation costs
no training; a resumed run repeats an evaluation that was not finished.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import write_checksummed_json
from common.heap import keep_freed_memory
from common.run_layout import EARLY_STOP_FILE, FAILED_DIR, step_folder
from data.batching.collate import Batch
from model.llama import Llama
from model.lora import seed_dropout
from model.narrow_weights import NarrowWeights
from model.reading_heads import reading_head_masks
from train import checkpoint, distributed
from train.autotune import ComputePlan, autocast
from train.lr_schedule import get_lr_multiplier
from train.monitoring.loss_spikes import LossSpikeDetector
from train.monitoring.metrics_log import InMemoryMetricsLog, MetricsLog
from train.monitoring.throughput import ThroughputMonitor, count_attention_pairs, format_duration
from train.optimizer import FixedWeights, build_optimizers
from train.run.directory import NEW_RUN_HINT, RunDir
from train.run.spec import RunSpec, TrainingPlan
from train.stop_signals import StopRequest

# A run ends with an error after this many steps in a row without a finite loss and gradient.
MAX_CONSECUTIVE_SKIPS = 5


@dataclass
class TrainState:
    """The state of a run besides tensors; `state.json` stores the fields under these names."""

    step: int = 0  # steps done, skipped ones included
    tokens: int = 0  # tokens trained on, without padding, over all ranks
    skipped: int = 0  # steps without an update, because loss or gradient was not finite
    skipped_in_a_row: int = 0
    # Sums over the steps since the last log line, without skipped ones.
    loss_sum: float = 0.0
    loss_steps: int = 0
    # Sums of the objective's measures over terms since the last log line, and the number of terms.
    measures: dict[str, float] = field(default_factory=dict)
    measured_terms: int = 0
    scaler: dict[str, float] = field(default_factory=dict)  # of the fp16 gradient scaler
    level: LossSpikeDetector = field(default_factory=LossSpikeDetector)


class _StepAborted(Exception):
    """Raised to abandon the current step, whose gradients are discarded."""


class Trainer:
    """Trains one model on the batches of one run."""

    def __init__(
        self,
        spec: RunSpec,
        run: RunDir,
        model: Llama,
        plan: TrainingPlan,
        compute_plan: ComputePlan,
    ) -> None:
        """Restore optimizers and state from the checkpoint that `run` resumes from, if any.

        `model` is on its device and has the weights of that checkpoint.
        """
        self.spec = spec
        self.options = spec.options
        self.run = run
        self.model = model
        self.batches = plan.batches
        self.max_steps = plan.max_steps
        self.compute_plan = compute_plan
        self.objective = spec.objective
        self.evaluator = spec.evaluator
        self.device = spec.device
        if self.device.type == "cpu":
            keep_freed_memory()
        # With an adapter all weights of the base stay as they are; what it adds to them is trained.
        has_fixed_parts = model.config.reading_heads and spec.lora is None
        if has_fixed_parts:
            for weight, mask in reading_head_masks(model).items():
                weight.requires_grad_(not bool(mask.all()))
        # FSDP replaces the parameters of the model by shards, which the optimizers and the masks
        # refer to.
        self._module = distributed.wrap_model(model, spec.options.parallel)
        self.optimizers = build_optimizers(model, spec.options.optimizer)
        # FSDP gathers the weights of a layer only while the layer is computed: it casts them there.
        has_narrow_weights = (
            self.device.type == "cpu"
            and compute_plan.precision == "bf16"
            and not distributed.is_sharded(model.lm_head.weight)
        )
        self._narrow_weights: contextlib.AbstractContextManager[None] = (
            NarrowWeights(model) if has_narrow_weights else contextlib.nullcontext()
        )
        self._fixed_weights = FixedWeights(reading_head_masks(model) if has_fixed_parts else {})
        # Small gradients underflow in fp16 alone; without fp16 the scaler changes nothing. `Any`,
        # because the optimizers have what it uses without being those of PyTorch.
        self.scaler: Any = torch.amp.GradScaler(
            self.device.type, enabled=compute_plan.precision == "fp16"
        )
        self.state = TrainState()
        if run.start_checkpoint is not None:
            saved = checkpoint.restore(run.start_checkpoint, model, self.optimizers)
            self.state = _parse_state(saved, run.start_checkpoint)
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        self.log = (
            MetricsLog(run.folder, self.state.step)
            if distributed.is_main_process()
            else InMemoryMetricsLog()
        )
        if compute_plan.compile:
            # Only the backbone is compiled: the compiler would unroll the chunks of the loss.
            model.model.compile()
        self.batches.use_model(model)
        # The micro-batches of a step, assembled before the step begins, and the step.
        self._prefetched: tuple[int, list[Batch]] | None = None
        self._last_saved_step = run.start_step
        self._throughput = ThroughputMonitor(self.max_steps, compute_plan, model, self.device)
        self._stop_request = StopRequest(self._throughput.estimate_stop_seconds)

    @property
    def stop_requested(self) -> bool:
        """Return whether a signal asked this process to stop."""
        return bool(self._stop_request)

    @property
    def stop_exit_code(self) -> int:
        """Return the exit code of a run that a signal stopped."""
        return self._stop_request.exit_code

    def train(self) -> bool:
        """Train to the end, or until a signal comes; return whether the run is complete."""
        with self._stop_request:
            # A run that is resumed with more patience goes on, and is no longer stopped early.
            self._write_early_stop()
            # The last evaluation of a resumed run may have been interrupted.
            self._evaluate_if_due()
            with contextlib.suppress(_StepAborted):
                while not self._should_stop():
                    self.train_step()
                    self._log_if_due()
                    # Each evaluated step needs a checkpoint too, because it may be the best one.
                    is_checkpoint_due = self._is_due(self.options.checkpoint.every)
                    if is_checkpoint_due or self._is_due(self.evaluator.every):
                        self.save_checkpoint()
                    self._evaluate_if_due()
            if self._last_saved_step != self.state.step:
                self.save_checkpoint()
        return self._write_early_stop()

    def close(self) -> None:
        """Flush the log and release the run directory, however the training ended."""
        self.log.close()
        self.run.close()

    def train_step(self) -> None:
        """Train on the batch of one step; skip the update if loss or gradient is not finite.

        Raises UserError after MAX_CONSECUTIVE_SKIPS skipped steps in a row.
        """
        state = self.state
        lr_multiplier = get_lr_multiplier(self.options.schedule, state.step, self.max_steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_multiplier

        sums = None
        if self.objective.measures_every_step or self._is_log_step(state.step + 1):
            names = self.objective.measure_names
            sums = torch.zeros(len(names), device=self.device, dtype=torch.float64)
        micro_batches = self._load_micro_batches(state.step)
        self._throughput.record_sampling(*self.batches.pop_sampled())
        loss, grad_norm = self.compute_gradients(micro_batches, sums)

        # An update with a gradient that is not finite would turn all weights, and the moments of
        # the optimizer, into NaN. The scaler checks gradients in fp16 only.
        if math.isfinite(loss) and math.isfinite(grad_norm):
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
            self._fixed_weights.restore()
            self._record_loss(loss)
            if sums is not None:
                self._record_measures(sums, micro_batches)
        else:
            self._record_skipped_step(loss, grad_norm)
        self.scaler.update()
        self.model.zero_grad()
        state.step += 1

        tokens, num_targets, num_attention_pairs = distributed.all_reduce_sum(
            sum(batch.num_tokens for batch in micro_batches),
            sum(len(batch.targets) for batch in micro_batches),
            sum(count_attention_pairs(batch) for batch in micro_batches),
        )
        state.tokens += tokens
        self._throughput.record_step(
            tokens,
            num_targets,
            num_attention_pairs,
            lr=self.options.optimizer.lr * lr_multiplier,
            grad_norm=grad_norm,
        )

    def compute_gradients(
        self, micro_batches: list[Batch], sums: torch.Tensor | None = None
    ) -> tuple[float, float]:
        """Compute the clipped gradients of the step's mean loss, by gradient accumulation.

        Args:
            micro_batches: this rank's rows of the step.
            sums: fp64[k] on the device, increased by the measures of the objective.

        Returns the mean loss over the terms of all ranks, and the gradient norm before clipping.
        """
        # Micro-batches and ranks hold different numbers of terms, so each of them divides its sum
        # by the numbers of the whole step, not by its own. DDP and FSDP average the gradients over
        # the ranks; dividing the numbers by world_size makes that a sum.
        counts = [self.objective.count(batch) for batch in micro_batches]
        global_counts = distributed.all_reduce_sum(*map(sum, zip(*counts, strict=True)))
        totals = [count / distributed.world_size() for count in global_counts]
        with self._narrow_weights:
            loss_sum = self._accumulate_gradients(micro_batches, totals, sums)
        # Clipping needs gradients without the loss scale of fp16.
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        self._fixed_weights.zero_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.optimizer.clip)
        # A GPU is still computing: tokenize for the next step before waiting for the loss.
        if self.state.step + 1 < self.max_steps and not self.batches.depends_on_weights:
            next_step = self.state.step + 1
            # An error belongs to the next step, which meets it again: this one is done and kept.
            with contextlib.suppress(UserError, OSError):
                self._prefetched = next_step, self._load_micro_batches(next_step)
        (global_loss,) = distributed.all_reduce_sum(float(loss_sum))
        # Each rank's loss is divided by a mean over the ranks, see `totals`.
        return global_loss / distributed.world_size(), float(distributed.full_tensor(norm))

    def _accumulate_gradients(
        self, micro_batches: list[Batch], totals: list[float], sums: torch.Tensor | None
    ) -> torch.Tensor:
        """Add the gradients of all micro-batches; return this rank's share of the loss, a scalar.

        `totals` are those of `Objective.loss`.
        """
        loss_path = self.compute_plan.loss_path
        loss_sum = torch.zeros((), device=self.device)
        dropout_seeds = self._dropout_seeds()
        for index, batch in enumerate(micro_batches):
            is_last = index + 1 == len(micro_batches)
            if index > 0:
                self._abort_step_if_requested()
            _check_token_ids(batch, self.model.config.vocab_size)
            seed_dropout(self.model, list(islice(dropout_seeds, len(batch.ids))))
            batch = batch.to(self.device)
            with (
                autocast(self.device, self.compute_plan.precision),
                # DDP accumulates the gradients of a step locally and reduces them once, in the last
                # backward pass.
                distributed.no_backward_sync(self._module, enabled=not is_last),
            ):
                loss = self.objective.loss(self._module, batch, totals, loss_path, sums)
            self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        return loss_sum

    def _load_micro_batches(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of a step."""
        if self._prefetched is not None and self._prefetched[0] == step:
            return self._prefetched[1]
        return self.batches.micro_batches(step, self.compute_plan.micro_rows)

    def _dropout_seeds(self) -> Iterator[int]:
        """Yield the dropout seed of each row that this rank reads in the current step.

        A seed depends on the row alone, so that other numbers of ranks, and resumed runs, drop the
        same activations.
        """
        for row in self.batches.local_rows(self.state.step):
            # The factor gives the rows of different run seeds different dropout seeds, up to a
            # million rows. The remainder fits the signed 64-bit seed of `torch.Generator`.
            yield (self.options.seed * 1_000_003 + row) % 2**63

    def _abort_step_if_requested(self) -> None:
        """Raise _StepAborted if a signal came to any rank, and discard the gradients so far."""
        self._throughput.record_stop_check()
        if distributed.any_rank(self.stop_requested):
            self.model.zero_grad(set_to_none=True)
            raise _StepAborted

    def _should_stop(self) -> bool:
        """Return whether a signal came to any rank, or the run is complete."""
        self._throughput.record_stop_check()
        should_stop = self.stop_requested or self._is_complete()
        # All ranks must agree, or some would wait for the others in the next step.
        return bool(distributed.all_reduce_sum(int(should_stop))[0])

    def _is_complete(self) -> bool:
        """Return whether the last step is done, or patience has ended the run."""
        return self.state.step == self.max_steps or self.is_out_of_patience()

    def is_out_of_patience(self) -> bool:
        """Return whether the last `patience` evaluations were no better than an earlier one."""
        patience = self.evaluator.patience
        scores = self.log.metric_history(self.evaluator.metric)
        # A patience of 0 never ends a run.
        if not patience or len(scores) <= patience:
            return False
        recent_steps = [step for step, _ in scores[-patience:]]
        return self.log.best_step(self.evaluator.metric) not in recent_steps

    def _write_early_stop(self) -> bool:
        """Write or remove the file that says that the run was stopped early.

        Returns whether the run is complete; a collective. With the file, chat, evaluation and
        export use the best checkpoint of the run, otherwise its newest.
        """
        # An interrupted evaluation is repeated on resume, so the run is not complete before that.
        # Only the main process has the scores of evaluations.
        is_complete = distributed.broadcast_object(
            not self._is_evaluation_due() and self._is_complete()
        )
        if distributed.is_main_process():
            file = self.run.folder / EARLY_STOP_FILE
            if is_complete and self.is_out_of_patience():
                best_step = self.log.best_step(self.evaluator.metric)
                write_checksummed_json(file, {"best": best_step})
            else:
                file.unlink(missing_ok=True)
        return is_complete

    def _is_due(self, every: int) -> bool:
        """Return whether the step is a multiple of `every`, or the last one."""
        return self.state.step % every == 0 or self.state.step == self.max_steps

    def _record_loss(self, loss: float) -> None:
        """Add the loss of a step to the sums; log and print a line if a loss spike begins."""
        state = self.state
        state.skipped_in_a_row = 0
        state.loss_sum += loss
        state.loss_steps += 1
        previous_level = state.level.loss
        if self.objective.has_loss_level and state.level.update(loss):
            # The rows are logged so that one can look at the data that caused the spike.
            rows = self.batches.global_rows(state.step)
            self.log.write(
                "spike", state.step + 1, loss=loss, level=previous_level, rows=[rows[0], rows[-1]]
            )
            print(
                f"step {state.step + 1}: loss {loss:.4f} is far above its level of "
                f"{previous_level:.4f} (rows {rows[0]}-{rows[-1]} of the data)",
                flush=True,
            )

    def _record_measures(self, sums: torch.Tensor, micro_batches: list[Batch]) -> None:
        """Add the measures of a step; `sums` has those of this rank's rows. A collective."""
        state = self.state
        num_terms = sum(self.objective.count(batch)[0] for batch in micro_batches)
        num_terms, *totals = distributed.all_reduce_sum(num_terms, *sums.tolist())
        for name, total in zip(self.objective.measure_names, totals, strict=True):
            state.measures[name] = state.measures.get(name, 0.0) + total
        state.measured_terms += int(num_terms)

    def _record_skipped_step(self, loss: float, grad_norm: float) -> None:
        """Count, log and print a step without an update.

        Raises UserError after MAX_CONSECUTIVE_SKIPS of them in a row, unless the loss scale of fp16
        can still be lowered.
        """
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        rows = self.batches.global_rows(state.step)
        self.log.write(
            "skipped",
            state.step + 1,
            loss=str(loss),
            grad_norm=str(grad_norm),
            rows=[rows[0], rows[-1]],
        )
        print(
            f"step {state.step + 1}: loss {loss}, gradient norm {grad_norm}: step skipped, weights "
            f"unchanged ({state.skipped} so far)",
            flush=True,
        )
        # In fp16 the loss scale starts too high and is halved in each step that overflows. As long
        # as it can be halved, skipped steps do not mean that the run has diverged.
        is_scale_settling = self.scaler.is_enabled() and self.scaler.get_scale() > 1.0
        if state.skipped_in_a_row >= MAX_CONSECUTIVE_SKIPS and not is_scale_settling:
            self._raise_diverged()

    def _raise_diverged(self) -> None:
        """Save the state of the run in FAILED_DIR, and raise UserError."""
        state = self.state
        # Steps count from 0, messages from 1. `state.step` is the step that was just skipped.
        first_step = state.step + 1 - state.skipped_in_a_row
        first_row = self.batches.global_rows(first_step)[0]
        last_row = self.batches.global_rows(state.step)[-1]
        failed_folder = self._save_failed_state()
        raise UserError(
            f"{state.skipped_in_a_row} steps in a row had no finite loss or gradient, "
            f"{first_step + 1} to {state.step + 1}, rows {first_row}-{last_row} of the data; "
            f"weights and optimizer after the last good step are in {failed_folder}. With a lower "
            f"--optimizer.lr (now {self.options.optimizer.lr}), {NEW_RUN_HINT}; the last "
            f"checkpoint is of step {self._last_saved_step}"
        )

    def _save_failed_state(self) -> Path:
        """Save the state of a diverged run, in place of an earlier one; return its folder."""
        failed_run = self.run.folder / FAILED_DIR
        if distributed.is_main_process():
            shutil.rmtree(failed_run, ignore_errors=True)
        self._save_state(failed_run)
        return step_folder(failed_run, self.state.step)

    def _is_log_step(self, step: int) -> bool:
        """Return whether a log line is due after `step` steps."""
        # The first step has a line as well, which says how long the rest will take.
        return step % self.options.log_every == 0 or step in (1, self.max_steps)

    def _log_if_due(self) -> None:
        """Log and print the metrics of the steps since the last line, if a line is due."""
        state = self.state
        # If all steps since the last line were skipped, there is no loss to report.
        if not self._is_log_step(state.step) or not state.loss_steps:
            return
        throughput = self._throughput.pop_metrics()
        epoch = self.batches.epochs_completed(state.step)
        loss = state.loss_sum / state.loss_steps
        measures = {name: total / state.measured_terms for name, total in state.measures.items()}
        metrics = self.objective.metrics(loss, measures)
        self.log.write(
            "train",
            state.step,
            tokens=state.tokens,
            loss=loss,
            **metrics,
            epoch=epoch,
            skipped=state.skipped,
            **throughput,
        )
        state.loss_sum = 0.0
        state.loss_steps = 0
        state.measures = {}
        state.measured_terms = 0
        remaining = format_duration(self._throughput.estimate_remaining_seconds(state.step))
        print(
            f"step {state.step}/{self.max_steps}  loss {loss:.4f}"
            f"{self.objective.format_metrics(metrics)}  lr {throughput['lr']:.2e}  "
            f"norm {throughput['grad_norm']:.2f}  {throughput['tokens_per_second']:,.0f} tokens/s  "
            f"MFU {throughput['mfu']:.0%}{_format_sampling(throughput)}  epoch {epoch:.2f}  "
            f"left {remaining}",
            flush=True,
        )

    def save_checkpoint(self) -> None:
        """Write the checkpoint of the current step and delete those that are no longer needed."""
        start_time = time.perf_counter()
        self.state.scaler = self.scaler.state_dict()
        if distributed.is_main_process():
            self.run.check_exists()
            # A checkpoint on disk must not be newer than the log: records of steps before it would
            # be lost for good, because a resumed run does not repeat them.
            self.log.sync()
        self._save_state(self.run.folder)
        self._last_saved_step = self.state.step
        self._rotate_checkpoints()
        self._throughput.record_save(time.perf_counter() - start_time)

    def _save_state(self, folder: Path) -> None:
        """Write a checkpoint of the current step below `folder`, on the main process."""
        checkpoint.save(
            folder,
            step=self.state.step,
            max_steps=self.max_steps,
            model=self.model,
            optimizers=self.optimizers,
            state=asdict(self.state),
            tokenizer=self.spec.tokenizer,
            template=self.spec.template,
        )

    def _rotate_checkpoints(self) -> None:
        """Delete the checkpoints that are neither among the newest nor the best one."""
        # No checkpoint is deleted while steps are skipped: if the run diverges, an older one may
        # turn out to be the last good one.
        if distributed.is_main_process() and not self.state.skipped_in_a_row:
            best_step = self.log.best_step(self.evaluator.metric)
            keep = self.options.checkpoint.keep
            checkpoint.rotate_checkpoints(self.run.folder, keep, best_step)

    def _is_evaluation_due(self) -> bool:
        """Return whether the current step is to be evaluated and was not yet. A collective."""
        step = self.state.step
        if step == 0 or not self._is_due(self.evaluator.every):
            return False
        # The log of the main process alone is read from disk when a run is resumed.
        return not distributed.broadcast_object(self.log.has_record("evaluated", step))

    def _evaluate_if_due(self) -> None:
        """Evaluate the model if an evaluation is due; all ranks must call this."""
        if not self._is_evaluation_due():
            return
        self._throughput.pause()
        model = distributed.gather_model(self.model)
        model.eval()
        # A signal aborts an evaluation at once: the checkpoint of the step exists, and a resumed
        # run repeats the evaluation. The main process evaluates, and tells the other ranks whether
        # it finished.
        is_finished = distributed.broadcast_object(
            distributed.is_main_process()
            and self._stop_request.run_unless_requested(lambda: self._evaluate(model))
        )
        self.model.train()
        if is_finished:
            self.log.write("evaluated", self.state.step)
            # The best checkpoint may be another one now.
            self._rotate_checkpoints()
        self._throughput.resume()

    def _evaluate(self, model: Llama) -> None:
        """Evaluate the model on a part of the held-out data; at the end of the run, on all."""
        step = self.state.step
        self.evaluator.evaluate(model, step, self.log)
        # Checked after the scores are logged, because they may exhaust the patience.
        if self._is_complete():
            self.evaluator.evaluate_all(model, step, self.log)


def _check_token_ids(batch: Batch, vocab_size: int) -> None:
    """Raise UserError if an input or a target is not in the model's vocabulary.

    On a GPU the embedding or the loss would fail with an error that does not name the reason.
    """
    # The last id of a row is only a target. Negative ids cannot occur: shards hold unsigned ones.
    largest = int(torch.cat((batch.ids.flatten(), batch.targets)).max())
    if largest >= vocab_size:
        raise UserError(
            f"the data holds id {largest}, but the model's vocabulary ends at {vocab_size - 1}: "
            "prepare the data with the model's tokenizer"
        )


def _format_sampling(throughput: dict[str, Any]) -> str:
    """Return how fast the model writes the answers that it learns from, if it writes any."""
    rate = throughput.get("sampled_tokens_per_second")
    if rate is None:
        return ""
    return f"  sampling {rate:,.0f} tokens/s, {throughput['sampling_share']:.0%} of the time"


def _parse_state(saved: dict[str, Any], folder: Path) -> TrainState:
    """Return the state that the checkpoint in `folder` stores.

    Raises UserError if it has fields that this version does not know.
    """
    # Checkpoints of earlier versions have no loss level.
    level = saved.get("level", {})
    unknown = saved.keys() - TrainState.__dataclass_fields__.keys()
    unknown |= level.keys() - LossSpikeDetector.__dataclass_fields__.keys()
    if unknown:
        raise UserError(
            f"{folder} was written by another version of this program (it stores "
            f"{', '.join(sorted(unknown))}): resume with that version, or {NEW_RUN_HINT}"
        )
    return TrainState(**{**saved, "level": LossSpikeDetector(**level)})

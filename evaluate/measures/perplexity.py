"""Loss, perplexity, accuracy and bits per character of a checkpoint on text."""

from common.errors import UserError
from common.machine import resolve_device
from data.kinds import find_kind
from data.shards import ShardSet, load_run_shard_set
from data.sources import find_source
from evaluate.kinds import find_evaluation
from evaluate.load_model import load_checkpoint
from evaluate.options import PerplexityOptions
from evaluate.result import EvalResult, report_result


def run_perplexity(options: PerplexityOptions) -> None:
    """Score a checkpoint on native files or on a split of a shard set; report the result.

    Raises UserError if there is nothing to score, or if the context is too short to score text.
    """
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    if options.source:
        evaluation = find_evaluation(find_kind(find_source(options.source).kind))
        result = evaluation.score_files(loaded, options.source, options.input, options.limit)
    else:
        if options.data:
            shards = ShardSet.open(options.data)
        else:
            shards = load_run_shard_set(options.checkpoint)
        evaluation = find_evaluation(shards.kind)
        result = evaluation.score_shards(loaded, shards, options.split, options.limit)
    score = result.score
    if not score.num_tokens:
        raise UserError(
            f"{result.label}: {evaluation.nothing_to_score}, nothing to score; name other text "
            "with --data DIR or --source NAME --input FILE"
        )
    headline = (
        f"{options.checkpoint} on {result.label}: {score.num_characters:,} characters, "
        f"{result.method}"
    )
    metrics = {
        "text": result.label,
        "measured": result.method,
        "characters": score.num_characters,
        **result.counts,
        **score.compute_metrics(),
    }
    lines = [headline, score.format_metrics()]
    report_result(EvalResult(lines, metrics, loaded.provenance, device=device), options.json_file)

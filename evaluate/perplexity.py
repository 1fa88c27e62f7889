"""`python -m evaluate.perplexity`: loss, perplexity, accuracy and bits per character of a checkpoint on a text."""

from pathlib import Path

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import collect_environment, resolve_device
from data.kinds import find_kind
from data.shards import SPLITS, ShardSet, load_run_shard_set
from data.sources import find_source
from evaluate.cli import build_eval_parser, load_checkpoint, parse_eval_options
from evaluate.kinds import find_evaluation
from evaluate.kinds.base import MAX_ROW_TOKENS
from evaluate.scores.lm import WINDOW_TOKENS

DESCRIPTION = f"""Measure a checkpoint on text.

The text is either a split of a prepared shard set (--data DIR --split validation) or native files of a source
(--source jsonl --input FILE…), encoded with the checkpoint's own tokenizer. Documents are `<bos> text <eos>`,
concatenated and cut into windows of {WINDOW_TOKENS} tokens; every token but the first is scored once, and its context is
what precedes it in its window. Of conversations and summaries only the answers are scored, each with the whole
conversation before it as context, in rows of {MAX_ROW_TOKENS} tokens, or of as many as the model was trained on if that is less.
A longer conversation is cut after its last answer that fits, an article loses its end; a record of which no answer
fits is left out. Both are counted.

Loss and perplexity are per token and compare only models with the same tokenizer; bits per character compares all."""


def main() -> None:
    """Run the command."""
    parser = build_eval_parser(
        "perplexity",
        DESCRIPTION,
        limit_help="only the first so many records (of text: about so many tokens)",
        is_checkpoint_required=True,
    )
    parser.add_argument(
        "--data", type=Path, help="a prepared shard set (default: the one the run was trained on)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="split of the shard set"
    )
    options = parse_eval_options(parser)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options, device)
    context = loaded.model.config.max_position_embeddings
    if context < WINDOW_TOKENS:
        raise UserError(
            f"{options.checkpoint}: its context of {context} tokens is shorter than the window of {WINDOW_TOKENS} "
            "that text is measured in"
        )
    if options.input:
        evaluation = find_evaluation(find_kind(find_source(options.source).kind))
        result = evaluation.score_files(loaded, options.source, options.input, options.limit)
    else:
        shards = (
            ShardSet.open(options.data) if options.data else load_run_shard_set(options.checkpoint)
        )
        evaluation = find_evaluation(shards.kind)
        result = evaluation.score_shards(loaded, shards, options.split, options.limit)
    if not result.score.num_tokens:
        raise UserError(
            f"{result.label}: {evaluation.nothing_to_score}, nothing to score; name other text with --data DIR or "
            "--source NAME --input FILE"
        )
    num_characters = result.score.num_characters
    print(f"{options.checkpoint} on {result.label}: {num_characters:,} characters, {result.method}")
    print(result.score.format_metrics())
    if options.json:
        figures = {
            **loaded.provenance,
            "text": result.label,
            "measured": result.method,
            "characters": num_characters,
            **result.counts,
            **result.score.compute_metrics(),
            "made": collect_environment(device),
        }
        write_json(options.json, figures)


if __name__ == "__main__":
    run_main(main)

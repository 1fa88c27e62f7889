"""Find the model that a run was tuned from."""

from pathlib import Path

from common.errors import UserError
from common.run_layout import CONFIG_FILE
from common.yaml_files import load_yaml
from model.checkpoint import locate


def find_base(run: Path) -> Path | None:
    """Return the checkpoint that a run started from, None if it began with random weights.

    A relative path is looked for in the working directory and in the project that the run lies in.
    Return None, and print the reason, if the checkpoint is gone or has other weights now.
    """
    config_file = run / CONFIG_FILE
    config = load_yaml(config_file, error_prefix="") if config_file.is_file() else {}
    base = config.get("base")
    if not isinstance(base, str) or base == "none":
        return None
    # Runs lie in PROJECT/runs/NAME.
    moved = run.resolve().parent.parent / base
    path = moved if moved.exists() and not Path(base).exists() else Path(base)
    advice = f"to compare {run} with its base, name a copy of it: evaluate.report {run} --before …"
    try:
        sha256 = locate.weights_sha256(locate.resolve_checkpoint(path))
    except UserError as error:
        print(f"{error}; {advice}", flush=True)
        return None
    if sha256 != locate.read_fingerprints(run).get("base"):
        print(f"{path} has other weights than {run} was tuned from; {advice}", flush=True)
        return None
    return path

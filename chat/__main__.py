"""`python -m chat`: talk to a model in the terminal."""

import sys

from chat.errors import COMMAND_FAILED, translate_errors
from chat.options import parse_chat_options
from chat.terminal import cache_dir
from chat.terminal.console import Console
from common.errors import run_main


def main() -> None:
    """Run the command; every error becomes one line in Chinese."""
    with translate_errors(COMMAND_FAILED):
        _run_chat()


def _run_chat() -> None:
    """Load the model, open the index, set the reference, and talk until the user quits."""
    options = parse_chat_options(sys.argv[1:])
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from chat import load_model
    from chat.passage_lookup import PassageLookup
    from chat.terminal import knowledge, references
    from chat.terminal.repl import Repl
    from chat.terminal.session import Session

    console = Console(cache_dir() / "chat_history")
    # Before the model, which takes longer to load than a wrong folder should take to be refused.
    lookup = PassageLookup.open(options.index) if options.index is not None else None
    checkpoint = options.checkpoint or load_model.find_default_run()
    loaded_model = load_model.load_chat_model(
        checkpoint,
        load_model.resolve_chat_device(options.device),
        options.precision,
        options.quantize,
        options.kv_cache,
    )
    console.write_note(f"模型：{loaded_model.description}")
    if (hint := load_model.capability_hint(loaded_model)) is not None:
        console.write_note(hint)
    session = Session(loaded_model, options.to_sampling(), options.max_new_tokens, options.seed)
    if lookup is not None:
        session.index, session.lookup = options.index, lookup
        knowledge.start_automatic(session, console)
    if options.reference is not None:
        references.start_conversation_about(session, console, options.reference)
    elif options.reference_file is not None:
        references.load_reference_file(session, console, options.reference_file)
    elif options.wikipedia is not None:
        references.load_wikipedia_reference(session, console, options.wikipedia)
    if console.is_interactive:
        console.write_note("/help 查看命令，/quit 退出，Ctrl-C 中断回答")
    Repl(session, console).run()


if __name__ == "__main__":
    run_main(main)

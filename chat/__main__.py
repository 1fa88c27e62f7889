"""`python -m chat`: talk to a model."""

from chat import options as command_line
from chat.terminal.console import Console
from chat.errors import in_chinese
from chat.terminal.cache_dir import cache_folder
from common.errors import run_main


def main() -> None:
    """Entry point."""
    with in_chinese("没有做成：按详情改正后，再运行一次"):
        _chat()


def _chat() -> None:
    options = command_line.parse()
    # PyTorch, which --help and a slip in the options need not wait for.
    from chat import load_model
    from chat.terminal import references
    from chat.terminal.repl import Repl
    from chat.terminal.session import Session

    console = Console(cache_folder() / "chat_history")
    folder = options.checkpoint or load_model.newest_run()
    loaded = load_model.load(folder, load_model.choose_device(options.device), options.precision, options.quantize)
    console.note(f"模型：{loaded.description}")
    if (hint := load_model.hint(loaded)) is not None:
        console.note(hint)
    session = Session(loaded, command_line.sampling(options), options.max_new_tokens, options.seed)
    if options.reference is not None:
        references.from_text(session, console, options.reference)
    elif options.reference_file is not None:
        references.from_file(session, console, options.reference_file)
    elif options.wikipedia is not None:
        references.from_wikipedia(session, console, options.wikipedia)
    if console.interactive:
        console.note("/help 列出命令，/quit 退出，Ctrl-C 打断回答")
    Repl(session, console).run()


if __name__ == "__main__":
    run_main(main)

"""The loop: read a line, answer it or do what it says, until there are no more."""

from chat.errors import ChatError, ConsoleError, translate_memory_errors
from chat.prompt import FittedPrompt
from chat.terminal.commands import Quit, execute_command
from chat.terminal.console import Console, catch_sigint
from chat.terminal.session import Session


class Repl:
    """A session at a console."""

    def __init__(self, session: Session, console: Console) -> None:
        self._session, self._console = session, console
        self._noted_reference_length = 0

    def run(self) -> None:
        """Until the end of input, `/quit`, or Ctrl-C twice at the prompt. Through pipes one Ctrl-C is enough.

        What goes wrong is a line, after which the chat goes on; ConsoleError where no line can be read or written.
        """
        has_interrupted = False
        while True:
            try:
                line = self._console.read_message()
                if line is None:
                    break
                has_interrupted = False
                with translate_memory_errors():
                    self._handle_line(line)
            except ConsoleError:
                raise
            except ChatError as error:
                self._console.write_note(str(error))
            except Quit:
                return
            except KeyboardInterrupt:
                if not self._console.is_interactive:
                    raise
                if has_interrupted:
                    break
                has_interrupted = True
                self._console.write_note("\n再按一次 Ctrl-C 退出")
        if self._console.is_interactive:
            self._console.write_note("")

    def _handle_line(self, line: str) -> None:
        if line.startswith(("/", "／")):
            execute_command(self._session, self._console, line)
        elif question := line.strip():
            self._answer(question)

    def _answer(self, question: str) -> None:
        session, console = self._session, self._console
        prompt = session.build_prompt(question)
        self._note_truncation(prompt)
        pieces: list[str] = []
        if console.is_interactive:
            console.write(session.loaded_model.template.assistant)
        with catch_sigint() as stop_event:
            try:
                for text in session.stream_answer(prompt):
                    pieces.append(text)
                    console.write(text)
                    if stop_event.is_set():
                        break
            finally:
                console.write("\n")
        answer, is_interrupted = "".join(pieces), session.finish_reason is None
        if answer.strip():
            session.add_exchange(question, answer, is_interrupted=is_interrupted)
        self._note_finish_reason(is_interrupted, has_text=bool(answer.strip()))

    def _note_truncation(self, prompt: FittedPrompt) -> None:
        reference_length = len(self._session.conversation.reference)
        if prompt.num_dropped_turns:
            self._console.write_note(
                f"（上下文满了：忘掉最早的 {prompt.num_dropped_turns} 轮对话）"
            )
        if (
            prompt.num_reference_characters < reference_length
            and prompt.num_reference_characters != self._noted_reference_length
        ):
            self._console.write_note(
                f"（资料太长：共 {reference_length} 字，只读了前 {prompt.num_reference_characters} 字）"
            )
        self._noted_reference_length = prompt.num_reference_characters

    def _note_finish_reason(self, is_interrupted: bool, *, has_text: bool) -> None:
        if is_interrupted:
            self._console.write_note(
                "（已打断" + ("，说出的部分留在对话里）" if has_text else "）")
            )
        elif self._session.finish_reason == "length":
            self._console.write_note(
                f"（到了 --max_new_tokens 的 {self._session.max_new_tokens} 个词元，回答到此为止）"
            )
        elif self._session.finish_reason == "context":
            self._console.write_note("（上下文满了，回答到此为止）")
        elif not has_text:
            self._console.write_note("（模型没有说什么）")

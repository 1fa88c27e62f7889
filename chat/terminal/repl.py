"""The read-eval-print loop of the chat."""

from chat.errors import LINE_FAILED, ChatError, ConsoleError, translate_errors
from chat.prompt import FittedPrompt
from chat.terminal import knowledge
from chat.terminal.commands import Quit, execute_command
from chat.terminal.console import Console, catch_sigint
from chat.terminal.session import Session


class Repl:
    """Read lines from a console, answer questions and execute commands."""

    def __init__(self, session: Session, console: Console) -> None:
        self._session = session
        self._console = console
        # Characters of the reference that the last prompt contained.
        self._last_visible_length = 0

    def run(self) -> None:
        """Run until the end of input, `/quit`, or Ctrl-C twice without a line between.

        While an answer is streamed, Ctrl-C only stops the answer. An error prints one line and does
        not end the conversation. Raises ConsoleError if nothing can be read or written any more,
        and KeyboardInterrupt on Ctrl-C if there is no terminal.
        """
        was_interrupted = False
        while True:
            try:
                line = self._console.read_message()
                if line is None:
                    break
                was_interrupted = False
                with translate_errors(LINE_FAILED):
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
                if was_interrupted:
                    break
                was_interrupted = True
                self._console.write_note("\n再按一次 Ctrl-C 退出")
        # The shell's prompt begins on a new line, not after the last prompt of the chat.
        if self._console.is_interactive:
            self._console.write_note("")

    def _handle_line(self, line: str) -> None:
        """Execute a command, or answer a question; a blank line is ignored."""
        if line.startswith(("/", "／")):
            question = execute_command(self._session, self._console, line)
        else:
            question = line.strip()
        if question:
            self._answer(question)

    def _answer(self, question: str) -> None:
        """Stream the answer to the console; Ctrl-C stops it and keeps the text so far."""
        session, console = self._session, self._console
        conversations = list(session.conversations)
        try:
            if session.is_automatic:
                knowledge.look_up_passage(session, console, question)
            prompt = session.build_prompt(question)
        except ChatError:
            # The next question follows the one before this, about its passage.
            session.conversations = conversations
            raise
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
        answer = "".join(pieces)
        has_text = bool(answer.strip())
        # A complete answer has a reason for its end.
        is_interrupted = session.finish_reason is None
        if has_text:
            session.add_exchange(question, answer, is_interrupted=is_interrupted)
            knowledge.note_copied_share(session, console)
        self._note_finish_reason(is_interrupted, has_text)

    def _note_truncation(self, prompt: FittedPrompt) -> None:
        """Tell the user which turns, and how much of the reference, do not fit into the context.

        The note on the reference is not repeated while its visible length stays the same.
        """
        reference_length = len(self._session.conversation.reference)
        visible_length = prompt.num_reference_characters
        if prompt.num_dropped_turns:
            self._console.write_note(
                f"（上下文已满：忘记了最早的 {prompt.num_dropped_turns} 轮对话）"
            )
        if visible_length < reference_length and visible_length != self._last_visible_length:
            self._console.write_note(
                f"（资料太长：共 {reference_length} 字，只用了前 {visible_length} 字）"
            )
        self._last_visible_length = visible_length

    def _note_finish_reason(self, is_interrupted: bool, has_text: bool) -> None:
        """Tell the user why an answer ended, unless the model ended it by itself."""
        if is_interrupted and has_text:
            note = "（已中断，已生成的部分保留在对话中）"
        elif is_interrupted:
            note = "（已中断）"
        elif self._session.finish_reason == "length":
            limit = self._session.max_new_tokens
            note = f"（已达到 --max_new_tokens 的上限 {limit} 个词元，回答到此为止）"
        elif self._session.finish_reason == "context":
            note = "（上下文已满，回答到此为止）"
        elif not has_text:
            note = "（模型没有给出回答）"
        else:
            return
        self._console.write_note(note)

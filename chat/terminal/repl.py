"""The loop: read a line, answer it or do what it says, until there are no more."""

from chat.terminal.commands import Quit, execute
from chat.terminal.console import Console, stoppable
from chat.prompt import Prompt
from chat.errors import ChatError, ConsoleError, enough_memory
from chat.terminal.session import Session


class Repl:
    """A session at a console."""

    def __init__(self, session: Session, console: Console) -> None:
        self._session, self._console = session, console
        self._reference_read = 0

    def run(self) -> None:
        """Until the end of input, `/quit`, or Ctrl-C twice at the prompt. Through pipes one Ctrl-C is enough.

        What goes wrong is a line, after which the chat goes on; ConsoleError where no line can be read or written.
        """
        once = False
        while True:
            try:
                line = self._console.read()
                if line is None:
                    break
                once = False
                with enough_memory():
                    self._take(line)
            except ConsoleError:
                raise
            except ChatError as error:
                self._console.note(str(error))
            except Quit:
                return
            except KeyboardInterrupt:
                if not self._console.interactive:
                    raise
                if once:
                    break
                once = True
                self._console.note("\n再按一次 Ctrl-C 退出")
        if self._console.interactive:
            self._console.note("")

    def _take(self, line: str) -> None:
        if line.startswith(("/", "／")):
            execute(self._session, self._console, line)
        elif question := line.strip():
            self._answer(question)

    def _answer(self, question: str) -> None:
        session, console = self._session, self._console
        prompt = session.prompt(question)
        self._tell_what_is_left_out(prompt)
        pieces: list[str] = []
        if console.interactive:
            console.write(session.weights.template.assistant)
        with stoppable() as stopped:
            try:
                for text in session.stream(prompt):
                    pieces.append(text)
                    console.write(text)
                    if stopped.is_set():
                        break
            finally:
                console.write("\n")
        answer, cut = "".join(pieces), session.end is None
        if answer.strip():
            session.keep(question, answer, cut=cut)
        self._tell_how_it_ended(cut, said=bool(answer.strip()))

    def _tell_what_is_left_out(self, prompt: Prompt) -> None:
        whole = len(self._session.conversation.reference)
        if prompt.dropped:
            self._console.note(f"（上下文满了：忘掉最早的 {prompt.dropped} 轮对话）")
        if prompt.reference < whole and prompt.reference != self._reference_read:
            self._console.note(f"（资料太长：共 {whole} 字，只读了前 {prompt.reference} 字）")
        self._reference_read = prompt.reference

    def _tell_how_it_ended(self, cut: bool, *, said: bool) -> None:
        if cut:
            self._console.note("（已打断" + ("，说出的部分留在对话里）" if said else "）"))
        elif self._session.end == "length":
            self._console.note(f"（到了 --max_new_tokens 的 {self._session.max_new_tokens} 个词元，回答到此为止）")
        elif self._session.end == "context":
            self._console.note("（上下文满了，回答到此为止）")
        elif not said:
            self._console.note("（模型没有说什么）")

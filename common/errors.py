"""One kind of error for what the user can mend, and the one place that turns it into an exit code."""

import io
import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend: one line that names the file, line or key, and the cure."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    A `UserError` becomes its message on stderr and exit code 2, and so does a file that the system refuses (no such file,
    no permission, no space) by its name; Ctrl-C becomes 130. Anything else is a fault of the program and keeps its
    traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may be bytes that are no text, a terminal may know no Chinese: shown as escapes, no end to the work.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; it has all it wanted.
        sys.stderr.close()
        code = 0
    except OSError as error:
        if error.filename is None:
            raise
        name = os.fsdecode(error.filename)
        shown = name if len(name) <= 200 else name[:200] + "…"
        print(f"error: {shown}: {error.strerror}; check the path, its permissions and the disk", file=sys.stderr)
        code = 2
    sys.exit(code)

"""One kind of error for what the user can mend, and the one place that turns it into an exit code."""

import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend: one line that names the file, line or key, and the cure."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    A `UserError` becomes its message on stderr and exit code 2, Ctrl-C becomes 130; anything else is a fault of the
    program and keeps its traceback.
    """
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
    sys.exit(code)

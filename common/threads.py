"""How long the threads of a parallel operation wait for each other before they sleep."""

import os

# Turns of the waiting loop of libgomp, the OpenMP library of PyTorch's Linux builds. A turn is one
# `pause` instruction, 15 to 50 ns, so that a thread sleeps after 15 to 50 microseconds: longer than
# most gaps between two operations of a model, and shorter than the time slice of another process.
# The default of libgomp is 300,000, several milliseconds. docs/results.md has the measurement.
_SPIN_COUNT = 1000


def limit_spinning(*, decodes_batches: bool = False) -> None:
    """Let idle threads sleep after some microseconds, unless the environment says how they wait.

    Not where `decodes_batches`: loops that decode many answers at a time leave busy processors to
    others by themselves (`model.decode.free_processors`), and on an idle machine their threads lose
    a fifth of their speed by waking up. They cannot where OMP_NUM_THREADS fixes their threads.

    A thread that spins occupies a core. On a core that another process needs, the others of its
    team wait in turn for a thread that does not run: two trainings at once would be many times
    slower than one after the other. To be called before PyTorch is imported, which reads this once.
    """
    if decodes_batches and "OMP_NUM_THREADS" not in os.environ:
        return
    # GOMP_SPINCOUNT would override the standard variable.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))

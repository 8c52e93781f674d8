"""What was checked: a line each, and whether all of it held."""

import numpy as np
import pyarrow as pa


class Report:
    """Prints one line a check and remembers whether all of them held."""

    def __init__(self):
        self.n_passed = 0
        self.n_failed = 0

    def close(self, name, recorded, expected, allowed, where=True):
        """Nulls agree and |recorded − expected| ≤ allowed, at each position of `where`."""
        recorded, expected, allowed, where = np.broadcast_arrays(recorded, expected, allowed, where)
        recorded, expected, allowed = recorded[where], expected[where], allowed[where]
        both = ~np.isnan(recorded) & ~np.isnan(expected)
        null_differs = int((np.isnan(recorded) != np.isnan(expected)).sum())
        error = np.abs(recorded[both] - expected[both])
        n_wrong = int((~(error <= allowed[both])).sum())
        of_allowed = float(np.max(error / np.maximum(allowed[both], 1e-300), initial=0.0))
        text = f"largest error {np.max(error, initial=0.0):.1e}, {of_allowed:.2f} of what is allowed, {both.sum()} values"
        if n_wrong:
            text += f"; {n_wrong} wrong"
        if null_differs:
            text += f"; {null_differs} null on one side only"
        self.line(name, n_wrong == 0 and null_differs == 0 and both.any(), text)

    def exact(self, name, wrong, note=""):
        """No position is wrong, and there is at least one."""
        wrong = np.asarray(wrong, dtype=bool).ravel()
        self.line(name, wrong.size > 0 and not wrong.any(), f"{wrong.sum()} wrong of {wrong.size} values{note}")

    def same(self, name, recorded, expected):
        """Two lists are equal, element by element."""
        n_more = abs(len(recorded) - len(expected))
        wrong = [a != b for a, b in zip(recorded, expected)] + [True] * n_more
        self.exact(name, wrong, f" ({len(recorded)} instead of {len(expected)})" if n_more else "")

    def line(self, name, is_passed, text):
        self.n_passed += is_passed
        self.n_failed += not is_passed
        print(f"{'ok    ' if is_passed else 'FAILED'} {name:<48} {text}")

    def skipped(self, name, why):
        print(f"-      {name:<48} {why}")

    def section(self, check, *arguments):
        """Runs a group of checks; what keeps it from running, such as a missing column, is a failure of its own."""
        try:
            return check(*arguments)
        except (KeyError, IndexError, ValueError, OSError, TypeError, pa.ArrowException) as error:
            self.line(check.__name__, False, f"could not run: {type(error).__name__}: {error}")

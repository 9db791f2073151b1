"""`python -m flows.start.undisturbed AUDIT MODULE ARGS...` runs a module while no decision on an audit can be recorded.

DVC hashes inputs at the end of a stage, so a decision made meanwhile would count as used. The lock is held here, as
what it imports would stay in the process of the run.
"""

import runpy
import sys

from stages.decisions.files import decisions_lock


def main() -> None:
    """Run the module named on the command line as `python -m` would."""
    audit, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    with decisions_lock(audit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

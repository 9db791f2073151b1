"""`python -m flows.start.child PARENT MODULE ARGS...` runs a module as a child of the flow that dies with its parent.

Keep this module free of imports, as every stage pays for them. (A `preexec_fn` would be unsafe with threads.)
"""

import runpy
import sys

from stages.core.environment import die_with_parent


def main() -> None:
    """Run the module named on the command line as `python -m` would."""
    parent, module, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Workers that do not see the driver's files: stages run in clones of their own, and outputs travel by content.

A clone and the driver share a DVC remote and nothing else. What a stage reads is pulled from it, what the stage made
is pushed to it together with DVC's record of the run, and the driver takes the outputs into its own workspace as if
the stage had run there. What any machine has pushed is never computed again.
"""

from __future__ import annotations

from flows.machines.driver import check_machines, pack, take_back, travels
from flows.machines.worker import run_there
from flows.shipment import Made, Shipment

__all__ = ["Made", "Shipment", "check_machines", "pack", "run_there", "take_back", "travels"]

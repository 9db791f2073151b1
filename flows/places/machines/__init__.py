"""Workers without access to the driver's files: stages run in the workers' own clones, and outputs travel by content.

A clone and the driver share only a DVC remote. A stage's inputs are pulled from it. Its outputs are pushed to it with
DVC's record of the run, and the driver checks them out into its own workspace as if the stage had run there. What any
machine has pushed is never computed again.
"""

from __future__ import annotations

from flows.places.machines.driver import check_machines, pack, take_back, travels
from flows.places.machines.worker import run_there
from flows.run_stage import Shipment, ShipmentResult

__all__ = ["Shipment", "ShipmentResult", "check_machines", "pack", "run_there", "take_back", "travels"]

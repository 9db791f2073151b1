"""Workers without access to the driver's files: stages run in the workers' own clones, and outputs travel by content.

A clone and the driver share only a DVC remote. A stage's inputs are pulled from it. Its outputs are pushed to it with
DVC's record of the run, and the driver checks them out into its own workspace as if the stage had run there. What any
machine has pushed is never computed again.
"""

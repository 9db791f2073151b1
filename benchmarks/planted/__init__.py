"""A yardstick for whatever looks for the failures of a model: models with planted failures of known place and rate.

    python -m benchmarks.planted faded                   # the 40 models with a plant and the 20 without; resumes
    python -m benchmarks.planted tree sliceline subgroups giskard
    python -m benchmarks.planted --table                 # what docs/research.md quotes

`models` makes the models, `judge` has the rule, `scanners` what is judged. Only the scanner `faded` needs Faded: copied
together with the digits (`models.DIGITS`), the folder can judge any function from `Model` and a budget to `Claim`s. The
others need `pip install scikit-learn pandas 'pyarrow<20' sliceline pysubgroup` and, in an environment of its own,
`pip install 'giskard<3' 'pyarrow<20'`.
"""
